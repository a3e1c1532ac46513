//! The engine: one thread that owns the device and every run's tensors.
//!
//! It takes commands from a bounded channel and does what the [`Schedule`] says is next: an operation, or a pass over rows
//! of many runs (`passes`). It answers, and now and then writes a snapshot so that a restart has little to replay. It
//! waits for nothing but work: whatever has arrived when a pass is formed may share it.
//! A failure costs at most the run it happened in; one that costs the device ends the engine, and another follows it.

mod passes;
mod waiting;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{error, info, warn};
use twinkle_core::call::{Position, RunCall, RunOperation, RunOutcome, SamplerTarget};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::config::TrainMode;
use twinkle_core::engine::pulse::Pulse;
use twinkle_core::engine::supervisor::{Ended, panic_text};
use twinkle_core::engine::ticket::Ticket;
use twinkle_core::ids::{RunId, SamplingSessionId, TenantId};
use twinkle_core::state::StateStore;
use twinkle_core::telemetry::carried::Carried;
use twinkle_core::telemetry::labels::{BaseModel as BaseModelLabel, Component, Deployment, Model, Task, TaskType};
use twinkle_core::telemetry::metrics::{ENGINE_RESTARTS, ENGINE_TURN, RUNS_RESIDENT, RUNS_SPILLED};
use twinkle_core::telemetry::spans::{self, Attribute};
use twinkle_core::{Error, Result};
use twinkle_nn::{BaseModel, Publication, PublishedAdapters};

use self::waiting::Waiting;
use crate::backend::Backend;
use crate::batch::Limits;
use crate::failure::Ending;
use crate::memory::MemoryLimits;
use crate::operations;
use crate::residents::{Capacity, Disk, ResidentRun, Residents};
use crate::schedule::{JobId, Schedule};
use crate::snapshot::Snapshots;
use crate::undo::Undo;

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
    /// Most bytes for runs and for a pass.
    pub memory: MemoryLimits,
    /// Whether runs are adapters of many tenants, or one run that trains all weights.
    pub train_mode: TrainMode,
    /// Largest LoRA rank.
    pub max_rank: u32,
    /// A run is snapshotted when replaying it would take longer than this.
    pub snapshot_after: Duration,
}

/// What the engine is told.
#[expect(clippy::large_enum_variant, reason = "nearly every command is an operation")]
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
    pub ticket: Ticket<RunOutcome>,
    /// Which request it belongs to, for log and trace.
    pub carried: Carried,
    /// Whether an engine was lost over it, perhaps through the fault of another operation.
    pub is_suspect: bool,
}

/// What an engine shows while it works.
#[derive(Clone, Debug)]
pub struct Gauges {
    /// What it is doing.
    pub pulse: Pulse,
    /// How many runs it has in memory.
    pub runs_in_memory: Arc<AtomicUsize>,
}

/// The engine's state; lives on its thread.
pub struct Engine {
    context: EngineContext,
    backend: Arc<dyn Backend>,
    runtime: Handle,
    gauges: Gauges,
    runs: Residents,
    schedule: Schedule,
    /// What the schedule speaks of.
    jobs: HashMap<JobId, Waiting>,
    /// Runs whose gradients hold a part of an operation that is not over.
    undo: HashMap<RunId, Undo>,
    stopping: Option<(Instant, oneshot::Sender<()>)>,
}

/// The device is lost, for this reason: this engine must not go on.
struct Lost(String);

