//! The output head and the loss, fused: rows are taken a chunk at a time from hidden state to logprob to gradient, so
//! that no `[tokens × vocabulary]` tensor ever exists.

use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};
use twinkle_core::{Error, Result};

use crate::backward::check_gradients;
use crate::decode::PREFILL_TILE;
use crate::layers::linear::{accumulate_product, add_product, multiply_rows};
use crate::lora::{Adapter, AdapterPair, Gradients, Site};
use crate::model::BaseModel;
use crate::pack::{Pack, Span, validate_tokens};
use crate::torch::{TorchResult, device_error, to_floats};

/// From logprobs to a loss: gets a range of rows and their logprobs, fills in the loss's derivative by each logprob.
pub type LossFunction<'a> = dyn FnMut(Range<usize>, &[f32], &mut [f32]) + 'a;

/// What [`BaseModel::head_loss`] found.
#[derive(Debug)]
pub struct HeadOutcome {
    /// Per row the natural-log probability of its target.
    pub logprobs: Vec<f32>,
    /// The loss's gradient by the final-normed rows, `[T, H]` in the model's dtype; only when gradients were asked for.
    pub d_hidden: Option<Tensor>,
}

/// The rows of one sequence that lie in a chunk.
struct Piece<'a> {
    /// From the chunk's first row.
    rows: Range<i64>,
    /// The sequence's adapter on the head.
    pair: Option<(&'a AdapterPair, usize)>,
    /// `s · A h`, `[rows, r]`.
    shrunk: Option<Tensor>,
}

