//! What a step computes. Pure: it never touches the device, a clock or a token, so property tests can hammer it.
//!
//! [`Scheduler`] is the seam for the paged engine. [`FairScheduler`] serves an engine whose sequences own their KV cache
//! outright and therefore cannot be preempted:
//!
//! * A request is admitted only when the KV rows of its prompt and of one whole sample are free. They stay reserved until
//!   the request is done, so every admitted request can finish and nothing deadlocks.
//! * The samples of a request share one prefill. Further samples run at the same time when rows and seats are free.
//! * Tenants take turns, for seats and for prefill tiles, as in deficit round-robin (Shreedhar & Varghese 1995) with
//!   a quantum of one sample and one tile; within a tenant it is first come, first served. A request that does not fit is
//!   waited for, never overtaken: nothing starves.
//! * A step computes one token of every running sample, then prompt tiles up to the token budget, at least one tile.
//!   Tiles start at multiples of their size whatever the load, so a prompt's bits do not depend on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use twinkle_core::ids::TenantId;
use twinkle_core::{Error, ErrorCode, Result};

/// Names a request inside the engine; later ones are larger.
pub type JobId = u64;

/// What the scheduler needs to know of a request.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name, larger than all before.
    pub id: JobId,
    /// Who asked.
    pub tenant: TenantId,
    /// Tokens of the prompt, at least 1.
    pub prompt: usize,
    /// Most new tokens per sample; 0 when only the prompt is of interest.
    pub max_new_tokens: usize,
    /// Samples, at least 1.
    pub samples: u32,
}

/// One sample of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleRef {
    /// The request.
    pub job: JobId,
    /// Which of its samples, from 0.
    pub sample: u32,
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// The request.
    pub job: JobId,
    /// Its rows; the start is a multiple of the tile size.
    pub rows: Range<usize>,
}

/// A sample whose first token is drawn from the prompt's last logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Which.
    pub sample: SampleRef,
    /// Whether it is the request's last and takes the prompt's cache over; others copy it.
    pub takes_prompt: bool,
}

/// What one step computes, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Prompt tiles; a request's tiles are in order.
    pub prefill: Vec<Tile>,
    /// Samples that begin; their prompts are complete after `prefill`.
    pub start: Vec<Start>,
    /// Running samples, one token each; those of `start` begin with the next step.
    pub decode: Vec<SampleRef>,
}

impl Plan {
    /// Whether there is nothing to compute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.prefill.is_empty() && self.start.is_empty() && self.decode.is_empty()
    }
}

/// Decides what each step computes.
pub trait Scheduler: Send {
    /// Takes a request in.
    ///
    /// # Errors
    /// `InvalidArgument` when it could never run, `Overloaded` when too many wait.
    fn submit(&mut self, job: Job) -> Result<()>;

    /// The next step. Tiles and starts count as done; samples run until [`Scheduler::finished`].
    fn plan(&mut self) -> Plan;

    /// A sample has ended. Unknown ones are ignored.
    fn finished(&mut self, sample: SampleRef);

    /// The request is given up; everything it held is free. Unknown ones are ignored.
    fn abort(&mut self, job: JobId);

    /// Requests that wait or run.
    fn len(&self) -> usize;

    /// Whether no request waits or runs.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The limits of a [`FairScheduler`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Most samples that run at once.
    pub seats: usize,
    /// KV rows (tokens) of all caches together.
    pub kv_tokens: usize,
    /// What a cache takes however few tokens it holds, in KV rows: the memories of linear attention.
    pub sequence_tokens: usize,
    /// Tokens of one step.
    pub step_tokens: usize,
    /// Prompt tokens per tile.
    pub tile: usize,
    /// Most requests that wait for admission.
    pub waiting: usize,
}

/// Admission by reservation, turns by tenant. See the module's text.
#[derive(Debug)]
pub struct FairScheduler {
    limits: SchedulerLimits,
    free_seats: usize,
    free_tokens: usize,
    /// Not admitted; per tenant in order of arrival.
    waiting: BTreeMap<TenantId, VecDeque<Job>>,
    waiting_count: usize,
    admitted: BTreeMap<JobId, Admitted>,
    /// Tenants with a job, in turn for seats and for tiles.
    seat_turns: Turns,
    tile_turns: Turns,
}

/// A request that holds memory.
#[derive(Debug)]
struct Admitted {
    job: Job,
    /// Prompt rows computed.
    prefilled: usize,
    /// The next sample to start.
    next_sample: u32,
    /// Samples that run.
    running: BTreeSet<u32>,
    /// Reserved places for samples; at least 1, at least as many as run.
    lanes: usize,
    /// Whether the prompt's own cache is held beside the lanes, to be copied.
    holds_prompt: bool,
    /// [`SchedulerLimits::sequence_tokens`].
    sequence_tokens: usize,
}

impl Admitted {
    fn lane_tokens(&self) -> usize {
        self.job.prompt + self.job.max_new_tokens + self.sequence_tokens
    }