impl Engine {
    /// An engine without runs, the `incarnation`-th after the first. `runtime` is used to wait for the store.
    #[must_use]
    pub fn new(
        context: EngineContext,
        backend: Arc<dyn Backend>,
        gauges: Gauges,
        runtime: Handle,
        incarnation: u64,
    ) -> Self {
        let most = context.limits.max_runs.unwrap_or(usize::MAX);
        if incarnation > 0 {
            ENGINE_RESTARTS.add(1, Component { deployment: Deployment::Model });
        }
        let capacity = Capacity { runs: most, bytes: context.limits.memory.runs };
        let runs = if incarnation == 0 { Residents::new(capacity) } else { Residents::after_a_loss(capacity) };
        let schedule = Schedule::new(context.limits.rows_per_pass, most);
        let (jobs, undo) = (HashMap::new(), HashMap::new());
        Self { context, backend, runtime, gauges, runs, schedule, jobs, undo, stopping: None }
    }

    /// Works until it is drained, every sender is gone, or the device is lost.
    pub fn work(mut self, commands: &mut mpsc::Receiver<Command>) -> Ended {
        match self.take_turns(commands) {
            Ok(()) => {
                self.stop(commands);
                Ended::Stopped
            }
            Err(Lost(reason)) => Ended::Broken(reason),
        }
    }

