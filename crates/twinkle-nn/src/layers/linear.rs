//! Linear maps over packed rows, with low-rank adapters.
//!
//! A matrix library picks its algorithm by the number of rows, and with it the bits of every row. So rows are multiplied
//! in tiles of one constant size: then a row's bits do not depend on how many rows came with it, or on which.

use std::ops::Range;

use tch::{Kind, TchError, Tensor};
use twinkle_kernels::Layout;
use twinkle_torch::Frozen;

use super::full;
use super::native::{self, Ending, LowRank};
use crate::lora::{Adapter, Gradients, Site};
use crate::torch::TorchResult;

/// A frozen linear map `y = x Wᵀ + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(crate) weight: Frozen,
    /// `[out]`.
    pub(crate) bias: Option<Frozen>,
    /// Where it sits, to find its adapter.
    pub(crate) site: Site,
}

/// Which rows use which adapter, and how rows are tiled.
#[derive(Debug)]
pub(crate) struct Routing<'a> {
    /// Rows per tile of the base product.
    pub(crate) tile: i64,
    /// Rows per tile of the adapter's products; `None` multiplies all rows of a group at once, which is right when a
    /// group is always the same rows (a sequence in training).
    pub(crate) adapter_tile: Option<i64>,
    /// The groups that have an adapter.
    pub(crate) groups: Vec<Group<'a>>,
}

/// Rows that share an adapter.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    pub(crate) rows: Rows,
    pub(crate) adapter: &'a Adapter,
    /// The adapter's number in the pass.
    pub(crate) index: usize,
}

/// Where the rows of a [`Group`] are.
#[derive(Debug)]
pub(crate) enum Rows {
    /// One after the other.
    Range { start: i64, length: i64 },
    /// Anywhere: an int64 tensor of row numbers.
    List(Tensor),
}

impl Rows {
    pub(crate) fn range(rows: Range<usize>) -> Self {
        Self::Range { start: rows.start as i64, length: (rows.end - rows.start) as i64 }
    }

    /// The rows of `x`: a view of a range, a copy of a list.
    pub(crate) fn of(&self, x: &Tensor) -> TorchResult<Tensor> {
        match self {
            Self::Range { start, length } => x.f_narrow(0, *start, *length),
            Self::List(rows) => x.f_index_select(0, rows),
        }
    }
}

/// What the adapters of one linear map computed on the way forward: per group of the routing `s · A x`, `[rows, r]`.
pub(crate) type Shrunk = Vec<Option<Tensor>>;

impl Linear {
    /// `x Wᵀ + b` plus every group's `s · B A x`; also what backward needs of the adapters.
    pub(crate) fn forward(&self, x: &Tensor, routing: &Routing) -> TorchResult<(Tensor, Shrunk)> {
        if native::multiplies(x) {
            let bias = self.bias.as_ref().map(Frozen::tensor);
            return forward_native(x, self.weight.tensor(), bias, self.site, routing);
        }
        let bias = self.bias.as_ref().map(Frozen::tensor);
        let y = multiply_rows(x, &self.weight.tensor().f_tr()?, bias, Some(routing.tile))?;
        let mut shrunk = Vec::with_capacity(routing.groups.len());
        for group in &routing.groups {
            shrunk.push(self.add_adapter(x, &y, group, routing.adapter_tile)?);
        }
        Ok((y, shrunk))
    }

    fn add_adapter(&self, x: &Tensor, y: &Tensor, group: &Group, tile: Option<i64>) -> TorchResult<Option<Tensor>> {
        let Some(pair) = group.adapter.at(self.site) else {
            return Ok(None);
        };
        let mut shrunk = multiply_rows(&group.rows.of(x)?, &pair.a.tensor().f_tr()?, None, tile)?;
        let _ = shrunk.f_mul_scalar_(pair.scale)?;
        let expand = pair.b.tensor().f_tr()?;
        let mut rows = group.rows.of(y)?;
        add_product(&mut rows, &shrunk, &expand, tile)?;
        if let Rows::List(list) = &group.rows {
            let _ = y.shallow_clone().f_index_copy_(0, list, &rows)?;
        }
        Ok(Some(shrunk))
    }