impl BaseModel {
    /// The logprob of `targets[t]` after each row `t` of `hidden` (`[T, H]`, final-normed), and the loss's gradient.
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
        self.check_targets(hidden, targets, pack.len())?;
        if let Some(gradients) = &gradients {
            check_gradients(adapters, gradients)?;
        }
        tch::no_grad(|| {
            let spans = pack.spans();
            let d_hidden = match &gradients {
                Some(_) => Some(Tensor::f_zeros(hidden.size(), (self.kind, self.device))?),
                None => None,
            };
            let mut logprobs = Vec::with_capacity(pack.len());
            for rows in chunks(&spans, self.row_tile as usize, adapters) {
                let (start, count) = (rows.start as i64, (rows.end - rows.start) as i64);
                let mut pieces = pieces(&spans, &rows, adapters);
                let chunk = Chunk { base: self, hidden: hidden.f_narrow(0, start, count)?, tile: self.row_tile };
                let (found, normalised) = chunk.forward(&targets[rows.clone()], &mut pieces)?;
                let mut derivatives = vec![0.0; found.len()];
                loss(rows.clone(), &found, &mut derivatives);
                logprobs.extend_from_slice(&found);
                let (Some(d_hidden), Some(gradients)) = (&d_hidden, gradients.as_deref_mut()) else {
                    continue;
                };
                if derivatives.iter().all(|derivative| *derivative == 0.0) {
                    continue;
                }
                let d_rows = d_hidden.f_narrow(0, start, count)?;
                chunk.backward(&targets[rows], normalised, &derivatives, &pieces, &d_rows, gradients)?;
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

    /// The logprob of `targets[t]` after each row `t` of a prompt's `hidden` (`[T, H]`, final-normed).
    pub fn prompt_logprobs(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        adapter: Option<&Arc<Adapter>>,
    ) -> Result<Vec<f32>> {
        self.check_targets(hidden, targets, targets.len())?;
        let pair = adapter.and_then(|adapter| adapter.at(Site::Head)).map(|pair| (pair, 0));
        tch::no_grad(|| {
            let mut logprobs = Vec::with_capacity(targets.len());
            for targets in targets.chunks(PREFILL_TILE as usize) {
                let (start, count) = (logprobs.len() as i64, targets.len() as i64);
                let chunk = Chunk { base: self, hidden: hidden.f_narrow(0, start, count)?, tile: PREFILL_TILE };
                let (found, _) = chunk.forward(targets, &mut [Piece { rows: 0..count, pair, shrunk: None }])?;
                logprobs.extend(found);
            }
            Ok(logprobs)
        })
        .map_err(device_error)
    }

    fn check_targets(&self, hidden: &Tensor, targets: &[u32], rows: usize) -> Result<()> {
        if targets.len() != rows || hidden.size() != [rows as i64, self.config.hidden_size as i64] {
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
struct Chunk<'a> {
    base: &'a BaseModel,
    /// `[rows, H]`.
    hidden: Tensor,
    tile: i64,
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
    /// The targets' logprobs, and what the backward needs.
    fn forward(&self, targets: &[u32], pieces: &mut [Piece]) -> TorchResult<(Vec<f32>, Normalised)> {
        let head = self.base.head_weight().f_tr()?;
        let logits = multiply_rows(&self.hidden, &head, None, Some(self.tile))?;
        for piece in pieces {
            let Some((pair, _)) = piece.pair else { continue };
            let count = piece.rows.end - piece.rows.start;
            let shrunk = shrink(&self.hidden.f_narrow(0, piece.rows.start, count)?, pair, None)?;
            let mut target = logits.f_narrow(0, piece.rows.start, count)?;
            add_product(&mut target, &shrunk, &pair.b.tensor().f_tr()?, None)?;
            piece.shrunk = Some(shrunk);
        }
        let targets = self.column(targets)?;
        let (mut picked, mut normalisers) = (Vec::new(), Vec::new());
        for (start, count) in blocks(logits.size()[0]) {
            let logits32 = logits.f_narrow(0, start, count)?.f_to_kind(Kind::Float)?;
            let targets = targets.f_narrow(0, start, count)?;
            let log_softmax = logits32.f_log_softmax(-1, Kind::Float)?;
            let logprobs = log_softmax.f_gather(1, &targets, false)?;
            normalisers.push(logits32.f_gather(1, &targets, false)?.f_sub(&logprobs)?);
            picked.push(logprobs);
        }
        let logprobs = to_floats(&Tensor::f_cat(&picked, 0)?.f_view([-1])?)?;
        Ok((logprobs, Normalised { logits, log_sum_exp: Tensor::f_cat(&normalisers, 0)? }))
    }

    /// Writes the gradient of the hidden rows to `d_rows` and adds those of the head's adapters to theirs.
    fn backward(
        &self,
        targets: &[u32],
        normalised: Normalised,
        derivatives: &[f32],
        pieces: &[Piece],
        d_rows: &Tensor,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<()> {
        // dL/dlogit_j = c (1[j = target] − softmax_j), rounded to the model's dtype in place of the logits.
        let c = Tensor::f_from_slice(derivatives)?.f_to_device(self.base.device)?.f_unsqueeze(1)?;
        let targets = self.column(targets)?;
        let Normalised { logits: d_logits, log_sum_exp } = normalised;
        for (start, count) in blocks(d_logits.size()[0]) {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, start, count);
            let mut block = rows(&d_logits)?.f_to_kind(Kind::Float)?.f_sub(&rows(&log_sum_exp)?)?;
            let _ = block.f_exp_()?;
            let _ = block.f_mul_(&rows(&c)?.f_neg()?)?;
            let _ = block.f_scatter_add_(1, &rows(&targets)?, &rows(&c)?)?;
            rows(&d_logits)?.f_copy_(&block)?;
        }

        let mut d_rows = d_rows.shallow_clone();
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

    fn column(&self, targets: &[u32]) -> TorchResult<Tensor> {
        let targets: Vec<i64> = targets.iter().map(|target| i64::from(*target)).collect();
        Tensor::f_from_slice(&targets)?.f_to_device(self.base.device)?.f_unsqueeze(1)
    }
}

fn blocks(rows: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..rows).step_by(BLOCK as usize).map(move |start| (start, BLOCK.min(rows - start)))
}

/// `s · A h`, `[rows, r]`.
fn shrink(hidden: &Tensor, pair: &AdapterPair, tile: Option<i64>) -> TorchResult<Tensor> {
    let mut shrunk = multiply_rows(hidden, &pair.a.tensor().f_tr()?, None, tile)?;
    let _ = shrunk.f_mul_scalar_(pair.scale)?;
    Ok(shrunk)
}

/// Row ranges of at most `limit` rows that cover the pack in order.
///
/// The gradient of a head's `B` is a sum over rows. For its bits not to depend on what else is in the pack, a sequence
/// is cut at multiples of `limit` counted from its own first row, and each piece goes into one chunk whole.
fn chunks(spans: &[Span], limit: usize, adapters: &[Arc<Adapter>]) -> Vec<Range<usize>> {
    let total = spans.last().map_or(0, |span| span.rows().end);
    let head_is_adapted = adapters.iter().any(|adapter| adapter.at(Site::Head).is_some());
    if !head_is_adapted {
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
        pieces.push(Piece { rows, pair, shrunk: None });
    }
    pieces
}
