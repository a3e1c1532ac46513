//! The engine: one thread that owns the device and every run's tensors.
//!
//! It takes commands from a bounded channel, asks the [`Schedule`] whose turn it is, executes one
//! operation, answers, and now and then writes a snapshot so that a restart has little to replay.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{error, info, warn};
use twinkle_core::call::{RunCall, RunOperation, RunOutcome, SamplerTarget};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::ids::{RunId, SamplingSessionId, TenantId};
use twinkle_core::state::StateStore;
use twinkle_core::{Error, Result};
use twinkle_nn::{BaseModel, PublishedAdapters};

use crate::operations;
use crate::residents::{Disk, ResidentRun, Residents};
use crate::schedule::Schedule;
use crate::snapshot::Snapshots;

/// What the engine needs to know and to reach.
#[derive(Clone)]
pub struct EngineContext {
    /// The base model's public name.
    pub base_model: String,
    /// The frozen weights.
    pub base: Arc<BaseModel>,
    /// Where live adapters are handed to the sampler.
    pub published: PublishedAdapters,
    /// Where checkpoints lie.
    pub checkpoints: CheckpointStore,
    /// Where checkpoints and snapshots are registered.
    pub store: StateStore,
    /// The folder of this application's snapshots.
    pub snapshots: PathBuf,
    /// Limits of this application.
    pub limits: EngineLimits,
}

/// Limits of one application.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Most tokens in one datum.
    pub max_length: usize,
    /// Most packed rows in one pass.
    pub rows_per_pass: usize,
    /// Most runs in memory, the others wait on disk; `None`: all of them.
    pub max_runs: Option<usize>,
    /// Largest LoRA rank.
    pub max_rank: u32,
    /// A run is snapshotted when replaying it would take longer than this.
    pub snapshot_after: Duration,
}

/// What the engine is told.
pub enum Command {
    /// Execute an operation in its turn.
    Execute(Work),
    /// Work until `deadline`, then snapshot every run and stop.
    Drain {
        /// When to stop working.
        deadline: Instant,
        /// Told when everything is durable.
        done: oneshot::Sender<()>,
    },
}

/// One operation and who waits for it.
pub struct Work {
    /// Who asked.
    pub tenant: TenantId,
    /// What was asked.
    pub call: RunCall,
    /// Who waits.
    pub answer: oneshot::Sender<Result<RunOutcome>>,
}

/// The engine's state; lives on its thread.
pub struct Engine {
    context: EngineContext,
    runtime: Handle,
    runs: Residents,
    schedule: Schedule<Work>,
    stopping: Option<(Instant, oneshot::Sender<()>)>,
}

impl Engine {
    /// An engine without runs. `runtime` is used to wait for the store.
    #[must_use]
    pub fn new(context: EngineContext, runtime: Handle) -> Self {
        let runs = Residents::new(context.limits.max_runs.unwrap_or(usize::MAX));
        Self { context, runtime, runs, schedule: Schedule::default(), stopping: None }
    }