    /// The gradient of `x` given that of `y`, through the base and every group's adapter.
    ///
    /// Adds the gradients of `A` and `B` to those of the group's adapter, group by group in order.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        dy: &Tensor,
        shrunk: &Shrunk,
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        backward_branches(x, &[Branch { linear: self, dy, shrunk }], routing, gradients)
    }

    fn backward_by_tiles(
        &self,
        x: &Tensor,
        dy: &Tensor,
        shrunk: &Shrunk,
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let dx = multiply_rows(dy, self.weight.tensor(), None, Some(routing.tile))?;
        for (group, shrunk) in routing.groups.iter().zip(shrunk) {
            let (Some(shrunk), Some(pair)) = (shrunk, group.adapter.at(self.site)) else {
                continue;
            };
            let dy = group.rows.of(dy)?;
            let mut d_shrunk = dy.f_mm(pair.b.tensor())?;
            let _ = d_shrunk.f_mul_scalar_(pair.scale)?;
            let _ = group.rows.of(&dx)?.f_addmm_(&d_shrunk, pair.a.tensor())?;
            let Some(module) = group.adapter.layout().module_at(self.site) else {
                continue;
            };
            let (mut da, mut db) = gradients[group.index].module(module)?;
            accumulate_product(&mut da, &d_shrunk, &group.rows.of(x)?)?;
            accumulate_product(&mut db, &dy, shrunk)?;
        }
        Ok(dx)
    }
}

/// [`Linear::forward`] as one product: the low-rank parts join its fp32 sums.
pub(crate) fn forward_native(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    site: Site,
    routing: &Routing,
) -> TorchResult<(Tensor, Shrunk)> {
    let mut shrunk: Shrunk = routing.groups.iter().map(|_| None).collect();
    let mut low = Vec::new();
    for run in routing.runs() {
        let Some(pair) = run.adapter().at(site) else { continue };
        let ending = Ending { scale: Some(pair.scale), ..Ending::default() };
        let own = native::product(&[(&run.of(x)?, &pair.a.tensor().f_tr()?)], &[], ending)?;
        run.split(&own, &mut shrunk)?;
        run.add_to(&mut low, &own, &pair.b.tensor().f_tr()?)?;
    }
    let ending = Ending { bias, ..Ending::default() };
    Ok((native::product(&[(x, &weight.f_tr()?)], &low, ending)?, shrunk))
}

/// One of several linear maps of the same rows, on the way back.
pub(crate) struct Branch<'a> {
    pub(crate) linear: &'a Linear,
    /// The gradient of its output.
    pub(crate) dy: &'a Tensor,
    /// What its adapters computed on the way forward.
    pub(crate) shrunk: &'a Shrunk,
}

/// The gradient of the rows `x` that several linear maps have read: the sum over them, as in [`Linear::backward`].
pub(crate) fn backward_branches(
    x: &Tensor,
    branches: &[Branch],
    routing: &Routing,
    gradients: &mut [&mut Gradients],
) -> TorchResult<Tensor> {
    for Branch { linear, dy, .. } in branches {
        full::linear(linear, x, dy, routing, gradients)?;
    }
    if native::multiplies(x) {
        let mut low = Vec::new();
        for Branch { linear, dy, shrunk } in branches {
            for run in routing.runs() {
                linear.differentiate_adapter(&run, (x, dy), shrunk, &mut low, gradients)?;
            }
        }
        let terms: Vec<_> = branches.iter().map(|branch| (branch.dy, branch.linear.weight.tensor())).collect();
        return native::product(&terms, &low, Ending::default());
    }
    let mut sum: Option<Tensor> = None;
    for Branch { linear, dy, shrunk } in branches {
        let dx = linear.backward_by_tiles(x, dy, shrunk, routing, gradients)?;
        match &mut sum {
            Some(sum) => {
                let _ = sum.f_add_(&dx)?;
            }
            None => sum = Some(dx),
        }
    }
    sum.ok_or_else(|| TchError::Torch("no linear map has read these rows".to_owned()))
}

