//! What a request wants to know of its prompt, row by row, and what was found.
//!
//! Row `i` of a prompt is what the model says after its token `i`, hence about token `i + 1`. Only the rows that something
//! is wanted of go through the output head.

use std::ops::Range;
use std::sync::Arc;

use twinkle_core::call::{AltTokens, SampleOutcome, TargetLogprobs, TargetTokens, TopLogprobs};
use twinkle_nn::Pick;
use twinkle_nn::philox::Philox;

use crate::likeliest::{draws, likeliest};
use crate::logits::NonFinite;

/// What is wanted of a prompt; the default is nothing.
#[derive(Clone, Debug, Default)]
pub struct PromptWants {
    /// Whether the logprobs of its own tokens are wanted.
    pub logprobs: bool,
    /// How many of the likeliest tokens.
    pub likeliest: usize,
    /// The first row of which these two are wanted.
    pub from: usize,
    /// Given tokens to score.
    pub targets: Option<Arc<TargetTokens>>,
    /// How many tokens to draw in place of each.
    pub alternatives: usize,
    /// The temperature of those draws.
    pub temperature: f32,
    /// Their noise; samples of the same seed draw at later positions.
    pub seed: u64,
}

impl PromptWants {
    /// Whether it is anything at all.
    #[must_use]
    pub fn is_something(&self) -> bool {
        self.logprobs || self.likeliest > 0 || self.targets.is_some() || self.alternatives > 0
    }

    /// The rows that must go through the head, of a prompt of this many tokens.
    #[must_use]
    pub fn rows(&self, prompt: usize) -> Range<usize> {
        let end = prompt.saturating_sub(1);
        let mut rows = end..end;
        if self.logprobs || self.likeliest > 0 {
            rows.start = rows.start.min(self.from);
        }
        if self.alternatives > 0 {
            rows.start = 0;
        }
        if let Some(first) = self.targets.as_ref().and_then(|targets| first_row(targets)) {
            rows.start = rows.start.min(first);
        }
        rows
    }

    /// Whether these rows are wanted whole.
    fn wants_whole(&self, rows: &Range<usize>) -> bool {
        !rows.is_empty() && (self.alternatives > 0 || (self.likeliest > 0 && rows.end > self.from))
    }

    /// What is wanted of the rows of one tile.
    #[must_use]
    pub fn of_tile(&self, prompt: &[u32], tile: &Range<usize>) -> TileWants {
        let all = self.rows(prompt.len());
        let rows = tile.start.max(all.start)..tile.end.min(all.end);
        if rows.is_empty() {
            return TileWants::default();
        }
        let mut picks = Vec::new();
        for (index, row) in rows.clone().enumerate() {
            if let Some(own) = self.own(prompt, row) {
                picks.push(Pick { row: index, token: own });
            }
            let targets = self.targets.iter().filter_map(|targets| targets.cells.get(targets.layout.row(row)));
            picks.extend(targets.flatten().flatten().map(|token| Pick { row: index, token: *token }));
        }
        TileWants { whole: self.wants_whole(&rows), rows, picks }
    }

    /// The prompt's own next token, if its logprob is wanted.
    fn own(&self, prompt: &[u32], row: usize) -> Option<u32> {
        prompt.get(row + 1).copied().filter(|_| self.logprobs && row >= self.from)
    }
}

/// The first row that names a token.
fn first_row(targets: &TargetTokens) -> Option<usize> {
    let cell = targets.cells.iter().position(Option::is_some)?;
    match &targets.layout.sparse {
        None => Some(cell / targets.layout.columns.max(1)),
        Some(sparse) => sparse.row_starts.partition_point(|start| *start <= cell).checked_sub(1),
    }
}

/// What is wanted of one tile of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TileWants {
    /// Rows of the prompt.
    pub rows: Range<usize>,
    /// Tokens to score, their rows counted from the first of `rows`.
    pub picks: Vec<Pick>,
    /// Whether the rows are wanted whole.
    pub whole: bool,
}

/// What was found so far, tile by tile.
#[derive(Debug, Default)]
pub(crate) struct PromptFindings {
    logprobs: Vec<f32>,
    likeliest: Vec<Vec<(u32, f32)>>,
    /// One per cell of the targets that names a token.
    targets: Vec<f32>,
    drawn: AltTokens,
    not_finite: bool,
    room: Vec<f64>,
}

impl PromptFindings {
    /// Takes a whole row of logprobs.
    pub(crate) fn take_row(&mut self, wants: &PromptWants, row: usize, logprobs: &[f32]) {
        if !logprobs.iter().all(|logprob| logprob.is_finite()) {
            self.not_finite = true;
            return;
        }
        let with_logprob = |token: u32| (token, logprobs.get(token as usize).copied().unwrap_or_default());
        if wants.likeliest > 0 && row >= wants.from {
            self.likeliest.push(likeliest(logprobs, wants.likeliest).into_iter().map(with_logprob).collect());
        }
        if wants.alternatives > 0 {
            let noise = Philox::new(wants.seed, row as u64 + 1);
            for token in draws(logprobs, wants.temperature, wants.alternatives, noise, &mut self.room) {
                let (token, logprob) = with_logprob(token);
                self.drawn.tokens.push(token);
                self.drawn.logprobs.push(logprob);
            }
        }
    }

    /// Takes the logprobs of a tile's picks.
    ///
    /// # Errors
    /// [`NonFinite`] when one of them, or of the rows before, is no number.
    pub(crate) fn take_picks(
        &mut self,
        wants: &PromptWants,
        tile: &TileWants,
        scores: &[f32],
    ) -> Result<(), NonFinite> {
        if self.not_finite || !scores.iter().all(|score| score.is_finite()) {
            return Err(NonFinite);
        }
        // The first pick of a row is its own token, if that is wanted at all.
        let mut last = None;
        for (pick, score) in tile.picks.iter().zip(scores) {
            let is_first = last.replace(pick.row) != Some(pick.row);
            if is_first && wants.logprobs && tile.rows.start + pick.row >= wants.from {
                self.logprobs.push(*score);
            } else {
                self.targets.push(*score);
            }
        }
        Ok(())
    }

    /// Writes everything into the outcome of a request with a prompt of this many tokens.
    pub(crate) fn tell(self, wants: &PromptWants, prompt: usize, outcome: &mut SampleOutcome) {
        // Nothing is known of the first token and of those before the rows that were wanted.
        let unknown = prompt.min(wants.from + 1);
        if wants.logprobs {
            let known = self.logprobs.into_iter().map(Some);
            outcome.prompt_logprobs = Some(std::iter::repeat_n(None, unknown).chain(known).collect());
        }
        if wants.likeliest > 0 {
            let unknown = std::iter::repeat_n(Vec::new(), unknown);
            let rows = unknown.chain(self.likeliest).collect();
            outcome.topk_prompt_logprobs = Some(TopLogprobs { k: wants.likeliest, rows });
        }
        if let Some(targets) = &wants.targets {
            let mut scores = self.targets.into_iter();
            let logprobs = targets.cells.iter().map(|cell| cell.and_then(|_| scores.next()).unwrap_or(0.0)).collect();
            outcome.target_prompt_logprobs = Some(TargetLogprobs { layout: targets.layout.clone(), logprobs });
        }
        if wants.alternatives > 0 {
            outcome.prompt_alt_tokens = Some(AltTokens { k: wants.alternatives, ..self.drawn });
        }
    }
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
