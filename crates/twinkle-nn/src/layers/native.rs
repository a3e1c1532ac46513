//! From tensors to the processor's own kernels ([`twinkle_kernels`]), which keep a row's bits without row tiles.
//!
//! Each function here returns `None` where its kernel does not apply: on another device, for another dtype, or on a
//! processor without AVX512-BF16. The caller then computes with libtorch.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};
use twinkle_kernels::{Finish, Layout, Right, Segment, Term};
use twinkle_torch::slices::{bf16s, bf16s_mut, f32s_mut};

use crate::torch::TorchResult;

/// Whether matrix products of rows like `x` are made by [`product`].
pub(crate) fn multiplies(x: &Tensor) -> bool {
    is_plain(x) && twinkle_kernels::has_bf16_products()
}

/// Whether rows like `x` are bf16 on the processor.
pub(crate) fn is_plain(x: &Tensor) -> bool {
    x.device() == Device::Cpu && x.kind() == Kind::BFloat16 && x.numel() > 0
}

/// A low-rank summand of a [`product`].
pub(crate) struct LowRank {
    /// The rows it adds to.
    pub(crate) rows: Range<usize>,
    /// `[rows, r]`.
    pub(crate) left: Tensor,
    /// `[r, out]`.
    pub(crate) right: Tensor,
}

/// What is done with the sums of a [`product`].
#[derive(Clone, Copy, Default)]
pub(crate) struct Ending<'a> {
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) scale: Option<f64>,
    pub(crate) residual: Option<&'a Tensor>,
}

/// `scale · (Σ x · matrix + low-rank summands) + bias + residual`, rounded once. All left sides have the same rows, all
/// matrices the same number of columns. The caller has asked [`multiplies`].
pub(crate) fn product(terms: &[(&Tensor, &Tensor)], low: &[LowRank], ending: Ending) -> TorchResult<Tensor> {
    let Some((x, matrix)) = terms.first() else {
        return Err(TchError::Torch("a product of nothing".to_owned()));
    };
    let (rows, out) = (x.size()[0], matrix.size()[1]);
    let mut y = Tensor::f_empty([rows, out], (Kind::BFloat16, Device::Cpu))?;
    let whole = 0..rows as usize;
    let operands = terms
        .iter()
        .map(|(left, right)| Operands::new(whole.clone(), left, right))
        .chain(low.iter().map(|low| Operands::new(low.rows.clone(), &low.left, &low.right)))
        .collect::<TorchResult<Vec<_>>>()?;
    let terms = operands.iter().map(Operands::term).collect::<TorchResult<Vec<_>>>()?;
    let bias = ending.bias.map(Tensor::f_contiguous).transpose()?;
    let residual = ending.residual.map(Tensor::f_contiguous).transpose()?;
    let finish = Finish {
        bias: bias.as_ref().map(numbers).transpose()?,
        scale: ending.scale.map(|scale| scale as f32),
        residual: residual.as_ref().map(numbers).transpose()?,
    };
    twinkle_kernels::multiply(&terms, finish, numbers_mut(&mut y)?, out as usize);
    Ok(y)
}

/// `[rows, columns]`, `scale` times the sum of parts that each add `left · right` to their own rows, rounded once. There is
/// at least one part, and the caller has asked [`multiplies`].
pub(crate) fn sum_of_parts(rows: i64, parts: &[LowRank], scale: Option<f64>) -> TorchResult<Tensor> {
    let columns = parts.first().map_or(0, |part| part.right.size()[1]);
    let mut y = Tensor::f_empty([rows, columns], (Kind::BFloat16, Device::Cpu))?;
    let operands = parts
        .iter()
        .map(|part| Operands::new(part.rows.clone(), &part.left, &part.right))
        .collect::<TorchResult<Vec<_>>>()?;
    let terms = operands.iter().map(Operands::term).collect::<TorchResult<Vec<_>>>()?;
    let finish = Finish { scale: scale.map(|scale| scale as f32), ..Finish::default() };
    twinkle_kernels::multiply(&terms, finish, numbers_mut(&mut y)?, columns as usize);
    Ok(y)
}

