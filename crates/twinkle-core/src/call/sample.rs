//! Sampling: a request is a pure function of weights, prompt, settings and seed.

use std::ops::Range;

use serde::{Deserialize, Serialize};

#[cfg(feature = "node")]
use super::stream::TokenSender;
use crate::data::TokenIds;
use crate::ids::{CheckpointPath, SamplingSessionId, TenantId};

/// A sampling request whose shape has been checked; the engine checks it against the model.
#[derive(Clone, Debug)]
pub struct SampleRequest {
    /// Which weights.
    pub source: SamplingSource,
    /// The prompt, never empty.
    pub prompt: TokenIds,
    /// How many independent continuations.
    pub num_samples: u32,
    /// How to draw.
    pub params: SamplingParams,
    /// Whether the logprob of every prompt token is wanted.
    pub prompt_logprobs: bool,
    /// What else is wanted.
    pub extras: SampleExtras,
    /// How tokens that are already there are held back.
    pub penalties: Penalties,
    /// What is added to the logits of these tokens before anything else, each named once.
    pub logit_bias: Vec<(u32, f32)>,
    /// Which numbers stand beside new tokens; `None`: what the sampler's `logprobs_mode` says.
    pub logprobs: Option<LogprobsMode>,
    /// Is told every new token as it is drawn.
    #[cfg(feature = "node")]
    pub stream: Option<TokenSender>,
}

impl SampleRequest {
    /// One continuation of `prompt`, of which nothing is wanted beside tokens and their logprobs.
    #[must_use]
    pub fn new(source: SamplingSource, prompt: TokenIds, params: SamplingParams) -> Self {
        Self {
            source,
            prompt,
            num_samples: 1,
            params,
            prompt_logprobs: false,
            extras: SampleExtras::default(),
            penalties: Penalties::default(),
            logit_bias: Vec::new(),
            logprobs: None,
            #[cfg(feature = "node")]
            stream: None,
        }
    }
}

/// How tokens that are already there are held back; the default does nothing.
///
/// The order is vLLM's: repetition, then frequency and presence, all before the temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides positive and multiplies negative logits of every token of the prompt and the answer (Keskar et al. 2019);
    /// 1 does nothing.
    pub repetition: f32,
    /// Taken from the logit of every token of the answer, once for each time it is there; 0 does nothing.
    pub frequency: f32,
    /// Taken once from the logit of every token of the answer; 0 does nothing.
    pub presence: f32,
}

impl Default for Penalties {
    fn default() -> Self {
        Self { repetition: 1.0, frequency: 0.0, presence: 0.0 }
    }
}

/// Which numbers stand beside new tokens and their likeliest neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogprobsMode {
    /// Of `softmax(logits / temperature)` after penalties. Top-k and top-p are not counted: these are the numbers that
    /// training computes again. Without temperature where the draw is greedy.
    #[default]
    Processed,
    /// Of `softmax(logits)`: the model's own, whatever the temperature.
    Raw,
    /// The logits after penalties and temperature.
    ProcessedLogits,
    /// The model's own logits.
    RawLogits,
}

impl LogprobsMode {
    /// Whether the numbers are logits.
    #[must_use]
    pub const fn is_logits(self) -> bool {
        matches!(self, Self::ProcessedLogits | Self::RawLogits)
    }
}

/// What may be wanted beside tokens and their logprobs; the default wants nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleExtras {
    /// Logprobs and likeliest tokens of this many prompt tokens from the end only; `None`: of all.
    pub prompt_logprobs_last_n: Option<u32>,
    /// How many of the likeliest tokens of each prompt position.
    pub topk_prompt_logprobs: u32,
    /// How many of the likeliest tokens of each new token.
    pub topk_sample_logprobs: u32,
    /// Tokens to score in place of the prompt's own.
    pub target_prompt_logprobs: Option<TargetTokens>,
    /// How many tokens to draw in place of each prompt token.
    pub prompt_alt_tokens_k: u32,
}

/// Token ids to score at prompt positions: row `i` is about the prompt's token `i + 1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetTokens {
    /// Where the cells lie.
    pub layout: CellLayout,
    /// Row by row; `None` is skipped.
    pub cells: Vec<Option<u32>>,
}

/// How the cells of a `[rows, columns]` matrix are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellLayout {
    /// Rows, also those without a cell.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Where the listed cells belong; `None` when every cell is listed.
    pub sparse: Option<SparseLayout>,
}

/// Compressed sparse rows. Made by the wire's reader, hence consistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseLayout {
    /// Where each row begins among the listed cells, and where the last one ends.
    pub row_starts: Vec<usize>,
    /// The column of each listed cell.
    pub columns: Vec<usize>,
}

impl CellLayout {
    /// The places of a row among the listed cells.
    #[must_use]
    pub fn row(&self, row: usize) -> Range<usize> {
        match &self.sparse {
            None => row * self.columns..(row + 1) * self.columns,
            Some(sparse) => {
                let at = |row: usize| sparse.row_starts.get(row).copied().unwrap_or(sparse.columns.len());
                at(row)..at(row + 1)
            }
        }
    }
}

