//! The output head and the loss, fused: rows are taken a chunk at a time from hidden state to logprob to gradient, so
//! that no `[tokens × vocabulary]` tensor ever exists.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use twinkle_core::{Error, Result};
use twinkle_kernels::Layout;

use crate::backward::check_gradients;
use crate::layers::linear::{accumulate_product, add_product, forward_native, multiply_rows};
use crate::layers::native::{self, Ending, LowRank};
use crate::lora::{Adapter, AdapterPair, Gradients, Site};
use crate::model::BaseModel;
use crate::pack::{Pack, Span, validate_tokens};
use crate::torch::{TorchResult, device_error, to_floats};

/// From logprobs to a loss: gets a range of rows and their logprobs `[rows × K]`, fills in the loss's derivative by each.
pub type LossFunction<'a> = dyn FnMut(Range<usize>, &[f32], &mut [f32]) + 'a;

/// What [`BaseModel::head_loss`] found.
#[derive(Debug)]
pub struct HeadOutcome {
    /// The natural-log probability of each target, `[T × K]`.
    pub logprobs: Vec<f32>,
    /// The loss's gradient by the final-normed rows, `[T, H]` in the model's dtype; only when gradients were asked for.
    pub d_hidden: Option<Tensor>,
}

/// The rows of one sequence that lie in a chunk.
pub(crate) struct Piece<'a> {
    /// From the chunk's first row.
    pub(crate) rows: Range<i64>,
    /// The number of the sequence's adapter.
    pub(crate) adapter: Option<usize>,
    /// The sequence's adapter on the head.
    pub(crate) pair: Option<(&'a AdapterPair, usize)>,
    /// `s · A h`, `[rows, r]`.
    pub(crate) shrunk: Option<Tensor>,
}

impl BaseModel {
    /// The logprobs of each row's targets after that row of `hidden` (`[T, H]`, final-normed), and the loss's gradient.
    ///
    /// `targets` is row-major `[T × K]`: every row has the same number K of targets, at least one, and may name a token
    /// more than once.
    ///
    /// `loss` is called chunk by chunk, in order, each row once. With `gradients` (one per adapter) the head's own
    /// adapter gradients are added to them and the gradient of `hidden` is returned.
    pub fn head_loss(
        &self,
        hidden: &Tensor,
        pack: &Pack,
        adapters: &[Arc<Adapter>],
        targets: &[u32],
        loss: &mut LossFunction,
        mut gradients: Option<&mut [&mut Gradients]>,
    ) -> Result<HeadOutcome> {
        pack.validate(&self.config, adapters.len())?;
        let width = targets.len() / pack.len();
        self.check_targets(hidden, targets, (pack.len(), width))?;
        if let Some(gradients) = &gradients {
            check_gradients(adapters, gradients)?;
        }
        tch::no_grad(|| {
            let spans = pack.spans();
            let d_hidden = match &gradients {
                Some(_) => Some(Tensor::f_zeros(hidden.size(), (self.kind, self.device))?),
                None => None,
            };
            let mut logprobs = Vec::with_capacity(targets.len());
            let trains_weights = gradients.as_ref().is_some_and(|all| all.iter().any(|own| own.are_of_weights()));
            for rows in chunks(&spans, self.row_tile as usize, adapters, trains_weights) {
                let (start, count) = (rows.start as i64, (rows.end - rows.start) as i64);
                let mut pieces = pieces(&spans, &rows, adapters);
                let chunk = Chunk {
                    base: self,
                    hidden: hidden.f_narrow(0, start, count)?,
                    tile: self.row_tile,
                    adapter_tile: None,
                };
                let targets = Targets { ids: &targets[rows.start * width..rows.end * width], width };
                let (found, normalised) = chunk.forward(targets, &mut pieces)?;
                let mut derivatives = vec![0.0; found.len()];
                loss(rows, &found, &mut derivatives);
                logprobs.extend_from_slice(&found);
                let (Some(d_hidden), Some(gradients)) = (&d_hidden, gradients.as_deref_mut()) else {
                    continue;
                };
                if derivatives.iter().all(|derivative| *derivative == 0.0) {
                    continue;
                }
                let d_rows = d_hidden.f_narrow(0, start, count)?;
                chunk.backward(targets, normalised, derivatives, &pieces, &d_rows, gradients)?;
            }
            Ok(HeadOutcome { logprobs, d_hidden })
        })
        .map_err(device_error)
    }