    fn prompt_tokens(&self) -> usize {
        self.job.prompt + self.sequence_tokens
    }

    fn tokens(&self) -> usize {
        self.lanes * self.lane_tokens() + if self.holds_prompt { self.prompt_tokens() } else { 0 }
    }

    fn is_prefilled(&self) -> bool {
        self.prefilled == self.job.prompt
    }

    fn has_pending_samples(&self) -> bool {
        self.next_sample < self.job.samples
    }

    /// Whether it would use one more lane now.
    fn wants_lane(&self) -> bool {
        let pending = (self.job.samples - self.next_sample) as usize;
        self.is_prefilled() && self.lanes - self.running.len() < pending
    }
}

impl FairScheduler {
    /// A scheduler without requests.
    #[must_use]
    pub fn new(limits: SchedulerLimits) -> Self {
        Self {
            free_seats: limits.seats,
            free_tokens: limits.kv_tokens,
            limits,
            waiting: BTreeMap::new(),
            waiting_count: 0,
            admitted: BTreeMap::new(),
            seat_turns: Turns::default(),
            tile_turns: Turns::default(),
        }
    }

    /// KV rows that no request holds.
    #[must_use]
    pub fn free_tokens(&self) -> usize {
        self.free_tokens
    }

    /// Gives seats and memory away in turn until the next one does not fit.
    fn grant_seats(&mut self) {
        loop {
            let (admitted, waiting) = (&self.admitted, &self.waiting);
            let sequence_tokens = self.limits.sequence_tokens;
            let claim = self.seat_turns.first(|tenant| claim_of(tenant, admitted, waiting, sequence_tokens));
            let Some((tenant, claim)) = claim else { return };
            if self.free_seats == 0 || self.free_tokens < claim.tokens() {
                return;
            }
            self.free_seats -= 1;
            self.free_tokens -= claim.tokens();
            match claim {
                Claim::Lane { job, .. } => {
                    if let Some(admitted) = self.admitted.get_mut(&job) {
                        admitted.lanes += 1;
                    }
                }
                Claim::Admission { .. } => self.admit(&tenant),
            }
            self.seat_turns.move_to_back(&tenant);
        }
    }

    fn admit(&mut self, tenant: &TenantId) {
        let Some(line) = self.waiting.get_mut(tenant) else { return };
        let Some(job) = line.pop_front() else { return };
        if line.is_empty() {
            self.waiting.remove(tenant);
        }
        self.waiting_count -= 1;
        let holds_prompt = job.samples > 1;
        let admitted = Admitted {
            prefilled: 0,
            next_sample: 0,
            running: BTreeSet::new(),
            lanes: 1,
            holds_prompt,
            sequence_tokens: self.limits.sequence_tokens,
            job,
        };
        self.admitted.insert(admitted.job.id, admitted);
    }

    /// Prompt tiles in turn, at least one so that a full house does not stop new prompts.
    fn plan_prefill(&mut self, decoding: usize) -> Vec<Tile> {
        let budget = self.limits.step_tokens.saturating_sub(decoding).max(self.limits.tile);
        let mut tiles = Vec::new();
        for _ in 0..budget / self.limits.tile {
            let admitted = &self.admitted;
            let next = self.tile_turns.first(|tenant| {
                let mut jobs = admitted.values().filter(|job| job.job.tenant == *tenant);
                jobs.find(|job| !job.is_prefilled()).map(|job| job.job.id)
            });
            let Some((tenant, job)) = next else { break };
            self.tile_turns.move_to_back(&tenant);
            let Some(admitted) = self.admitted.get_mut(&job) else { break };
            let start = admitted.prefilled;
            admitted.prefilled = (start + self.limits.tile).min(admitted.job.prompt);
            tiles.push(Tile { job, rows: start..admitted.prefilled });
        }
        tiles
    }

    /// Fills every lane that has a sample to run.
    fn plan_starts(&mut self) -> Vec<Start> {
        let mut starts = Vec::new();
        for (id, admitted) in &mut self.admitted {
            if !admitted.is_prefilled() {
                continue;
            }
            while admitted.running.len() < admitted.lanes && admitted.has_pending_samples() {
                let sample = admitted.next_sample;
                admitted.next_sample += 1;
                admitted.running.insert(sample);
                let takes_prompt = !admitted.has_pending_samples();
                if takes_prompt && admitted.holds_prompt {
                    admitted.holds_prompt = false;
                    self.free_tokens += admitted.prompt_tokens();
                }
                starts.push(Start { sample: SampleRef { job: *id, sample }, takes_prompt });
            }
        }
        starts
    }

    fn leave_turns_if_idle(&mut self, tenant: &TenantId) {
        let waits = self.waiting.contains_key(tenant);
        if waits || self.admitted.values().any(|admitted| admitted.job.tenant == *tenant) {
            return;
        }
        self.seat_turns.leave(tenant);
        self.tile_turns.leave(tenant);
    }

    fn release(&mut self, admitted: &Admitted) {
        self.free_seats += admitted.lanes;
        self.free_tokens += admitted.tokens();
        self.leave_turns_if_idle(&admitted.job.tenant);
    }
}