/// The sides of a term, contiguous.
struct Operands {
    rows: Range<usize>,
    left: Tensor,
    /// `[inner, out]`, or `[out, inner]` if transposed.
    right: Tensor,
    is_transposed: bool,
}

impl Operands {
    fn new(rows: Range<usize>, left: &Tensor, right: &Tensor) -> TorchResult<Self> {
        let left = left.f_contiguous()?;
        let turned = right.f_tr()?;
        // A weight is stored `[out, in]` and shown turned; turned back it is contiguous.
        let is_transposed = !right.is_contiguous() && turned.is_contiguous();
        let right = if is_transposed { turned } else { right.f_contiguous()? };
        Ok(Self { rows, left, right, is_transposed })
    }

    fn term(&self) -> TorchResult<Term<'_>> {
        let right = numbers(&self.right)?;
        Ok(Term {
            rows: self.rows.clone(),
            left: numbers(&self.left)?,
            right: if self.is_transposed { Right::Transposed(right) } else { Right::Plain(right) },
            inner: self.left.size()[1] as usize,
        })
    }
}

/// Adds to `sum`, segment by segment, `Σ narrowᵀ · wide` over the segment's rows. `sum` is `[n, w]` or `[w, n]`, fp32.
pub(crate) fn accumulate_outer(
    segments: &[Range<usize>],
    narrow: &Tensor,
    wide: &Tensor,
    layout: Layout,
    sum: &mut Tensor,
) -> TorchResult<()> {
    let segments: Vec<Segment> =
        segments.iter().map(|rows| Segment { rows: rows.clone(), wide: rows.start, sum: 0 }).collect();
    let (narrow, wide) = (narrow.f_contiguous()?, wide.f_contiguous()?);
    let sum = f32s_mut(sum).ok_or_else(no_slice)?;
    let sides = ((numbers(&narrow)?, narrow.size()[1] as usize), (numbers(&wide)?, wide.size()[1] as usize));
    twinkle_kernels::accumulate_outer(&segments, sides.0, sides.1, layout, &mut [sum]);
    Ok(())
}

/// Adds to each segment's part of `sums`, `[parts, n, w]` or `[parts, w, n]`, fp32, `Σ narrowᵀ · wide` over its rows.
pub(crate) fn accumulate_outers(
    segments: &[Segment],
    (narrow, wide): (&Tensor, &Tensor),
    layout: Layout,
    sums: &mut Tensor,
) -> TorchResult<()> {
    let (narrow, wide) = (narrow.f_contiguous()?, wide.f_contiguous()?);
    let sides = ((numbers(&narrow)?, narrow.size()[1] as usize), (numbers(&wide)?, wide.size()[1] as usize));
    let part = sides.0.1 * sides.1.1;
    let sums = f32s_mut(sums).ok_or_else(no_slice)?;
    let mut parts: Vec<&mut [f32]> = sums.chunks_exact_mut(part.max(1)).collect();
    twinkle_kernels::accumulate_outer(segments, sides.0, sides.1, layout, &mut parts);
    Ok(())
}

/// `ln Σ eˣ` of every row of bf16 logits.
pub(crate) fn log_sum_exp(logits: &Tensor) -> TorchResult<Vec<f32>> {
    let (rows, width) = (logits.size()[0] as usize, logits.size()[1] as usize);
    let mut result = vec![0.0; rows];
    twinkle_kernels::log_sum_exp(numbers(&logits.f_contiguous()?)?, width, &mut result);
    Ok(result)
}

/// The numbers of a contiguous tensor.
pub(crate) fn numbers(tensor: &Tensor) -> TorchResult<&[half::bf16]> {
    bf16s(tensor).ok_or_else(no_slice)
}

/// The numbers of a contiguous tensor, for writing; it must be the only alias in use.
pub(crate) fn numbers_mut(tensor: &mut Tensor) -> TorchResult<&mut [half::bf16]> {
    bf16s_mut(tensor).ok_or_else(no_slice)
}

fn no_slice() -> TchError {
    TchError::Torch("a tensor is not contiguous bf16 on the processor".to_owned())
}