    /// The logits of these rows (`[B, H]`, final-normed), fp32 `[B, V]`. `adapters` has one entry per row.
    pub fn logits(&self, hidden: &Tensor, adapters: &[Option<&Arc<Adapter>>]) -> Result<Tensor> {
        if hidden.size() != [adapters.len() as i64, self.config.hidden_size as i64] {
            return Err(Error::internal(format!("{} adapters for rows {:?}", adapters.len(), hidden.size())));
        }
        tch::no_grad(|| {
            let routing = self.decoding_routing(adapters)?;
            if native::multiplies(hidden) {
                let (logits, _) = forward_native(hidden, self.head_weight(), None, Site::Head, &routing)?;
                return logits.f_to_kind(Kind::Float);
            }
            let logits = multiply_rows(hidden, &self.head_weight().f_tr()?, None, Some(routing.tile))?;
            for group in &routing.groups {
                let Some(pair) = group.adapter.at(Site::Head) else { continue };
                let shrunk = shrink(&group.rows.of(hidden)?, pair, Some(routing.tile))?;
                let mut rows = group.rows.of(&logits)?;
                add_product(&mut rows, &shrunk, &pair.b.tensor().f_tr()?, Some(routing.tile))?;
                if let crate::layers::linear::Rows::List(list) = &group.rows {
                    let _ = logits.shallow_clone().f_index_copy_(0, list, &rows)?;
                }
            }
            logits.f_to_kind(Kind::Float)
        })
        .map_err(device_error)
    }

    fn check_targets(&self, hidden: &Tensor, targets: &[u32], (rows, width): (usize, usize)) -> Result<()> {
        let shape = [rows as i64, self.config.hidden_size as i64];
        if width == 0 || targets.len() != rows * width || hidden.size() != shape {
            return Err(Error::invalid(format!(
                "there are {} targets and hidden rows {:?} for {rows} tokens",
                targets.len(),
                hidden.size()
            )));
        }
        validate_tokens(targets, &self.config)
    }
}

/// At most `tile` rows on their way through the head.
pub(crate) struct Chunk<'a> {
    pub(crate) base: &'a BaseModel,
    /// `[rows, H]`.
    pub(crate) hidden: Tensor,
    pub(crate) tile: i64,
    /// Rows per tile of the products with adapters; `None`: a piece at once, which must then always be cut at the same rows.
    pub(crate) adapter_tile: Option<i64>,
}

/// The targets of a chunk's rows.
#[derive(Clone, Copy)]
struct Targets<'a> {
    /// Row-major `[rows × width]`.
    ids: &'a [u32],
    /// How many each row has.
    width: usize,
}

impl Targets<'_> {
    /// int64 `[rows, width]`.
    fn tensor(self, device: Device) -> TorchResult<Tensor> {
        let ids: Vec<i64> = self.ids.iter().map(|target| i64::from(*target)).collect();
        Tensor::f_from_slice(&ids)?.f_view([-1, self.width as i64])?.f_to_device(device)
    }

    /// Moves the derivatives of a token that a row names more than once to where it is named first, so that each
    /// column of the logits is written once and no device can add in an order of its own.
    fn merge_repeated(self, derivatives: &mut [f32]) {
        if self.width == 1 {
            return;
        }
        let mut places = HashMap::new();
        for (ids, derivatives) in self.ids.chunks(self.width).zip(derivatives.chunks_mut(self.width)) {
            places.clear();
            for (place, id) in ids.iter().enumerate() {
                let first = *places.entry(*id).or_insert(place);
                if first != place {
                    derivatives[first] += std::mem::take(&mut derivatives[place]);
                }
            }
        }
    }

    /// Per row the sum of its derivatives, in order.
    fn row_sums(self, derivatives: &[f32]) -> Vec<f32> {
        if self.width == 1 {
            return derivatives.to_vec();
        }
        let sum = |row: &[f32]| row.iter().map(|derivative| f64::from(*derivative)).sum::<f64>() as f32;
        derivatives.chunks(self.width).map(sum).collect()
    }
}

/// A chunk's logits, in the model's dtype `[rows, V]`, and what normalises them, fp32 `[rows, 1]`.
struct Normalised {
    logits: Tensor,
    log_sum_exp: Tensor,
}

