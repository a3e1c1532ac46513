//! Sampling: a request is a pure function of weights, prompt, settings and seed.

use serde::{Deserialize, Serialize};

use crate::data::TokenIds;
use crate::ids::{CheckpointPath, SamplingSessionId};

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
}

/// Which weights a sampling request reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SamplingSource {
    /// The frozen base model.
    Base,
    /// An adapter saved on disk.
    Checkpoint(CheckpointPath),
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
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOutcome {
    /// One per requested sample, in order.
    pub sequences: Vec<SampledSequence>,
    /// Per prompt token its logprob given those before; the first is `None`.
    pub prompt_logprobs: Option<Vec<Option<f32>>>,
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
}

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A stop token or string, or end-of-sequence.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
}