impl Linear {
    /// The adapter's part of the backward for the rows of a run: its gradients, and what it adds to that of `x`.
    fn differentiate_adapter(
        &self,
        run: &Run,
        (x, dy): (&Tensor, &Tensor),
        shrunk: &Shrunk,
        low: &mut Vec<LowRank>,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<()> {
        let (Some(pair), Some(module)) = (run.adapter().at(self.site), run.adapter().layout().module_at(self.site))
        else {
            return Ok(());
        };
        let (x, dy) = (run.of(x)?, run.of(dy)?);
        let ending = Ending { scale: Some(pair.scale), ..Ending::default() };
        let d_shrunk = native::product(&[(&dy, pair.b.tensor())], &[], ending)?;
        let shrunk = run.join(shrunk)?;
        let (mut da, mut db) = gradients[run.index()].module(module)?;
        native::accumulate_outer(&run.segments(), &d_shrunk, &x, Layout::NarrowByWide, &mut da)?;
        native::accumulate_outer(&run.segments(), &shrunk, &dy, Layout::WideByNarrow, &mut db)?;
        run.add_to(low, &d_shrunk, pair.a.tensor())
    }
}

/// Groups one after the other whose rows follow each other and share an adapter; their products can be one.
pub(crate) struct Run<'a> {
    groups: &'a [Group<'a>],
    /// The first group's place in the routing.
    first: usize,
}

impl<'a> Routing<'a> {
    /// The groups, neighbours that share an adapter together.
    pub(crate) fn runs(&'a self) -> impl Iterator<Item = Run<'a>> {
        let mut first = 0;
        self.groups
            .chunk_by(|left, right| match (&left.rows, &right.rows) {
                (Rows::Range { start, length }, Rows::Range { start: next, .. }) => {
                    std::ptr::eq(left.adapter, right.adapter) && left.index == right.index && start + length == *next
                }
                _ => false,
            })
            .map(move |groups| {
                let run = Run { groups, first };
                first += groups.len();
                run
            })
    }
}

impl<'a> Run<'a> {
    /// The places of its groups in the routing.
    pub(crate) fn places(&self) -> Range<usize> {
        self.first..self.first + self.groups.len()
    }

    pub(crate) fn adapter(&self) -> &'a Adapter {
        self.groups[0].adapter
    }

    pub(crate) fn index(&self) -> usize {
        self.groups[0].index
    }

    /// The run's rows of `x`.
    fn of(&self, x: &Tensor) -> TorchResult<Tensor> {
        match &self.groups[0].rows {
            Rows::Range { start, .. } => {
                let rows = self.segments().last().map_or(0, |last| last.end);
                x.f_narrow(0, *start, rows as i64)
            }
            Rows::List(rows) => x.f_index_select(0, rows),
        }
    }

    /// The rows of each group, counted from the run's first.
    fn segments(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let lengths = self.groups.iter().map(|group| match &group.rows {
            Rows::Range { length, .. } => *length as usize,
            Rows::List(rows) => rows.numel(),
        });
        lengths
            .map(|length| {
                end += length;
                end - length..end
            })
            .collect()
    }

    /// Gives each group its rows of `own`.
    fn split(&self, own: &Tensor, shrunk: &mut Shrunk) -> TorchResult<()> {
        for (offset, rows) in self.segments().into_iter().enumerate() {
            shrunk[self.first + offset] = Some(own.f_narrow(0, rows.start as i64, rows.len() as i64)?);
        }
        Ok(())
    }

    /// The groups' rows again as one.
    fn join(&self, shrunk: &Shrunk) -> TorchResult<Tensor> {
        let own = &shrunk[self.first..self.first + self.groups.len()];
        let own: Vec<&Tensor> = own.iter().flatten().collect();
        if own.len() == 1 { Ok(own[0].shallow_clone()) } else { Tensor::f_cat(&own, 0) }
    }

    /// Adds `left · right` to the low-rank summands, for the rows where they belong.
    fn add_to(&self, low: &mut Vec<LowRank>, left: &Tensor, right: &Tensor) -> TorchResult<()> {
        let mut add = |start: i64, own: Tensor| {
            let start = start as usize;
            low.push(LowRank { rows: start..start + own.size()[0] as usize, left: own, right: right.shallow_clone() });
        };
        match &self.groups[0].rows {
            Rows::Range { start, .. } => add(*start, left.shallow_clone()),
            Rows::List(list) => {
                for (place, row) in Vec::<i64>::try_from(list)?.into_iter().enumerate() {
                    add(row, left.f_narrow(0, place as i64, 1)?);
                }
            }
        }
        Ok(())
    }
}

