//! What the engine keeps of a request: its prompt's cache, and per sample its cache, tokens and logprobs.

use std::sync::Arc;

use tokio::time::Instant;
use twinkle_core::call::{SampleOutcome, SampledSequence, StopReason};
use twinkle_core::engine::ticket::Ticket;
use twinkle_core::telemetry::carried::Carried;
use twinkle_nn::Adapter;

use crate::logits::{Draw, Noise, RowTask};
use crate::params::ValidRequest;
use crate::stop::StopWatch;
use crate::watched::Progress;

/// A request inside the engine. Dropping it frees its caches.
pub(crate) struct Request<Cache> {
    pub(crate) valid: ValidRequest,
    /// The version it started with; a newer publication does not disturb it.
    pub(crate) adapter: Option<Arc<Adapter>>,
    pub(crate) ticket: Ticket<SampleOutcome>,
    pub(crate) progress: Progress,
    pub(crate) arrived: Instant,
    /// `None` until the first tile and after the last sample took it.
    pub(crate) prompt_cache: Option<Cache>,
    /// The logits after the prompt, from which every sample draws its first token.
    pub(crate) first_logits: Option<Vec<f32>>,
    /// Logprobs of the prompt's tokens from the second on.
    pub(crate) prompt_logprobs: Vec<f32>,
    pub(crate) samples: Vec<Sample<Cache>>,
}

/// One of a request's samples.
pub(crate) enum Sample<Cache> {
    /// Not begun.
    Waiting,
    /// Gains a token per step.
    Running(Sequence<Cache>),
    /// Complete.
    Done(SampledSequence),
}

/// A sample that runs.
pub(crate) struct Sequence<Cache> {
    /// `None` before the first decode and while a step computes with it.
    pub(crate) cache: Option<Cache>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    watch: StopWatch,
}

impl<Cache> Request<Cache> {
    pub(crate) fn new(
        valid: ValidRequest,
        adapter: Option<Arc<Adapter>>,
        ticket: Ticket<SampleOutcome>,
        carried: Carried,
    ) -> Self {
        let samples = (0..valid.samples).map(|_| Sample::Waiting).collect();
        Self {
            valid,
            adapter,
            ticket,
            progress: Progress::Waiting(carried),
            arrived: Instant::now(),
            prompt_cache: None,
            first_logits: None,
            prompt_logprobs: Vec::new(),
            samples,
        }
    }

    /// A sequence of no tokens yet.
    pub(crate) fn new_sequence(&self) -> Sequence<Cache> {
        Sequence { cache: None, tokens: Vec::new(), logprobs: Vec::new(), watch: self.valid.stop.watch() }
    }

    /// How the token after `generated` new ones is drawn in `sample`.
    pub(crate) fn row_task(&self, sample: u32, generated: usize) -> RowTask {
        let position = (self.valid.prompt.len() + generated) as u64;
        RowTask { params: self.valid.draw, noise: Noise::new(self.valid.sample_key(sample), position) }
    }

    pub(crate) fn running(&mut self, sample: u32) -> Option<&mut Sequence<Cache>> {
        match self.samples.get_mut(sample as usize)? {
            Sample::Running(sequence) => Some(sequence),
            Sample::Waiting | Sample::Done(_) => None,
        }
    }

    /// The caches it holds now.
    pub(crate) fn caches(&self) -> impl Iterator<Item = &Cache> {
        let running = self.samples.iter().filter_map(|sample| match sample {
            Sample::Running(sequence) => sequence.cache.as_ref(),
            Sample::Waiting | Sample::Done(_) => None,
        });
        running.chain(&self.prompt_cache)
    }

    /// Whether every sample is complete.
    pub(crate) fn is_done(&self) -> bool {
        self.samples.iter().all(|sample| matches!(sample, Sample::Done(_)))
    }

    /// Sends the outcome. Nobody listening any more is not an error.
    pub(crate) fn reply(self) {
        let sequences: Vec<SampledSequence> = self
            .samples
            .into_iter()
            .filter_map(|sample| match sample {
                Sample::Done(sequence) => Some(sequence),
                Sample::Waiting | Sample::Running(_) => None,
            })
            .collect();
        let prompt_logprobs = self
            .valid
            .prompt_logprobs
            .then(|| std::iter::once(None).chain(self.prompt_logprobs.into_iter().map(Some)).collect());
        self.ticket.answer(Ok(SampleOutcome { sequences, prompt_logprobs }));
    }
}

impl<Cache> Sequence<Cache> {
    /// How many tokens it has drawn.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len()
    }

    /// The token to feed next.
    pub(crate) fn last_token(&self) -> Option<u32> {
        self.tokens.last().copied()
    }

    /// Appends a drawn token; `Some` when the sequence ends with it.
    pub(crate) fn push(&mut self, draw: Draw, max_new_tokens: usize) -> Option<StopReason> {
        self.tokens.push(draw.token);
        self.logprobs.push(draw.logprob);
        if self.watch.ends_with(draw.token) {
            return Some(StopReason::Stop);
        }
        (self.tokens.len() >= max_new_tokens).then_some(StopReason::Length)
    }

    /// What the client gets.
    pub(crate) fn into_sampled(self, stop_reason: StopReason) -> SampledSequence {
        SampledSequence { tokens: self.tokens, logprobs: self.logprobs, stop_reason }
    }
}