/// Rows whose logits are in fp32 at the same time; few, so that they stay in the processor's cache.
const BLOCK: i64 = 16;
/// Rows whose products for the gradient of the head's `B` are summed at once.
const HEAD_GRADIENT_ROWS: i64 = 64;

impl Chunk<'_> {
    /// The rows' logits in the model's dtype, `[rows, V]`.
    pub(crate) fn logits(&self, pieces: &mut [Piece]) -> TorchResult<Tensor> {
        let head = self.base.head_weight().f_tr()?;
        if native::multiplies(&self.hidden) {
            let mut low = Vec::new();
            for piece in pieces {
                let Some((pair, _)) = piece.pair else { continue };
                let (start, count) = (piece.rows.start, piece.rows.end - piece.rows.start);
                let left = shrink(&self.hidden.f_narrow(0, start, count)?, pair, self.adapter_tile)?;
                piece.shrunk = Some(left.shallow_clone());
                let rows = start as usize..(start + count) as usize;
                low.push(LowRank { rows, left, right: pair.b.tensor().f_tr()? });
            }
            return native::product(&[(&self.hidden, &head)], &low, Ending::default());
        }
        let logits = multiply_rows(&self.hidden, &head, None, Some(self.tile))?;
        for piece in pieces {
            let Some((pair, _)) = piece.pair else { continue };
            let count = piece.rows.end - piece.rows.start;
            let shrunk = shrink(&self.hidden.f_narrow(0, piece.rows.start, count)?, pair, self.adapter_tile)?;
            let mut target = logits.f_narrow(0, piece.rows.start, count)?;
            add_product(&mut target, &shrunk, &pair.b.tensor().f_tr()?, self.adapter_tile)?;
            piece.shrunk = Some(shrunk);
        }
        Ok(logits)
    }

    /// The targets' logprobs, and what the backward needs.
    fn forward(&self, targets: Targets, pieces: &mut [Piece]) -> TorchResult<(Vec<f32>, Normalised)> {
        let logits = self.logits(pieces)?;
        if native::is_plain(&logits) {
            let log_sum_exp = native::log_sum_exp(&logits)?;
            let (numbers, vocabulary) = (native::numbers(&logits)?, logits.size()[1] as usize);
            let rows = numbers.chunks_exact(vocabulary).zip(&log_sum_exp).zip(targets.ids.chunks(targets.width));
            let logprobs = rows
                .flat_map(|((logits, lse), ids)| ids.iter().map(move |id| logits[*id as usize].to_f32() - lse))
                .collect();
            return Ok((logprobs, Normalised { log_sum_exp: Tensor::f_from_slice(&log_sum_exp)?, logits }));
        }
        let targets = targets.tensor(self.base.device)?;
        let (mut picked, mut normalisers) = (Vec::new(), Vec::new());
        for (start, count) in blocks(logits.size()[0]) {
            let logits32 = logits.f_narrow(0, start, count)?.f_to_kind(Kind::Float)?;
            let targets = targets.f_narrow(0, start, count)?;
            let log_softmax = logits32.f_log_softmax(-1, Kind::Float)?;
            let logprobs = log_softmax.f_gather(1, &targets, false)?;
            let first = logits32.f_gather(1, &targets.f_narrow(1, 0, 1)?, false)?;
            normalisers.push(first.f_sub(&logprobs.f_narrow(1, 0, 1)?)?);
            picked.push(logprobs);
        }
        let logprobs = to_floats(&Tensor::f_cat(&picked, 0)?.f_view([-1])?)?;
        Ok((logprobs, Normalised { logits, log_sum_exp: Tensor::f_cat(&normalisers, 0)? }))
    }

    /// Writes the gradient of the hidden rows to `d_rows` and adds those of the head's adapters to theirs.
    fn backward(
        &self,
        targets: Targets,
        normalised: Normalised,
        derivatives: Vec<f32>,
        pieces: &[Piece],
        d_rows: &Tensor,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<()> {
        let d_logits = self.differentiate_logits(targets, normalised, derivatives)?;
        self.add_weight_gradients(&d_logits, pieces, gradients)?;
        let mut d_rows = d_rows.shallow_clone();
        if native::multiplies(&d_logits) {
            return self.backward_native(&d_logits, pieces, &mut d_rows, gradients);
        }
        d_rows.f_copy_(&multiply_rows(&d_logits, self.base.head_weight(), None, Some(self.tile))?)?;
        for piece in pieces {
            let (Some((pair, index)), Some(shrunk)) = (piece.pair, &piece.shrunk) else { continue };
            let length = piece.rows.end - piece.rows.start;
            let rows = |tensor: &Tensor| tensor.f_narrow(0, piece.rows.start, length);
            let d_logits = rows(&d_logits)?;
            let mut d_shrunk = d_logits.f_mm(pair.b.tensor())?;
            let _ = d_shrunk.f_mul_scalar_(pair.scale)?;
            let _ = rows(&d_rows)?.f_addmm_(&d_shrunk, pair.a.tensor())?;
            let gradients = &gradients[index];
            let Some(module) = gradients.layout().module_at(Site::Head) else { continue };
            let (mut da, mut db) = gradients.module(module)?;
            accumulate_product(&mut da, &d_shrunk, &rows(&self.hidden)?)?;
            for start in (0..length).step_by(HEAD_GRADIENT_ROWS as usize) {
                let count = HEAD_GRADIENT_ROWS.min(length - start);
                accumulate_product(&mut db, &d_logits.f_narrow(0, start, count)?, &shrunk.f_narrow(0, start, count)?)?;
            }
        }
        Ok(())
    }

    /// Adds the gradient of the head's own weight, where a run trains it.
    fn add_weight_gradients(
        &self,
        d_logits: &Tensor,
        pieces: &[Piece],
        gradients: &[&mut Gradients],
    ) -> TorchResult<()> {
        for piece in pieces {
            let Some(own) = piece.adapter.and_then(|index| gradients.get(index)) else { continue };
            let Some(mut sum) = own.weight(self.base.head_weight())? else { continue };
            for start in piece.rows.clone().step_by(HEAD_GRADIENT_ROWS as usize) {
                let count = HEAD_GRADIENT_ROWS.min(piece.rows.end - start);
                let rows = |tensor: &Tensor| tensor.f_narrow(0, start, count);
                accumulate_product(&mut sum, &rows(d_logits)?, &rows(&self.hidden)?)?;
            }
        }
        Ok(())
    }

    /// The gradient of the loss by the logits, in their place and dtype:
    /// `dL/dlogit_j = Σ_k c_k (1[j = target_k] − softmax_j)`.
    fn differentiate_logits(
        &self,
        targets: Targets,
        normalised: Normalised,
        mut derivatives: Vec<f32>,
    ) -> TorchResult<Tensor> {
        let device = self.base.device;
        targets.merge_repeated(&mut derivatives);
        let sums = targets.row_sums(&derivatives);
        let Normalised { logits: mut d_logits, log_sum_exp } = normalised;
        if native::is_plain(&d_logits) {
            let (width, log_sum_exp) = (d_logits.size()[1] as usize, to_floats(&log_sum_exp)?);
            let logits = native::numbers_mut(&mut d_logits)?;
            twinkle_kernels::log_softmax_backward(logits, width, &log_sum_exp, targets.ids, &derivatives, &sums);
            return Ok(d_logits);
        }
        let c = Tensor::f_from_slice(&derivatives)?.f_view([-1, targets.width as i64])?.f_to_device(device)?;
        let c_sum = Tensor::f_from_slice(&sums)?.f_unsqueeze(1)?.f_to_device(device)?;
        let targets = targets.tensor(device)?;
        for (start, count) in blocks(d_logits.size()[0]) {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, start, count);
            let mut block = rows(&d_logits)?.f_to_kind(Kind::Float)?.f_sub(&rows(&log_sum_exp)?)?;
            let _ = block.f_exp_()?;
            let _ = block.f_mul_(&rows(&c_sum)?.f_neg()?)?;
            let _ = block.f_scatter_add_(1, &rows(&targets)?, &rows(&c)?)?;
            rows(&d_logits)?.f_copy_(&block)?;
        }
        Ok(d_logits)
    }

    /// From the logits' gradient to that of the hidden rows and of the head's adapters.
    fn backward_native(
        &self,
        d_logits: &Tensor,
        pieces: &[Piece],
        d_rows: &mut Tensor,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<()> {
        let mut low = Vec::new();
        for piece in pieces {
            let (Some((pair, index)), Some(shrunk)) = (piece.pair, &piece.shrunk) else { continue };
            let (start, count) = (piece.rows.start, piece.rows.end - piece.rows.start);
            let (d_logits, hidden) = (d_logits.f_narrow(0, start, count)?, self.hidden.f_narrow(0, start, count)?);
            let ending = Ending { scale: Some(pair.scale), ..Ending::default() };
            let d_shrunk = native::product(&[(&d_logits, pair.b.tensor())], &[], ending)?;
            let gradients = &gradients[index];
            if let Some(module) = gradients.layout().module_at(Site::Head) {
                let (mut da, mut db) = gradients.module(module)?;
                let rows = 0..count as usize;
                let rows = std::slice::from_ref(&rows);
                native::accumulate_outer(rows, &d_shrunk, &hidden, Layout::NarrowByWide, &mut da)?;
                native::accumulate_outer(rows, shrunk, &d_logits, Layout::WideByNarrow, &mut db)?;
            }
            let rows = start as usize..(start + count) as usize;
            low.push(LowRank { rows, left: d_shrunk, right: pair.a.tensor().shallow_clone() });
        }
        d_rows.f_copy_(&native::product(&[(d_logits, self.base.head_weight())], &low, Ending::default())?)
    }
}

