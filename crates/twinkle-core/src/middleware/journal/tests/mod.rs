//! The journal around a component that records what reaches it.

mod accepting;
mod ending;
mod losing;
mod restarting;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tower::Service;

use super::{Journal, JournalOptions};
use crate::call::{
    AdamParams, Call, CreateRun, LoraSpec, Operation, OptimizerSpec, Position, Reply, RunCall, RunOperation,
    RunOutcome, RunState, SessionRecord,
};
use crate::component::{Component, ComponentKind, Health, Lifecycle};
use crate::error::{Error, ErrorCode, Result};
use crate::futures::{Futures, FuturesOptions, Outcome, Waited};
use crate::ids::{RequestId, RunId, SessionId, TenantId};
use crate::state::StateStore;

/// A learning rate that the recorder refuses.
const REFUSED_RATE: f64 = -1.0;
/// A learning rate at which the recorder panics.
const PANICKING_RATE: f64 = 666.0;

/// A learning rate at which the recorder fails and loses the run.
const TEARING_RATE: f64 = 13.5;
/// A learning rate at which the recorder loses every run, as often as it was told.
const KILLING_RATE: f64 = 1313.0;

/// What reached the component.
type Seen = (RunId, Position, &'static str);

/// A component whose "training" adds the learning rate to a sum, so that order and repetition show in its bits.
#[derive(Clone)]
struct Recorder {
    seen: Arc<Mutex<Vec<Seen>>>,
    sums: Arc<Mutex<HashMap<RunId, f64>>>,
    /// Each answer takes a permit.
    gate: Arc<Semaphore>,
    engine: Arc<Mutex<FakeEngine>>,
}

/// What is lost with an engine.
#[derive(Debug, Default)]
struct FakeEngine {
    /// How many engines there were before; what one of them has not answered is lost.
    incarnation: u64,
    /// Whether any run was ever lost: one that is not there may have been.
    has_lost_runs: bool,
    /// How often [`KILLING_RATE`] still kills.
    kills: u32,
}

impl Recorder {
    fn new() -> Self {
        Self {
            seen: Arc::default(),
            sums: Arc::default(),
            gate: Arc::new(Semaphore::new(1_000_000)),
            engine: Arc::default(),
        }
    }

    /// The engine is lost, with every run and everything it has not answered.
    fn die(&self) {
        self.sums.lock().clear();
        let mut engine = self.engine.lock();
        engine.incarnation += 1;
        engine.has_lost_runs = true;
    }

    /// What reached the component of one run.
    fn numbers_of(&self, run: &RunId) -> Vec<u64> {
        self.seen.lock().iter().filter(|seen| seen.0 == *run).map(|seen| seen.1.after).collect()
    }

    fn absent(&self) -> Error {
        if self.engine.lock().has_lost_runs { interrupted() } else { Error::not_found("no such run") }
    }

    /// Keeps answers back until [`Recorder::answer_all`].
    fn keep_answers_back(&self) {
        self.gate.forget_permits(usize::MAX);
    }

    fn answer_all(&self) {
        self.gate.add_permits(1_000_000);
    }

    /// What reached the component, without the run.
    fn seen(&self) -> Vec<(Position, &'static str)> {
        self.seen.lock().iter().map(|(_, position, name)| (*position, *name)).collect()
    }

    /// The numbers that reached the component, creation left out.
    fn numbers(&self) -> Vec<u64> {
        self.seen().iter().map(|(position, _)| position.after).filter(|number| *number > 0).collect()
    }

    fn work(&self, run: &RunId, operation: &RunOperation) -> Result<RunOutcome> {
        if let RunOperation::OptimStep(params) = operation
            && params.learning_rate == KILLING_RATE
            && self.engine.lock().kills > 0
        {
            self.engine.lock().kills -= 1;
            self.die();
            return Err(interrupted());
        }
        let mut sums = self.sums.lock();
        match operation {
            RunOperation::Create(create) => {
                if create.base_model != "tiny" {
                    return Err(Error::invalid("unknown base model"));
                }
                sums.insert(run.clone(), 0.0);
                Ok(RunOutcome::Created { run: run.clone() })
            }
            RunOperation::OptimStep(params) => {
                let Some(sum) = sums.get_mut(run) else { return Err(self.absent()) };
                if params.learning_rate == TEARING_RATE {
                    sums.remove(run);
                    self.engine.lock().has_lost_runs = true;
                    return Err(Error::internal("the engine failed: a defect"));
                }
                if params.learning_rate == REFUSED_RATE {
                    return Err(Error::invalid("the learning rate is negative"));
                }
                assert!(params.learning_rate != PANICKING_RATE, "a defect");
                // Not commutative: another order gives other bits.
                *sum = *sum * 1.1 + params.learning_rate;
                Ok(RunOutcome::OptimStep { metrics: BTreeMap::from([("sum".to_owned(), *sum)]) })
            }
            RunOperation::SaveState { path, .. } => Ok(RunOutcome::Saved { path: path.clone() }),
            RunOperation::SaveForSampler { target, .. } => Ok(RunOutcome::SavedForSampler { target: target.clone() }),
            RunOperation::Unload => {
                sums.remove(run);
                Ok(RunOutcome::Unloaded { run: run.clone() })
            }
            RunOperation::Expire { path, ending } => {
                sums.remove(run);
                Ok(RunOutcome::Expired { run: run.clone(), path: path.clone(), ending: *ending })
            }
            RunOperation::Spill => Ok(RunOutcome::Spilled { run: run.clone() }),
            RunOperation::Describe { .. } => {
                let Some(sum) = sums.get(run) else { return Err(self.absent()) };
                let mut optimizer = OptimizerSpec::default();
                optimizer.set_lr(*sum);
                Ok(RunOutcome::Described(Box::new(RunState {
                    cur_step: 0,
                    accumulation_steps: 1,
                    optimizer_steps: 0,
                    optimizer,
                    scheduler: None,
                    trained: 0,
                    base: 0,
                    parameters: Vec::new(),
                })))
            }
            RunOperation::Restore { directory } => {
                let bytes = std::fs::read(directory.join("sum")).map_err(|error| Error::internal(error.to_string()))?;
                let bytes = bytes.try_into().map_err(|_| Error::internal("a damaged snapshot"))?;
                sums.insert(run.clone(), f64::from_le_bytes(bytes));
                Ok(RunOutcome::Restored { run: run.clone() })
            }
            other => Err(Error::unsupported(other.name())),
        }
    }
}

impl Service<Call> for Recorder {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let Operation::Run(RunCall { run, position, operation, .. }) = call.operation else {
            return async { Err(Error::internal("not a training operation")) }.boxed();
        };
        self.seen.lock().push((run.clone(), position, operation.name()));
        let (gate, engine) = (Arc::clone(&self.gate), Arc::clone(&self.engine));
        let incarnation = engine.lock().incarnation;
        let outcome = self.work(&run, &operation);
        Box::pin(async move {
            gate.acquire().await.map_err(|error| Error::internal(error.to_string()))?.forget();
            if engine.lock().incarnation != incarnation {
                return Err(interrupted());
            }
            outcome.map(Reply::Run)
        })
    }
}