/// Which weights a sampling request reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SamplingSource {
    /// The frozen base model.
    Base,
    /// An adapter saved on disk.
    Checkpoint(CheckpointPath),
    /// An adapter that another tenant saved and made public.
    Shared {
        /// Whose it is.
        owner: TenantId,
        /// Where it is.
        path: CheckpointPath,
    },
    /// An adapter a run published without a disk.
    Live(SamplingSessionId),
}

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Most new tokens per sample; `None`: until the context is full.
    pub max_tokens: Option<u32>,
    /// Same seed and request, same tokens, whatever else runs. `None`: drawn by the server.
    pub seed: Option<u64>,
    /// When to stop before `max_tokens`.
    pub stop: Stop,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `k` most likely tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
}

impl SamplingParams {
    /// The most likely token each time, until the model ends or `max_tokens` are there.
    #[must_use]
    pub const fn greedy(max_tokens: u32) -> Self {
        Self {
            max_tokens: Some(max_tokens),
            seed: None,
            stop: Stop::EndOfSequence,
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
        }
    }
}

/// When a sample ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At the model's end-of-sequence tokens.
    EndOfSequence,
    /// Never before `max_tokens`.
    Never,
    /// At any of these texts, or end-of-sequence.
    Strings(Vec<String>),
    /// At any of these tokens, or end-of-sequence.
    Tokens(Vec<u32>),
}

/// The continuations of one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleOutcome {
    /// One per requested sample, in order.
    pub sequences: Vec<SampledSequence>,
    /// Per prompt token its logprob given those before; `None` for the first, and for those that were not asked for.
    pub prompt_logprobs: Option<Vec<Option<f32>>>,
    /// Per prompt token the likeliest tokens in its place.
    pub topk_prompt_logprobs: Option<TopLogprobs>,
    /// The logprobs of the tokens that were asked for.
    pub target_prompt_logprobs: Option<TargetLogprobs>,
    /// Tokens drawn in place of the prompt's own.
    pub prompt_alt_tokens: Option<AltTokens>,
}

impl SampleOutcome {
    /// About how many numbers it holds, of four bytes each.
    #[must_use]
    pub fn numbers(&self) -> usize {
        let top = |top: &Option<TopLogprobs>| top.as_ref().map_or(0, TopLogprobs::numbers);
        let sequences: usize =
            self.sequences.iter().map(|sequence| 16 + 2 * sequence.tokens.len() + top(&sequence.topk_logprobs)).sum();
        let prompt = 2 * self.prompt_logprobs.as_ref().map_or(0, Vec::len);
        let targets = self.target_prompt_logprobs.as_ref().map_or(0, |targets| 5 * targets.logprobs.len());
        let alternatives = self.prompt_alt_tokens.as_ref().map_or(0, |drawn| 2 * drawn.tokens.len());
        sequences + prompt + top(&self.topk_prompt_logprobs) + targets + alternatives
    }
}

/// One continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledSequence {
    /// The new tokens, with the stop token or the tokens that completed a stop string.
    pub tokens: TokenIds,
    /// Per token its logprob under the distribution `softmax(logits / temperature)`.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Per token the likeliest ones in its place, under the same distribution.
    pub topk_logprobs: Option<TopLogprobs>,
    /// The weights that produced all of its tokens: a sequence keeps those it began with.
    pub weights: WeightVersion,
}

impl SampledSequence {
    /// A continuation of the base model with nothing that must be asked for.
    #[must_use]
    pub fn new(tokens: TokenIds, logprobs: Vec<f32>, stop_reason: StopReason) -> Self {
        Self { tokens, logprobs, stop_reason, topk_logprobs: None, weights: WeightVersion::default() }
    }
}

/// The likeliest tokens of each position, the likeliest first and the lower id among equals.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopLogprobs {
    /// How many were asked for.
    pub k: usize,
    /// Per position at most `k`; none where nothing was computed.
    pub rows: Vec<Vec<(u32, f32)>>,
}

impl TopLogprobs {
    fn numbers(&self) -> usize {
        self.rows.iter().map(|row| 6 + 2 * row.len()).sum()
    }
}

/// The logprobs of [`TargetTokens`], in their layout.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetLogprobs {
    /// Where the cells lie.
    pub layout: CellLayout,
    /// Row by row; 0 in skipped cells.
    pub logprobs: Vec<f32>,
}

/// Tokens drawn, with replacement, in place of each prompt token but the first; row-major `[prompt − 1, k]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AltTokens {
    /// How many per position.
    pub k: usize,
    /// Their ids.
    pub tokens: TokenIds,
    /// Their unscaled logprobs.
    pub logprobs: Vec<f32>,
}

/// Which weights produced a token; the default is the base model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WeightVersion {
    /// The first 16 hex digits of the SHA-256 of the adapter's fp32 parameters; `None` for the base model.
    pub adapter: Option<String>,
    /// The number, within its run, of the operation that saved or published the adapter.
    pub operation: Option<u64>,
    /// How many optimizer steps its run had taken; unknown of checkpoints of earlier versions.
    pub optimizer_steps: Option<u64>,
}

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A stop token or string, or end-of-sequence.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
}
