//! The engine: one thread that owns every sequence and its KV cache.
//!
//! It takes requests from a bounded channel, asks the scheduler what the next step computes, computes it, and answers
//! requests as they complete. A request whose client went away is dropped with its memory at the next step. A failure of
//! the model, even a panic, fails the requests it concerns; the engine lives on. Only a failure that costs the device ends
//! it: another engine follows, and is asked the same again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, info};
use twinkle_core::call::{SampleOutcome, StopReason};
use twinkle_core::engine::pulse::Pulse;
use twinkle_core::engine::supervisor::Ended;
use twinkle_core::engine::ticket::Ticket;
use twinkle_core::ids::TenantId;
use twinkle_core::telemetry::carried::Carried;
use twinkle_core::{Error, Result};
use twinkle_nn::Adapter;

use crate::adapters::Weights;
use crate::batch::Batch;
use crate::failure::{Failure, Lost, guarded, not_finite, stopped};
use crate::logits::{Draw, NonFinite, draw, draw_rows};
use crate::params::ValidRequest;
use crate::runner::{PromptTile, Runner};
use crate::scheduler::{Job, JobId, SampleRef, Scheduler, Start, Tile};
use crate::sequence::Request;
use crate::stats::EngineStats;
use crate::watched::{Holding, Shown};

/// What the engine is told.
pub enum Command {
    /// Sample.
    Sample(Box<Work>),
    /// Finish what is there before `deadline`, then stop.
    Drain {
        /// When to give the rest up.
        deadline: Instant,
        /// Told when the engine has stopped.
        done: oneshot::Sender<()>,
    },
}

/// One request and who waits for it.
pub struct Work {
    /// Who asked.
    pub tenant: TenantId,
    /// What was asked.
    pub request: ValidRequest,
    /// The weights to add to the base.
    pub weights: Weights,
    /// Who waits; dropping its other end aborts the request.
    pub ticket: Ticket<SampleOutcome>,
    /// Which request it belongs to, for log and trace.
    pub carried: Carried,
}

/// The engine's state; lives on its thread.
pub struct Engine<R: Runner> {
    runner: R,
    scheduler: Box<dyn Scheduler>,
    requests: BTreeMap<JobId, Request<R::Cache>>,
    next_job: JobId,
    stopping: Option<(Instant, oneshot::Sender<()>)>,
    stats: Arc<EngineStats>,
    pulse: Pulse,
    shown: Shown,
}

impl<R: Runner> Engine<R> {
    /// An engine without requests.
    #[must_use]
    pub fn new(runner: R, scheduler: Box<dyn Scheduler>, stats: Arc<EngineStats>, pulse: Pulse) -> Self {
        let shown = Shown::new(runner.base_model());
        Self { runner, scheduler, requests: BTreeMap::new(), next_job: 0, stopping: None, stats, pulse, shown }
    }

    /// Works until it is drained, the device is lost, or every sender is gone and every request is answered.
    pub fn work(mut self, commands: &mut mpsc::Receiver<Command>) -> Ended {
        let worked = self.take_turns(commands);
        self.publish_stats();
        match worked {
            Ok(()) => {
                self.stop();
                Ended::Stopped
            }
            Err(Lost(reason)) => Ended::Broken(reason),
        }
    }