impl Lifecycle for Recorder {
    fn kind(&self) -> ComponentKind {
        ComponentKind::Model
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn drain(&self, _limit: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

impl Component for Recorder {
    type Args = ();
    type Context = ();

    async fn build((): (), (): ()) -> Result<Self> {
        Ok(Self::new())
    }
}

/// A server: store, board, journal and recorder over one state folder.
struct Node {
    store: StateStore,
    futures: Futures,
    recorder: Recorder,
    journal: Journal,
}

impl Node {
    async fn start(folder: &Path) -> Self {
        Self::start_with(folder, JournalOptions::default()).await
    }

    async fn start_with(folder: &Path, options: JournalOptions) -> Self {
        let store = StateStore::open(&folder.join("state.sqlite")).await.unwrap();
        let futures = Futures::new(store.clone(), FuturesOptions::default());
        let recorder = Recorder::new();
        let journal = Journal::with_options(store.clone(), futures.clone(), recorder.clone().boxed(), options);
        Self { store, futures, recorder, journal }
    }

    /// Ends without ceremony: what is not in the store is gone.
    async fn stop(self) {
        self.store.close().await;
    }

    async fn open_session(&self) {
        let session = SessionRecord {
            id: SessionId::new("s"),
            tenant: alice(),
            tags: vec![],
            user_metadata: BTreeMap::new(),
            sdk_version: None,
            finished: false,
            created_at: Timestamp::now(),
            project_id: None,
            display_name: None,
            client_end: None,
        };
        self.store.create_session(&session).await.unwrap();
    }

    async fn submit_as(
        &self,
        tenant: &TenantId,
        run: &RunId,
        sequence: Option<u64>,
        operation: RunOperation,
    ) -> Result<RequestId> {
        let call = RunCall { run: run.clone(), sequence, position: Position::default(), operation };
        let call = Call { tenant: tenant.clone(), operation: Operation::Run(call) };
        match self.journal.clone().call(call).await? {
            Reply::Accepted(request) => Ok(request),
            other => panic!("{other:?} instead of a request id"),
        }
    }

    async fn submit(&self, sequence: impl Into<Option<u64>>, operation: RunOperation) -> Result<RequestId> {
        self.submit_as(&alice(), &run(0), sequence.into(), operation).await
    }

    /// A session with run 0 in it.
    async fn with_run(folder: &Path) -> Self {
        let node = Self::start(folder).await;
        node.open_session().await;
        node.result(&node.submit(None, create("tiny")).await.unwrap()).await.unwrap();
        node
    }

    async fn result(&self, request: &RequestId) -> Result<RunOutcome> {
        match self.futures.wait(&alice(), request, Duration::from_secs(30)).await {
            Waited::Done(result) => match result.as_ref() {
                Ok(Outcome::Run(outcome)) => Ok(outcome.clone()),
                Ok(other) => panic!("{other:?} is no training result"),
                Err(error) => Err(error.clone()),
            },
            other => panic!("{other:?} instead of a result of `{request}`"),
        }
    }

    /// Writes a snapshot of run 0 as the engine would.
    async fn snapshot(&self, folder: &Path, through: Position) -> PathBuf {
        let directory = folder.join(format!("snapshot-{}", through.after));
        std::fs::create_dir_all(&directory).unwrap();
        let sum = self.recorder.sums.lock()[&run(0)];
        std::fs::write(directory.join("sum"), sum.to_le_bytes()).unwrap();
        let record = crate::state::SnapshotRecord { directory: directory.clone(), through };
        self.store.record_snapshot(&run(0), &record).await.unwrap();
        directory
    }
}

fn interrupted() -> Error {
    Error::new(ErrorCode::Interrupted, "the engine was lost")
}

fn alice() -> TenantId {
    TenantId::new("alice")
}

fn run(number: u64) -> RunId {
    RunId::of_session(&SessionId::new("s"), number)
}

fn numbered(after: u64) -> Position {
    Position { after, arrival: 0 }
}

fn create(base_model: &str) -> RunOperation {
    RunOperation::Create(CreateRun {
        session: None,
        accumulation_steps: None,
        base_model: base_model.to_owned(),
        lora: LoraSpec { rank: 4, seed: 1, ..LoraSpec::default() },
        from: None,
        user_metadata: BTreeMap::new(),
    })
}

fn step(learning_rate: f64) -> RunOperation {
    RunOperation::OptimStep(AdamParams { learning_rate, ..AdamParams::default() })
}

/// The sum after steps with these learning rates.
fn sum(rates: &[f64]) -> f64 {
    rates.iter().fold(0.0, |sum, rate| sum * 1.1 + rate)
}

fn sum_in(outcome: &Result<RunOutcome>) -> f64 {
    match outcome {
        Ok(RunOutcome::OptimStep { metrics }) => metrics["sum"],
        other => panic!("{other:?} is no optimizer step"),
    }
}