/// The log-probabilities of whole rows of logits, fp32 `[rows, V]`: the numbers that [`BaseModel::head_loss`] picks from.
pub(crate) fn log_softmax(logits: &Tensor) -> TorchResult<Tensor> {
    let logits32 = logits.f_to_kind(Kind::Float)?;
    if native::is_plain(logits) {
        return logits32.f_sub(&Tensor::f_from_slice(&native::log_sum_exp(logits)?)?.f_unsqueeze(1)?);
    }
    logits32.f_log_softmax(-1, Kind::Float)
}

pub(crate) fn blocks(rows: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..rows).step_by(BLOCK as usize).map(move |start| (start, BLOCK.min(rows - start)))
}

/// `s · A h`, `[rows, r]`.
fn shrink(hidden: &Tensor, pair: &AdapterPair, tile: Option<i64>) -> TorchResult<Tensor> {
    if native::multiplies(hidden) {
        let ending = Ending { scale: Some(pair.scale), ..Ending::default() };
        return native::product(&[(hidden, &pair.a.tensor().f_tr()?)], &[], ending);
    }
    let mut shrunk = multiply_rows(hidden, &pair.a.tensor().f_tr()?, None, tile)?;
    let _ = shrunk.f_mul_scalar_(pair.scale)?;
    Ok(shrunk)
}

