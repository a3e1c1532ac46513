//! What the rows of a prompt say about tokens: the logprobs of some, and whole rows of them.
//!
//! The head is taken a tile at a time and its logits become fp32 in the same blocks as in the trainer's loss, so a logprob
//! is the same number whether it was picked here alone, among others, or read from its whole row. Every product runs in
//! padded tiles, so it does not matter either with which rows it is computed.

use std::sync::Arc;

use tch::Tensor;
use twinkle_core::{Error, Result};

use crate::decode::PREFILL_TILE;
use crate::head::{Chunk, Piece, blocks, log_softmax};
use crate::lora::{Adapter, Site};
use crate::model::BaseModel;
use crate::torch::{TorchResult, device_error, to_floats};

/// A token whose logprob after a row is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Which row.
    pub row: usize,
    /// Which token.
    pub token: u32,
}

/// Takes a row's index and the natural-log probabilities `[V]` of every token after it.
pub type RowVisitor<'a> = dyn FnMut(usize, &[f32]) + 'a;

impl BaseModel {
    /// Per pick the natural-log probability of its token after its row of a prompt's `hidden` (`[T, H]`, final-normed).
    ///
    /// `picks` are in the order of their rows; a row may have none or several. `on_row` gets every row whole, in order.
    ///
    /// # Errors
    /// A pick outside the rows or the vocabulary; whatever the device reports.
    pub fn prompt_scores(
        &self,
        hidden: &Tensor,
        picks: &[Pick],
        mut on_row: Option<&mut RowVisitor<'_>>,
        adapter: Option<&Arc<Adapter>>,
    ) -> Result<Vec<f32>> {
        let rows = self.check_picks(hidden, picks)?;
        let pair = adapter.and_then(|adapter| adapter.at(Site::Head)).map(|pair| (pair, 0));
        let mut scores = Vec::with_capacity(picks.len());
        let mut compute = || -> TorchResult<()> {
            for first in (0..rows).step_by(PREFILL_TILE as usize) {
                let count = PREFILL_TILE.min(rows - first);
                let (tile, adapter_tile) = (PREFILL_TILE, Some(PREFILL_TILE));
                let chunk = Chunk { base: self, hidden: hidden.f_narrow(0, first, count)?, tile, adapter_tile };
                let logits = chunk.logits(&mut [Piece { rows: 0..count, adapter: None, pair, shrunk: None }])?;
                for (start, count) in blocks(count) {
                    let logprobs = log_softmax(&logits.f_narrow(0, start, count)?)?;
                    let start = (first + start) as usize;
                    let rows = start..start + count as usize;
                    let wanted = picks[scores.len()..].iter().take_while(|pick| rows.contains(&pick.row));
                    scores.extend(self.picked(&logprobs, start, wanted)?);
                    if let Some(on_row) = &mut on_row {
                        let whole = to_floats(&logprobs)?;
                        for (row, logprobs) in rows.zip(whole.chunks_exact(self.config.vocab_size)) {
                            on_row(row, logprobs);
                        }
                    }
                }
            }
            Ok(())
        };
        tch::no_grad(&mut compute).map_err(device_error)?;
        Ok(scores)
    }

    /// Gathers from a block of rows, `[rows, V]`, whose first is `start`.
    fn picked<'a>(
        &self,
        logprobs: &Tensor,
        start: usize,
        picks: impl Iterator<Item = &'a Pick>,
    ) -> TorchResult<Vec<f32>> {
        let vocabulary = self.config.vocab_size;
        let places: Vec<i64> =
            picks.map(|pick| ((pick.row - start) * vocabulary + pick.token as usize) as i64).collect();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let places = Tensor::f_from_slice(&places)?.f_to_device(self.device)?;
        to_floats(&logprobs.f_view([-1])?.f_index_select(0, &places)?)
    }

    /// How many rows there are.
    fn check_picks(&self, hidden: &Tensor, picks: &[Pick]) -> Result<i64> {
        let [rows, width] = hidden.size()[..] else {
            return Err(Error::internal(format!("hidden rows of shape {:?}", hidden.size())));
        };
        let fits = |pick: &Pick| (pick.row as i64) < rows && (pick.token as usize) < self.config.vocab_size;
        if width != self.config.hidden_size as i64
            || !picks.iter().all(fits)
            || !picks.is_sorted_by_key(|pick| pick.row)
        {
            return Err(Error::internal(format!("{} picks do not fit hidden rows {:?}", picks.len(), hidden.size())));
        }
        Ok(rows)
    }
}