    fn take_turns(&mut self, commands: &mut mpsc::Receiver<Command>) -> Result<(), Lost> {
        self.gauges.runs_in_memory.store(0, Ordering::Relaxed);
        self.backend.probe(&self.context.base).map_err(|error| Lost(error.message))?;
        self.gauges.pulse.working();
        loop {
            if self.schedule.is_empty() {
                match commands.blocking_recv() {
                    Some(command) => self.admit(command),
                    None => break,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.admit(command);
            }
            self.gauges.pulse.turn();
            if self.stopping.is_some() {
                break;
            }
            self.take_turn()?;
        }
        Ok(())
    }

    /// One operation that is not computed in passes; when none is due, a pass.
    fn take_turn(&mut self) -> Result<(), Lost> {
        let Some(id) = self.schedule.immediate() else {
            for plan in self.schedule.passes() {
                self.pass(plan)?;
            }
            return Ok(());
        };
        match self.jobs.remove(&id) {
            Some(Waiting::Operation(work, refused)) => self.execute(*work, refused),
            _ => Ok(()),
        }
    }

    fn admit(&mut self, command: Command) {
        match command {
            Command::Execute(work) => {
                let (tenant, run) = (work.tenant.clone(), work.call.run.clone());
                let vocabulary = self.context.base.config().vocab_size;
                let limits = Limits { vocabulary, max_length: self.context.limits.max_length };
                let (demand, waiting) = Waiting::of(work, limits, self.context.limits.rows_per_pass);
                let id = self.schedule.push(tenant, run, demand);
                self.jobs.insert(id, waiting);
            }
            Command::Drain { deadline, done } => self.stopping = Some((deadline, done)),
        }
    }

    /// Finishes what fits before the deadline; the rest stays in the journal. Then makes every run durable.
    fn stop(mut self, commands: &mut mpsc::Receiver<Command>) {
        commands.close();
        let Some((deadline, done)) = self.stopping.take() else { return };
        while Instant::now() < deadline && !self.schedule.is_empty() {
            if let Err(Lost(reason)) = self.take_turn() {
                error!(reason, "the device was lost while the engine stopped; the journal has everything");
                return;
            }
        }
        let parked = self.schedule.len();
        let halfway: Vec<RunId> = self.undo.keys().cloned().collect();
        for run in &halfway {
            self.take_back(run);
        }
        let runs = self.runs.names();
        for run in &runs {
            self.snapshot(run);
        }
        info!(runs = runs.len(), parked, "engine drained");
        // Nobody waits any more when the node gave up on us.
        let _ = done.send(());
    }

    /// Executes and answers. On an error the device is lost, and so is the ticket: it says that work had begun.
    fn execute(&mut self, work: Work, refused: Option<Error>) -> Result<(), Lost> {
        let Work { tenant, call, mut ticket, carried, .. } = work;
        let run = call.run.clone();
        let task_type = TaskType(call.operation.name());
        let _taken_up = carried.take_up(Deployment::Model, task_type);
        let stage = spans::begin(spans::operation(task_type.0))
            .with(Attribute::TaskType, task_type.0)
            .with_text(Attribute::ModelId, &run)
            .with_text(Attribute::BaseModel, &self.context.base_model)
            .into_origin();
        let _in_stage = stage.enter();
        let depends_on_checkpoint = depends_on_checkpoint(&call.operation);
        let position = call.position;
        let started = Instant::now();
        self.gauges.pulse.begin(format!("{} of run `{run}`", call.operation.name()));
        ticket.begin();
        let ending = Ending::of(catch_unwind(AssertUnwindSafe(|| self.perform(&tenant, call, refused))));
        ENGINE_TURN.record(started.elapsed(), Task { deployment: Deployment::Model, task_type });
        stage.end();
        self.executed(&run, position, started.elapsed());
        let outcome = match ending {
            Ending::Whole(outcome) => outcome,
            Ending::Torn(reason) => {
                error!(%run, %reason, "an operation panicked; its run is rebuilt from the journal");
                self.runs.lose(&run);
                Err(reason)
            }
            Ending::Lost(reason) => return Err(Lost(reason)),
        };
        self.show_runs();
        let published = published_session(&outcome);
        // The journal may be gone while the node stops; the operation is durable, so nothing is lost.
        ticket.answer(outcome);
        self.keep(&run, |engine| {
            if let Some(session) = published {
                engine.save_published(&run, &session, position);
            }
            if depends_on_checkpoint {
                engine.snapshot(&run);
            } else {
                engine.snapshot_if_due(&run);
            }
        });
        self.gauges.pulse.end();
        Ok(())
    }

    fn show_runs(&self) {
        self.gauges.runs_in_memory.store(self.runs.len(), Ordering::Relaxed);
        let base_model = BaseModelLabel::new(&self.context.base_model);
        RUNS_RESIDENT.set(self.runs.len() as u64, Model { base_model: base_model.clone() });
        RUNS_SPILLED.set(self.runs.on_disk() as u64, Model { base_model });
    }

    fn perform(&mut self, tenant: &TenantId, call: RunCall, refused: Option<Error>) -> Result<RunOutcome> {
        let (context, backend, runtime) = (&self.context, self.backend.as_ref(), &self.runtime);
        if let Some(reason) = refused {
            self.runs.get(&Snapshots { context, runtime }, tenant, &call.run)?;
            return Err(reason);
        }
        operations::perform(context, backend, runtime, &mut self.runs, tenant, call)
    }

    /// The run is now as it is after the operation at `position`, whatever came of that.
    fn executed(&mut self, run: &RunId, position: Position, took: Duration) {
        let Some(resident) = self.runs.in_memory(run) else { return };
        resident.unsaved += took;
        if resident.position < position {
            resident.position = position;
            resident.saved = None;
        }
    }

    /// Writes what should be on disk after an operation.
    fn keep(&mut self, run: &RunId, write: impl FnOnce(&mut Self)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| write(self))) {
            // Writing reads the run only; what was not written is computed again after a restart.
            error!(%run, reason = panic_text(panic.as_ref()), "writing a run to disk panicked");
        }
    }

    /// The sampler has the adapter already; the copy on disk is for after a restart, so nobody waits for it.
    fn save_published(&mut self, run: &RunId, session: &SamplingSessionId, position: Position) {
        let Some(ResidentRun { run, .. }) = self.runs.in_memory(run) else { return };
        let publication = Publication { position, optimizer_steps: run.optimizer.steps() };
        let saved = self.context.published.save(session, &run.layout, &run.parameters, &run.base_model, publication);
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

/// The live sampling session an operation opened, whose adapter is still to be saved.
fn published_session(outcome: &Result<RunOutcome>) -> Option<SamplingSessionId> {
    match outcome {
        Ok(RunOutcome::SavedForSampler { target: SamplerTarget::Live(session) }) => Some(session.clone()),
        _ => None,
    }
}
