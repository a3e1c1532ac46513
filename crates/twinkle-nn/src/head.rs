//! The output head and the loss, fused: rows are taken a chunk at a time from hidden state to logprob to gradient, so
//! that no `[tokens × vocabulary]` tensor ever exists.

mod chunks;
mod rows;
mod targets;

use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};
use twinkle_core::{Error, Result};
use twinkle_kernels::Layout;

use crate::backward::check_gradients;
use crate::layers::linear::{accumulate_product, add_product, forward_native, multiply_rows};
use crate::layers::native::{self, Ending, LowRank};
use crate::lora::{Adapter, AdapterPair, Gradients, Site};
use crate::model::BaseModel;
use crate::pack::{Pack, validate_tokens};
use crate::torch::{TorchResult, device_error, to_floats};

use chunks::{chunks, pieces};
use rows::{ChunkRows, ChunkSlopes};
pub use rows::{HeadOptions, RowFacts, RowsFunction, Scored, Slopes};
use targets::Targets;

/// From logprobs to a loss: gets a range of rows and their logprobs `[rows × K]`, fills in the loss's derivative by each.
pub type LossFunction<'a> = dyn FnMut(Range<usize>, &[f32], &mut [f32]) + 'a;

/// What the head is asked for.
#[derive(Clone, Copy, Debug)]
pub struct HeadTask<'a> {
    /// Row-major `[T × K]`: every row has the same number K of targets, at least one, and may name a token more than once.
    pub targets: &'a [u32],
    /// How logits become probabilities, and what else is told.
    pub options: HeadOptions,
}

/// What [`BaseModel::head_loss`] found.
#[derive(Debug)]
pub struct HeadOutcome {
    /// The natural-log probability of each target, `[T × K]`.
    pub logprobs: Vec<f32>,
    /// One per row, if asked for.
    pub facts: Vec<RowFacts>,
    /// Every logit, `[T × V]`, if asked for.
    pub logits: Vec<f32>,
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
        gradients: Option<&mut [&mut Gradients]>,
    ) -> Result<HeadOutcome> {
        let task = HeadTask { targets, options: HeadOptions::default() };
        let mut by_logprob = |rows: Range<usize>, scored: Scored<'_>, slopes: Slopes<'_>| {
            loss(rows, scored.logprobs, slopes.logprobs);
        };
        self.head_rows(hidden, pack, adapters, task, &mut by_logprob, gradients)
    }

    /// The same for a loss that reads more of a row than its targets' logprobs, or others than those of the logits as they
    /// are.
    pub fn head_rows(
        &self,
        hidden: &Tensor,
        pack: &Pack,
        adapters: &[Arc<Adapter>],
        task: HeadTask<'_>,
        loss: &mut RowsFunction,
        mut gradients: Option<&mut [&mut Gradients]>,
    ) -> Result<HeadOutcome> {
        let HeadTask { targets, options } = task;
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
            let mut outcome = HeadOutcome {
                logprobs: Vec::with_capacity(targets.len()),
                facts: Vec::new(),
                logits: Vec::new(),
                d_hidden: None,
            };
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
                let mut found = chunk.forward_rows(targets, options, &mut pieces)?;
                let mut slopes = ChunkSlopes::of(&found);
                let scored = Scored { logprobs: &found.logprobs, facts: &found.facts };
                loss(rows, scored, Slopes { logprobs: &mut slopes.logprobs, facts: &mut slopes.facts });
                outcome.logprobs.extend_from_slice(&found.logprobs);
                outcome.facts.extend_from_slice(&found.facts);
                outcome.logits.append(&mut found.logits);
                let (Some(d_hidden), Some(gradients)) = (&d_hidden, gradients.as_deref_mut()) else {
                    continue;
                };
                if slopes.are_zero() {
                    continue;
                }
                let ChunkRows { facts, normalised, .. } = found;
                let d_logits = chunk.differentiate_rows(targets, options, normalised, (slopes, &facts))?;
                chunk.backward(&d_logits, &pieces, &d_hidden.f_narrow(0, start, count)?, gradients)?;
            }
            Ok(HeadOutcome { d_hidden, ..outcome })
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

    /// From the logits' gradient: writes that of the hidden rows to `d_rows` and adds those of the head's adapters to theirs.
    fn backward(
        &self,
        d_logits: &Tensor,
        pieces: &[Piece],
        d_rows: &Tensor,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<()> {
        self.add_weight_gradients(d_logits, pieces, gradients)?;
        let mut d_rows = d_rows.shallow_clone();
        if native::multiplies(d_logits) {
            return self.backward_native(d_logits, pieces, &mut d_rows, gradients);
        }
        d_rows.f_copy_(&multiply_rows(d_logits, self.base.head_weight(), None, Some(self.tile))?)?;
        for piece in pieces {
            let (Some((pair, index)), Some(shrunk)) = (piece.pair, &piece.shrunk) else { continue };
            let length = piece.rows.end - piece.rows.start;
            let rows = |tensor: &Tensor| tensor.f_narrow(0, piece.rows.start, length);
            let d_logits = rows(d_logits)?;
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