/// What a tenant would do with a seat.
enum Claim {
    /// Another sample of a running request.
    Lane { job: JobId, tokens: usize },
    /// Its oldest waiting request.
    Admission { tokens: usize },
}

impl Claim {
    fn tokens(&self) -> usize {
        match self {
            Self::Lane { tokens, .. } | Self::Admission { tokens } => *tokens,
        }
    }
}

fn claim_of(
    tenant: &TenantId,
    admitted: &BTreeMap<JobId, Admitted>,
    waiting: &BTreeMap<TenantId, VecDeque<Job>>,
    sequence_tokens: usize,
) -> Option<Claim> {
    let mut running = admitted.values().filter(|admitted| admitted.job.tenant == *tenant);
    if let Some(eager) = running.find(|admitted| admitted.wants_lane()) {
        return Some(Claim::Lane { job: eager.job.id, tokens: eager.lane_tokens() });
    }
    waiting.get(tenant)?.front().map(|job| Claim::Admission { tokens: admission_tokens(job, sequence_tokens) })
}

/// One whole sample, and the prompt's cache while there are more to copy from it.
fn admission_tokens(job: &Job, sequence_tokens: usize) -> usize {
    let shared = if job.samples > 1 { job.prompt + sequence_tokens } else { 0 };
    job.prompt + job.max_new_tokens + sequence_tokens + shared
}

impl Scheduler for FairScheduler {
    fn submit(&mut self, job: Job) -> Result<()> {
        let needed = admission_tokens(&job, self.limits.sequence_tokens);
        if needed > self.limits.kv_tokens {
            return Err(Error::invalid(format!(
                "the request needs {needed} tokens of KV memory, the engine has {}",
                self.limits.kv_tokens
            ))
            .hint("send a shorter prompt or a smaller `max_tokens`"));
        }
        if self.waiting_count >= self.limits.waiting {
            return Err(Error::new(ErrorCode::Overloaded, "too many sampling requests are waiting")
                .retry_after(std::time::Duration::from_secs(1)));
        }
        self.seat_turns.join(&job.tenant);
        self.tile_turns.join(&job.tenant);
        self.waiting_count += 1;
        self.waiting.entry(job.tenant.clone()).or_default().push_back(job);
        Ok(())
    }

    fn plan(&mut self) -> Plan {
        let decode: Vec<SampleRef> = self
            .admitted
            .iter()
            .flat_map(|(job, admitted)| admitted.running.iter().map(|sample| SampleRef { job: *job, sample: *sample }))
            .collect();
        self.grant_seats();
        let prefill = self.plan_prefill(decode.len());
        let start = self.plan_starts();
        Plan { prefill, start, decode }
    }

    fn finished(&mut self, sample: SampleRef) {
        let Some(admitted) = self.admitted.get_mut(&sample.job) else { return };
        if !admitted.running.remove(&sample.sample) {
            return;
        }
        if admitted.running.is_empty() && !admitted.has_pending_samples() {
            if let Some(done) = self.admitted.remove(&sample.job) {
                self.release(&done);
            }
        } else if admitted.lanes > 1 {
            // Back to everyone: the next sample of this request takes its turn. The last lane is never given back.
            admitted.lanes -= 1;
            self.free_seats += 1;
            self.free_tokens += admitted.lane_tokens();
        }
    }

    fn abort(&mut self, job: JobId) {
        if let Some(admitted) = self.admitted.remove(&job) {
            self.release(&admitted);
            return;
        }
        let Some((tenant, place)) = self.waiting.iter().find_map(|(tenant, line)| {
            line.iter().position(|waiting| waiting.id == job).map(|place| (tenant.clone(), place))
        }) else {
            return;
        };
        if let Some(line) = self.waiting.get_mut(&tenant) {
            line.remove(place);
            if line.is_empty() {
                self.waiting.remove(&tenant);
            }
        }
        self.waiting_count -= 1;
        self.leave_turns_if_idle(&tenant);
    }

    fn len(&self) -> usize {
        self.waiting_count + self.admitted.len()
    }
}

/// Tenants in a ring.
#[derive(Debug, Default)]
struct Turns(VecDeque<TenantId>);

impl Turns {
    fn join(&mut self, tenant: &TenantId) {
        if !self.0.contains(tenant) {
            self.0.push_back(tenant.clone());
        }
    }

    fn leave(&mut self, tenant: &TenantId) {
        self.0.retain(|present| present != tenant);
    }

    /// The first tenant in turn for which there is something.
    fn first<T>(&self, something: impl Fn(&TenantId) -> Option<T>) -> Option<(TenantId, T)> {
        self.0.iter().find_map(|tenant| something(tenant).map(|found| (tenant.clone(), found)))
    }

    fn move_to_back(&mut self, tenant: &TenantId) {
        if let Some(place) = self.0.iter().position(|present| present == tenant)
            && let Some(tenant) = self.0.remove(place)
        {
            self.0.push_back(tenant);
        }
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
