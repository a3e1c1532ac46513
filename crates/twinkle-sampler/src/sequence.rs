//! What the engine keeps of a request: its prompt's cache, what was found of its prompt, and per sample that has begun its
//! cache, tokens and logprobs.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;
use twinkle_core::call::{DrawnToken, SampleOutcome, SampledSequence, StopReason, TopLogprobs, WeightVersion};
use twinkle_core::engine::ticket::Ticket;
use twinkle_core::telemetry::carried::Carried;
use twinkle_nn::Adapter;

use crate::adapters::Weights;
use crate::logits::{Draw, Noise, RowTask};
use crate::params::ValidRequest;
use crate::penalties::Seen;
use crate::prompt::PromptFindings;
use crate::stop::StopWatch;
use crate::watched::Progress;

/// A request inside the engine. Dropping it frees its caches.
pub(crate) struct Request<Cache> {
    pub(crate) valid: ValidRequest,
    /// The version it started with; a newer publication does not disturb it.
    pub(crate) weights: Weights,
    pub(crate) ticket: Ticket<SampleOutcome>,
    pub(crate) progress: Progress,
    pub(crate) arrived: Instant,
    /// `None` until the first tile and after the last sample took it.
    pub(crate) prompt_cache: Option<Cache>,
    /// The logits after the prompt, from which every sample draws its first token.
    pub(crate) first_logits: Option<Vec<f32>>,
    /// What was found of the prompt so far.
    pub(crate) findings: PromptFindings,
    /// Samples that gain a token per step. Those in neither map have not begun and take no memory.
    running: BTreeMap<u32, Sequence<Cache>>,
    /// Samples that are complete.
    done: BTreeMap<u32, SampledSequence>,
}

/// A sample that runs.
pub(crate) struct Sequence<Cache> {
    /// `None` before the first decode and while a step computes with it.
    pub(crate) cache: Option<Cache>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    likeliest: Vec<Vec<(u32, f32)>>,
    watch: StopWatch,
    /// The tokens that are held back from now on.
    seen: Option<Arc<Seen>>,
}

impl<Cache> Request<Cache> {
    pub(crate) fn new(valid: ValidRequest, weights: Weights, ticket: Ticket<SampleOutcome>, carried: Carried) -> Self {
        Self {
            valid,
            weights,
            ticket,
            progress: Progress::Waiting(carried),
            arrived: Instant::now(),
            prompt_cache: None,
            first_logits: None,
            findings: PromptFindings::default(),
            running: BTreeMap::new(),
            done: BTreeMap::new(),
        }
    }

    /// The adapter it reads.
    pub(crate) fn adapter(&self) -> Option<&Arc<Adapter>> {
        self.weights.adapter.as_ref()
    }

    /// A sequence of no tokens yet.
    pub(crate) fn new_sequence(&self) -> Sequence<Cache> {
        let (watch, seen) = (self.valid.stop.watch(), self.valid.seen.clone());
        Sequence { cache: None, tokens: Vec::new(), logprobs: Vec::new(), likeliest: Vec::new(), watch, seen }
    }

    /// How the token after `generated` new ones is drawn in `sample`, which has seen these.
    pub(crate) fn row_task(&self, sample: u32, generated: usize, seen: Option<Arc<Seen>>) -> RowTask {
        let position = (self.valid.prompt.len() + generated) as u64;
        let noise = Noise::new(self.valid.sample_key(sample), position);
        let ValidRequest { draw, top, numbers, .. } = self.valid;
        RowTask { params: draw, noise, top, bias: self.valid.bias.clone(), seen, numbers }
    }

    /// A sample begins.
    pub(crate) fn begin(&mut self, sample: u32, sequence: Sequence<Cache>) {
        self.running.insert(sample, sequence);
    }

    pub(crate) fn running(&mut self, sample: u32) -> Option<&mut Sequence<Cache>> {
        self.running.get_mut(&sample)
    }

    /// Tells who listens of the newest token of a running sample.
    pub(crate) fn tell(&self, sample: u32, ends: Option<StopReason>) {
        let Some(stream) = &self.valid.stream else { return };
        if let Some(drawn) = self.running.get(&sample).and_then(|sequence| sequence.newest(sample, ends)) {
            stream.tell(drawn);
        }
    }

    /// A sample that ran is complete.
    pub(crate) fn complete(&mut self, sample: u32, reason: StopReason) {
        if let Some(sequence) = self.running.remove(&sample) {
            self.done.insert(sample, sequence.into_sampled(reason, self.valid.top, &self.weights.version));
        }
    }

    /// How many samples run.
    pub(crate) fn running_count(&self) -> usize {
        self.running.len()
    }

    /// How many samples have not begun.
    pub(crate) fn waiting_count(&self) -> usize {
        self.valid.samples as usize - self.running.len() - self.done.len()
    }

    /// The caches it holds now.
    pub(crate) fn caches(&self) -> impl Iterator<Item = &Cache> {
        self.running.values().filter_map(|sequence| sequence.cache.as_ref()).chain(&self.prompt_cache)
    }

    /// Whether every sample is complete.
    pub(crate) fn is_done(&self) -> bool {
        self.done.len() == self.valid.samples as usize
    }

    /// Sends the outcome. Nobody listening any more is not an error.
    pub(crate) fn reply(self) {
        let mut outcome = SampleOutcome { sequences: self.done.into_values().collect(), ..SampleOutcome::default() };
        self.findings.tell(&self.valid.wants, self.valid.prompt.len(), &mut outcome);
        self.ticket.answer(Ok(outcome));
    }
}

impl<Cache> Sequence<Cache> {
    /// How many tokens it has drawn.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len()
    }

    /// What it drew last.
    fn newest(&self, sample: u32, ends: Option<StopReason>) -> Option<DrawnToken> {
        let (token, logprob) = (*self.tokens.last()?, *self.logprobs.last()?);
        let likeliest = self.likeliest.last().cloned().unwrap_or_default();
        Some(DrawnToken { sample, place: self.tokens.len() - 1, token, logprob, likeliest, ends })
    }

    /// The tokens that are held back from the next one.
    pub(crate) fn seen(&self) -> Option<Arc<Seen>> {
        self.seen.clone()
    }

    /// The token to feed next.
    pub(crate) fn last_token(&self) -> Option<u32> {
        self.tokens.last().copied()
    }

    /// Appends a drawn token; `Some` when the sequence ends with it.
    pub(crate) fn push(&mut self, draw: Draw, max_new_tokens: usize) -> Option<StopReason> {
        self.tokens.push(draw.token);
        self.logprobs.push(draw.logprob);
        if let Some(seen) = &mut self.seen {
            Arc::make_mut(seen).drew(draw.token);
        }
        if !draw.likeliest.is_empty() {
            self.likeliest.push(draw.likeliest);
        }
        if self.watch.ends_with(draw.token) {
            return Some(StopReason::Stop);
        }
        (self.tokens.len() >= max_new_tokens).then_some(StopReason::Length)
    }

    /// What the client gets, with the `top` likeliest tokens of each new one.
    fn into_sampled(self, stop_reason: StopReason, top: usize, weights: &WeightVersion) -> SampledSequence {
        SampledSequence {
            tokens: self.tokens,
            logprobs: self.logprobs,
            stop_reason,
            topk_logprobs: (top > 0).then_some(TopLogprobs { k: top, rows: self.likeliest }),
            weights: weights.clone(),
        }
    }
}