    fn take_turns(&mut self, commands: &mut mpsc::Receiver<Command>) -> Result<(), Lost> {
        self.runner.probe().map_err(|error| Lost(error.message))?;
        self.pulse.working();
        loop {
            if self.requests.is_empty() {
                if self.stopping.is_some() {
                    return Ok(());
                }
                match commands.blocking_recv() {
                    Some(command) => self.take(command, commands),
                    None => return Ok(()),
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.take(command, commands);
            }
            if self.stopping.as_ref().is_some_and(|(deadline, _)| Instant::now() >= *deadline) {
                return Ok(());
            }
            self.drop_abandoned();
            self.pulse.begin("a sampling step");
            let began = Instant::now();
            self.step()?;
            Shown::stepped(began.elapsed());
            self.pulse.end();
            self.publish_stats();
        }
    }

    fn take(&mut self, command: Command, commands: &mut mpsc::Receiver<Command>) {
        match command {
            Command::Sample(work) => self.admit(*work),
            Command::Drain { deadline, done } => {
                commands.close();
                self.stopping = Some((deadline, done));
            }
        }
    }

    fn admit(&mut self, work: Work) {
        let Work { tenant, request, weights, ticket, carried } = work;
        let id = self.next_job;
        self.next_job += 1;
        let job = Job {
            id,
            tenant,
            prompt: request.prompt.len(),
            max_new_tokens: request.max_new_tokens,
            samples: request.samples,
        };
        match self.scheduler.submit(job) {
            Ok(()) => {
                self.shown.admitted(request.prompt.len());
                self.requests.insert(id, Request::new(request, weights, ticket, carried));
            }
            Err(refusal) => ticket.answer(Err(refusal)),
        }
    }

    /// Frees what belongs to clients that went away.
    fn drop_abandoned(&mut self) {
        let abandoned: Vec<JobId> =
            self.requests.iter().filter(|(_, request)| request.ticket.is_abandoned()).map(|(id, _)| *id).collect();
        for id in abandoned {
            debug!(request = id, "the client went away, its sampling request is aborted");
            self.requests.remove(&id);
            self.scheduler.abort(id);
        }
    }

    /// On an error the tickets of the requests that were computed say so.
    fn step(&mut self) -> Result<(), Lost> {
        let plan = self.scheduler.plan();
        for tile in plan.prefill {
            self.prefill(&tile)?;
        }
        for start in plan.start {
            self.start(start);
        }
        self.decode(&plan.decode)
    }

    fn prefill(&mut self, tile: &Tile) -> Result<(), Lost> {
        let Some(request) = self.requests.get_mut(&tile.job) else { return Ok(()) };
        let Request { valid, weights, findings, prompt_cache, progress, ticket, .. } = request;
        let prompt = &valid.prompt;
        let wanted = valid.wants.of_tile(prompt, &tile.rows);
        let work = PromptTile {
            tokens: prompt.get(tile.rows.clone()).unwrap_or_default(),
            scored: wanted.rows.start.saturating_sub(tile.rows.start)..wanted.rows.end.saturating_sub(tile.rows.start),
            picks: &wanted.picks,
            whole: wanted.whole,
            wants_logits: tile.rows.end == prompt.len(),
        };
        let runner = &mut self.runner;
        let cache = prompt_cache.get_or_insert_with(|| runner.empty_cache());
        progress.prefills(prompt.len());
        ticket.begin();
        let prefilled = guarded(|| {
            let mut on_row = |row: usize, logprobs: &[f32]| {
                findings.take_row(&valid.wants, wanted.rows.start + row, logprobs);
            };
            runner.prefill(work, cache, weights.adapter.as_ref(), &mut on_row)
        });
        if !matches!(prefilled, Err(Failure::Device(_))) {
            ticket.pause();
        }
        match prefilled {
            Ok(prefilled) if findings.take_picks(&valid.wants, &wanted, &prefilled.scores).is_ok() => {
                request.first_logits = prefilled.last_logits;
            }
            Ok(_) => self.fail(tile.job, None),
            Err(Failure::Requests(reason)) => self.fail(tile.job, Some(reason)),
            Err(Failure::Device(lost)) => return Err(lost),
        }
        Ok(())
    }

    /// Draws a sample's first token; the prompt's cache is copied only if there will be a second.
    fn start(&mut self, start: Start) {
        let SampleRef { job, sample } = start.sample;
        let Some(request) = self.requests.get_mut(&job) else { return };
        request.progress.decodes();
        let mut sequence = request.new_sequence();
        if request.valid.max_new_tokens == 0 {
            // Only the prompt was of interest.
            request.begin(sample, sequence);
            self.finish(start.sample, StopReason::Length);
            return;
        }
        let task = request.row_task(sample, 0, sequence.seen());
        let logits = request.first_logits.as_deref().unwrap_or_default();
        let Ok(first) = draw(logits, &task) else {
            self.fail(job, None);
            return;
        };
        self.stats.generated.fetch_add(1, Ordering::AcqRel);
        let stopped = sequence.push(first, request.valid.max_new_tokens);
        if stopped.is_none() {
            sequence.cache = if start.takes_prompt {
                request.prompt_cache.take()
            } else {
                request.prompt_cache.as_ref().map(|cache| self.runner.fork(cache))
            };
        }
        if start.takes_prompt {
            request.prompt_cache = None;
            request.first_logits = None;
        }
        request.begin(sample, sequence);
        request.tell(sample, stopped);
        if let Some(reason) = stopped {
            self.finish(start.sample, reason);
        }
    }

    fn decode(&mut self, samples: &[SampleRef]) -> Result<(), Lost> {
        let mut batch = Batch::gather(samples, &mut self.requests);
        if batch.samples.is_empty() {
            return Ok(());
        }
        self.for_each_ticket(&batch.samples, Ticket::begin);
        let vocabulary = self.runner.vocabulary();
        let mut draws = Vec::with_capacity(batch.samples.len());
        let computed = guarded(|| {
            let mut caches: Vec<&mut R::Cache> = batch.caches.iter_mut().collect();
            let adapters: Vec<Option<&Arc<Adapter>>> = batch.adapters.iter().map(Option::as_ref).collect();
            self.runner.decode(&batch.tokens, &mut caches, &adapters, &mut |first, logits| {
                let tasks = batch.tasks.get(first..).unwrap_or_default();
                let rows = (logits.len() / vocabulary.max(1)).min(tasks.len());
                draws.extend(draw_rows(logits, vocabulary, &tasks[..rows]));
            })
        });
        match computed {
            Ok(()) => {
                self.for_each_ticket(&batch.samples, Ticket::pause);
                self.stats.generated.fetch_add(draws.len() as u64, Ordering::AcqRel);
                self.scatter(batch, draws);
            }
            // The caches may be half written: everyone in this step fails, everyone else goes on.
            Err(Failure::Requests(reason)) => {
                for sample in batch.samples {
                    self.fail(sample.job, Some(reason.clone()));
                }
            }
            Err(Failure::Device(lost)) => return Err(lost),
        }
        Ok(())
    }

    fn for_each_ticket(&mut self, samples: &[SampleRef], mark: impl Fn(&mut Ticket<SampleOutcome>)) {
        for sample in samples {
            if let Some(request) = self.requests.get_mut(&sample.job) {
                mark(&mut request.ticket);
            }
        }
    }

    fn scatter(&mut self, batch: Batch<R::Cache>, draws: Vec<Result<Draw, NonFinite>>) {
        // The tasks are done with what their sequences have seen, which changes now.
        let Batch { samples, caches, tasks, .. } = batch;
        drop(tasks);
        for ((sample, cache), draw) in samples.into_iter().zip(caches).zip(draws) {
            let Some(request) = self.requests.get_mut(&sample.job) else { continue };
            let max_new_tokens = request.valid.max_new_tokens;
            let Some(sequence) = request.running(sample.sample) else { continue };
            let Ok(draw) = draw else {
                self.fail(sample.job, None);
                continue;
            };
            sequence.cache = Some(cache);
            let stopped = sequence.push(draw, max_new_tokens);
            request.tell(sample.sample, stopped);
            if let Some(reason) = stopped {
                self.finish(sample, reason);
            }
        }
    }

    fn finish(&mut self, sample: SampleRef, reason: StopReason) {
        self.scheduler.finished(sample);
        let Some(request) = self.requests.get_mut(&sample.job) else { return };
        request.complete(sample.sample, reason);
        if !request.is_done() {
            return;
        }
        if let Some(request) = self.requests.remove(&sample.job) {
            debug!(
                request = sample.job,
                prompt = request.valid.prompt.len(),
                samples = request.valid.samples,
                milliseconds = request.arrived.elapsed().as_millis() as u64,
                "sampled"
            );
            request.reply();
        }
    }

    /// Fails one request; without a reason its logits were not finite.
    fn fail(&mut self, job: JobId, reason: Option<Error>) {
        self.scheduler.abort(job);
        let Some(request) = self.requests.remove(&job) else { return };
        let reason = reason.unwrap_or_else(|| not_finite(request.adapter().is_some()));
        debug!(request = job, %reason, "a sampling request failed");
        request.ticket.answer(Err(reason));
    }

    fn publish_stats(&mut self) {
        let bytes = self.requests.values().flat_map(Request::caches).map(|cache| self.runner.cache_bytes(cache)).sum();
        let mut holding = Holding { cache_bytes: bytes, generated: self.stats.generated(), ..Holding::default() };
        for request in self.requests.values() {
            holding.waiting += request.waiting_count() as u64;
            holding.running += request.running_count() as u64;
        }
        self.stats.waiting.store(usize::try_from(holding.waiting).unwrap_or(usize::MAX), Ordering::Release);
        self.shown.holds(holding);
        self.stats.cache_bytes.store(bytes, Ordering::Release);
        self.stats.requests.store(self.requests.len(), Ordering::Release);
    }

    /// Answers what could not be finished.
    fn stop(mut self) {
        let parked = self.requests.len();
        for request in std::mem::take(&mut self.requests).into_values() {
            request.ticket.answer(Err(stopped()));
        }
        self.publish_stats();
        info!(parked, "the sampling engine has stopped");
        if let Some((_, done)) = self.stopping {
            // Nobody waits any more when the node gave up on us.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
pub(crate) mod tests;

#[cfg(test)]
#[path = "engine_stream_tests.rs"]
mod streams;

#[cfg(test)]
#[path = "engine_turns_tests.rs"]
mod turns;