/// Row ranges of at most `limit` rows that cover the pack in order.
///
/// The gradient of a head, or of its `B`, is a sum over rows. For its bits not to depend on what else is in the pack, a sequence
/// is cut at multiples of `limit` counted from its own first row, and each piece goes into one chunk whole.
fn chunks(spans: &[Span], limit: usize, adapters: &[Arc<Adapter>], trains_weights: bool) -> Vec<Range<usize>> {
    let total = spans.last().map_or(0, |span| span.rows().end);
    let is_trained = trains_weights || adapters.iter().any(|adapter| adapter.at(Site::Head).is_some());
    if !is_trained {
        return (0..total).step_by(limit).map(|start| start..(start + limit).min(total)).collect();
    }
    let mut chunks: Vec<Range<usize>> = Vec::new();
    for span in spans {
        let rows = span.rows();
        for start in rows.clone().step_by(limit) {
            let end = (start + limit).min(rows.end);
            match chunks.last_mut() {
                Some(last) if end - last.start <= limit => last.end = end,
                _ => chunks.push(start..end),
            }
        }
    }
    chunks
}

fn pieces<'a>(spans: &[Span], chunk: &Range<usize>, adapters: &'a [Arc<Adapter>]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    for span in spans {
        let rows = span.rows();
        let (start, end) = (rows.start.max(chunk.start), rows.end.min(chunk.end));
        if start >= end {
            continue;
        }
        let pair = span.adapter.and_then(|index| Some((adapters.get(index)?.at(Site::Head)?, index)));
        let rows = (start - chunk.start) as i64..(end - chunk.start) as i64;
        pieces.push(Piece { rows, adapter: span.adapter, pair, shrunk: None });
    }
    pieces
}