    /// Works until it is drained or every sender is gone.
    pub fn work(mut self, mut commands: mpsc::Receiver<Command>) {
        while self.stopping.is_none() {
            if self.schedule.is_empty() {
                match commands.blocking_recv() {
                    Some(command) => self.admit(command),
                    None => break,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.admit(command);
            }
            if let Some(work) = self.schedule.take() {
                self.execute(work);
            }
        }
        self.stop(commands);
    }

    fn admit(&mut self, command: Command) {
        match command {
            Command::Execute(work) => {
                let cost = work.call.input_tokens() as u64;
                self.schedule.push(work.tenant.clone(), cost, work);
            }
            Command::Drain { deadline, done } => self.stopping = Some((deadline, done)),
        }
    }

    /// Finishes what fits before the deadline; the rest stays in the journal. Then makes every run durable.
    fn stop(mut self, mut commands: mpsc::Receiver<Command>) {
        commands.close();
        let Some((deadline, done)) = self.stopping.take() else { return };
        while Instant::now() < deadline {
            let Some(work) = self.schedule.take() else { break };
            self.execute(work);
        }
        let parked = self.schedule.len();
        let runs = self.runs.names();
        for run in &runs {
            self.snapshot(run);
        }
        info!(runs = runs.len(), parked, "engine drained");
        // Nobody waits any more when the node gave up on us.
        let _ = done.send(());
    }

    fn execute(&mut self, work: Work) {
        let Work { tenant, call, answer } = work;
        let run = call.run.clone();
        let depends_on_checkpoint = depends_on_checkpoint(&call.operation);
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.perform(&tenant, call))).unwrap_or_else(|panic| {
            // The tensors may be half changed; the journal can rebuild them, this thread cannot.
            self.runs.remove(&run);
            let reason = panic_text(panic.as_ref());
            error!(%run, reason, "an operation panicked");
            Err(Error::internal(format!("the engine failed: {reason}"))
                .hint("the run is rebuilt from its journal when the server restarts"))
        });
        if let Some(resident) = self.runs.in_memory(&run) {
            resident.unsaved += started.elapsed();
        }
        let published = published_session(&outcome);
        // The journal may be gone while the node stops; the operation is durable, so nothing is lost.
        let _ = answer.send(outcome);
        if let Some(session) = published {
            self.save_published(&run, &session);
        }
        if depends_on_checkpoint {
            self.snapshot(&run);
        } else {
            self.snapshot_if_due(&run);
        }
    }

    fn perform(&mut self, tenant: &TenantId, call: RunCall) -> Result<RunOutcome> {
        let position = call.position;
        let run = call.run.clone();
        let outcome = operations::perform(&self.context, &self.runtime, &mut self.runs, tenant, call);
        if let Some(resident) = self.runs.in_memory(&run)
            && resident.position < position
        {
            resident.position = position;
            resident.saved = None;
        }
        outcome
    }

    /// The sampler has the adapter already; the copy on disk is for after a restart, so nobody waits for it.
    fn save_published(&mut self, run: &RunId, session: &SamplingSessionId) {
        let Some(ResidentRun { run, .. }) = self.runs.in_memory(run) else { return };
        let saved = self.context.published.save(session, &run.layout, &run.parameters, &run.base_model);
        if let Err(reason) = saved {
            warn!(%session, %reason, "a live adapter could not be saved and will be gone after a restart");
        }
    }

    fn snapshot_if_due(&mut self, run: &RunId) {
        let due =
            self.runs.in_memory(run).is_some_and(|resident| resident.unsaved >= self.context.limits.snapshot_after);
        if due {
            self.snapshot(run);
        }
    }

    /// A failed snapshot costs time at the next restart, never data: the journal still has everything.
    fn snapshot(&mut self, id: &RunId) {
        let Some(resident) = self.runs.in_memory(id) else { return };
        if resident.saved.is_some() {
            return;
        }
        let disk = Snapshots { context: &self.context, runtime: &self.runtime };
        match disk.write(id, &resident.run, resident.position) {
            Ok(snapshot) => {
                resident.saved = Some(snapshot);
                resident.unsaved = Duration::ZERO;
            }
            Err(reason) => warn!(run = %id, %reason, "a snapshot could not be written"),
        }
    }
}

/// Whether a replay would read a user's checkpoint, which may be deleted or replaced by then: such an operation is
/// covered by a snapshot at once.
fn depends_on_checkpoint(operation: &RunOperation) -> bool {
    match operation {
        RunOperation::Create(create) => create.from.is_some(),
        RunOperation::LoadState { .. } => true,
        _ => false,
    }
}

/// The live sampling session an operation opened.
fn published_session(outcome: &Result<RunOutcome>) -> Option<SamplingSessionId> {
    match outcome {
        Ok(RunOutcome::SavedForSampler { target: SamplerTarget::Live(session) }) => Some(session.clone()),
        _ => None,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown panic")
}