/// `x · matrix (+ bias)`, `[rows, out]`, in tiles of `tile` rows; the last one is padded with zero rows.
pub(crate) fn multiply_rows(
    x: &Tensor,
    matrix: &Tensor,
    bias: Option<&Tensor>,
    tile: Option<i64>,
) -> TorchResult<Tensor> {
    if native::multiplies(x) {
        return native::product(&[(x, matrix)], &[], Ending { bias, ..Ending::default() });
    }
    let (rows, out) = (x.size()[0], matrix.size()[1]);
    let y = Tensor::f_empty([rows, out], (x.kind(), x.device()))?;
    let tile = tile.unwrap_or(rows);
    let mut start = 0;
    while start < rows {
        let count = tile.min(rows - start);
        let (source, mut target) = (x.f_narrow(0, start, count)?, y.f_narrow(0, start, count)?);
        if count == tile {
            multiply_tile(&source, matrix, bias, &target)?;
        } else {
            let padded = pad_rows(&source, tile)?;
            let product = Tensor::f_empty([tile, out], (x.kind(), x.device()))?;
            multiply_tile(&padded, matrix, bias, &product)?;
            target.f_copy_(&product.f_narrow(0, 0, count)?)?;
        }
        start += count;
    }
    Ok(y)
}

fn multiply_tile(x: &Tensor, matrix: &Tensor, bias: Option<&Tensor>, y: &Tensor) -> TorchResult<()> {
    let _written = match bias {
        // The bias joins the fp32 sum before it is rounded, as in torch's `linear`.
        Some(bias) => bias.f_addmm_out(y, x, matrix)?,
        None => x.f_mm_out(y, matrix)?,
    };
    Ok(())
}

/// `y += x · matrix`, in tiles as in [`multiply_rows`]; `y` joins the fp32 sum before it is rounded.
pub(crate) fn add_product(y: &mut Tensor, x: &Tensor, matrix: &Tensor, tile: Option<i64>) -> TorchResult<()> {
    let rows = x.size()[0];
    let tile = tile.unwrap_or(rows);
    let mut start = 0;
    while start < rows {
        let count = tile.min(rows - start);
        let (source, mut target) = (x.f_narrow(0, start, count)?, y.f_narrow(0, start, count)?);
        if count == tile {
            let _ = target.f_addmm_(&source, matrix)?;
        } else {
            let padded = pad_rows(&source, tile)?;
            let mut sum = pad_rows(&target, tile)?;
            let _ = sum.f_addmm_(&padded, matrix)?;
            target.f_copy_(&sum.f_narrow(0, 0, count)?)?;
        }
        start += count;
    }
    Ok(())
}

/// `x` with zero rows below, `[rows, width]`.
pub(crate) fn pad_rows(x: &Tensor, rows: i64) -> TorchResult<Tensor> {
    let size = x.size();
    if size[0] == rows {
        return Ok(x.shallow_clone());
    }
    let padded = Tensor::f_zeros([rows, size[1]], (x.kind(), x.device()))?;
    padded.f_narrow(0, 0, size[0])?.f_copy_(x)?;
    Ok(padded)
}

/// `sum += leftᵀ · right` in fp32, the sum of one sequence's outer products.
pub(crate) fn accumulate_product(sum: &mut Tensor, left: &Tensor, right: &Tensor) -> TorchResult<()> {
    let (left, right) = (left.f_to_kind(Kind::Float)?, right.f_to_kind(Kind::Float)?);
    let _ = sum.f_addmm_(&left.f_tr()?, &right)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// The shapes of a 0.5B model, where the matrix library has several algorithms to choose from.
    #[test]
    fn a_row_has_the_same_bits_at_any_place_among_any_neighbours() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for (out, width) in [(896, 4864), (4864, 896), (128, 896)] {
                let random =
                    |rows: i64, columns: i64| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).to_kind(kind);
                let (weight, x) = (random(out, width), random(70, width));
                for tile in [16, 64] {
                    let whole = multiply_rows(&x, &weight.tr(), None, Some(tile)).unwrap();
                    for (start, count) in [(0, 1), (3, 1), (17, 20), (5, 64), (69, 1)] {
                        let some = multiply_rows(&x.narrow(0, start, count), &weight.tr(), None, Some(tile)).unwrap();
                        assert!(some.equal(&whole.narrow(0, start, count)), "{kind:?} {out}x{width} tile {tile}");
                    }
                }
            }
        }
    }
}
