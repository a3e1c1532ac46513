//! Housekeeping over a real store and journal, on times of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::SignedDuration;
use parking_lot::Mutex;
use tower::Service;
use twinkle_core::call::{
    AdamParams, Call, LoraSpec, Operation, Position, Reply, RunCall, RunOperation, RunOutcome, RunRecord, SessionRecord,
};
use twinkle_core::component::{Component, ComponentKind, Health, Lifecycle};
use twinkle_core::config::AdapterConfig;
use twinkle_core::error::Error;
use twinkle_core::futures::{Futures, FuturesOptions, Waited};
use twinkle_core::ids::{RequestId, RunId, SamplingSessionId, SessionId, TenantId};
use twinkle_core::middleware::journal::Journal;
use twinkle_core::state::{NewOperation, NewRun, SnapshotRecord, StateStore};
use twinkle_nn::PublishedAdapters;

use super::*;

/// A trainer that notes what it is asked, and cannot save while its disk is full.
#[derive(Clone, Default)]
struct Trainer {
    asked: Arc<Mutex<Vec<(RunId, &'static str)>>>,
    disk_is_full: Arc<Mutex<bool>>,
}

impl Trainer {
    fn asked(&self, name: &str) -> Vec<RunId> {
        self.asked.lock().iter().filter(|(_, asked)| *asked == name).map(|(run, _)| run.clone()).collect()
    }

    fn answer(&self, run: RunId, operation: RunOperation) -> Result<RunOutcome> {
        self.asked.lock().push((run.clone(), operation.name()));
        Ok(match operation {
            RunOperation::Restore { .. } => RunOutcome::Restored { run },
            RunOperation::OptimStep(_) => RunOutcome::OptimStep { metrics: BTreeMap::new() },
            RunOperation::Spill => RunOutcome::Spilled { run },
            RunOperation::Expire { .. } if *self.disk_is_full.lock() => {
                return Err(Error::new(ErrorCode::ResourceExhausted, "the disk is full"));
            }
            RunOperation::Expire { path, ending } => RunOutcome::Expired { run, path, ending },
            other => return Err(Error::unsupported(other.name())),
        })
    }
}

impl Service<Call> for Trainer {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let Operation::Run(RunCall { run, operation, .. }) = call.operation else { panic!("not a training operation") };
        let answer = self.answer(run, operation).map(Reply::Run);
        async move { answer }.boxed()
    }
}

impl Lifecycle for Trainer {
    fn kind(&self) -> ComponentKind {
        ComponentKind::Model
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn drain(&self, _: Duration) -> BoxFuture<'static, ()> {
        futures::future::ready(()).boxed()
    }
}

impl Component for Trainer {
    type Args = ();
    type Context = ();

    async fn build((): (), (): ()) -> Result<Self> {
        Ok(Self::default())
    }
}

struct House {
    store: StateStore,
    futures: Futures,
    journal: Journal,
    trainer: Trainer,
}

const HOUR: i64 = 3_600;

fn alice() -> TenantId {
    TenantId::new("alice")
}

/// So many seconds ago.
fn ago(seconds: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_secs(seconds)
}

impl House {
    async fn new() -> Self {
        let store = StateStore::open_in_memory().await.unwrap();
        let futures = Futures::new(store.clone(), FuturesOptions::default());
        let trainer = Trainer::default();
        let journal = Journal::new(store.clone(), futures.clone(), trainer.clone().boxed());
        Self { store, futures, journal, trainer }
    }

    /// With the usual limits: half an hour of silence, ten hours of life.
    fn runs(&self) -> EndingRuns {
        let model = TrainedModel::new("tiny".to_owned(), self.journal.clone(), &AdapterConfig::default());
        EndingRuns::new(self.store.clone(), model, None)
    }

    /// A session that was last heard of then, and a run in it that was made and last used then.
    async fn session_with_run(&self, name: &str, heard: Timestamp, made: Timestamp, used: Timestamp) -> RunId {
        let session = SessionRecord {
            id: SessionId::new(name),
            tenant: alice(),
            tags: vec![],
            user_metadata: BTreeMap::new(),
            sdk_version: None,
            finished: false,
            created_at: heard,
            project_id: None,
            display_name: None,
            client_end: None,
        };
        self.store.create_session(&session).await.unwrap();
        let lora = LoraSpec { rank: 4, train_unembed: false, ..LoraSpec::default() };
        let id = RunId::of_session(&session.id, 0);
        let record = RunRecord {
            id: id.clone(),
            tenant: alice(),
            session: session.id,
            base_model: "tiny".to_owned(),
            lora,
            user_metadata: BTreeMap::new(),
            closed: false,
            created_at: made,
            last_used_at: used,
        };
        let operation = NewOperation {
            request: RequestId::journaled(),
            tenant: alice(),
            run: id.clone(),
            position: Position::default(),
            name: "create_model",
            payload: vec![],
            fingerprint: [0; 32],
        };
        let request = operation.request.clone();
        self.store.insert_run(NewRun { record, operation }).await.unwrap();
        let made = Ok(RunOutcome::Created { run: id.clone() });
        self.store.finish(&request, &made).await.unwrap();
        // Any folder will do: the trainer does not read it.
        let snapshot = SnapshotRecord { directory: std::env::temp_dir(), through: Position::default() };
        self.store.record_snapshot(&id, &snapshot).await.unwrap();
        id
    }

    async fn step(&self, run: &RunId) -> Result<RequestId> {
        let operation = RunOperation::OptimStep(AdamParams::default());
        let call = RunCall { run: run.clone(), sequence: None, position: Position::default(), operation };
        match self.journal.clone().call(Call { tenant: alice(), operation: Operation::Run(call) }).await? {
            Reply::Accepted(request) => Ok(request),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until every accepted operation of the run is done.
    async fn settle(&self, runs: &EndingRuns, run: &RunId) {
        let request = runs.ending_request(run).expect("the run is ending");
        let waited = self.futures.wait(&alice(), &request, Duration::from_secs(10)).await;
        assert!(matches!(waited, Waited::Done(_)), "{waited:?}");
    }

    async fn end_of(&self, run: &RunId) -> Option<Error> {
        if self.store.is_open(run).await.unwrap() { None } else { Some(self.store.end_of(run).await.unwrap()) }
    }
}

#[tokio::test]
async fn a_silent_session_is_finished_and_its_runs_end_with_a_checkpoint() {
    let house = House::new().await;
    let silent = house.session_with_run("silent", ago(25 * HOUR), ago(9 * HOUR), ago(25 * HOUR)).await;
    let alive = house.session_with_run("alive", ago(1), ago(9 * HOUR), ago(HOUR)).await;
    let day = Some(Duration::from_hours(24));
    let (sessions, mut runs) = (SilentSessions::new(house.store.clone(), day, long_ago()), house.runs());
    sessions.look(Timestamp::now()).await.unwrap();
    runs.look(Timestamp::now()).await.unwrap();
    house.settle(&runs, &silent).await;

    let end = house.end_of(&silent).await.unwrap();
    assert_eq!(end.code, ErrorCode::Gone);
    assert!(end.message.contains("its session is over") && end.message.contains("/weights/expired-"), "{end}");
    assert_eq!(house.step(&silent).await.unwrap_err(), end);
    assert_eq!(house.end_of(&alive).await, None);
    let beat = house.store.touch_session(&alice(), &SessionId::new("silent")).await.unwrap_err();
    assert_eq!(beat.code, ErrorCode::Gone);
}

/// A node that has been up for longer than its clients need to be heard.
fn long_ago() -> Instant {
    Instant::now().checked_sub(Duration::from_hours(1)).unwrap_or_else(Instant::now)
}

#[tokio::test]
async fn a_node_that_was_down_gives_its_clients_time_to_be_heard() {
    let house = House::new().await;
    house.session_with_run("s", ago(25 * HOUR), ago(HOUR), ago(25 * HOUR)).await;
    let sessions = SilentSessions::new(house.store.clone(), Some(Duration::from_hours(24)), Instant::now());
    sessions.look(Timestamp::now()).await.unwrap();
    assert!(!house.store.session(&alice(), &SessionId::new("s")).await.unwrap().finished);
    // Only now: with a clock that runs ahead, waiting for the store would look like a store that is gone.
    tokio::time::pause();
    tokio::time::advance(Duration::from_mins(2)).await;
    tokio::time::resume();
    sessions.look(Timestamp::now()).await.unwrap();
    assert!(house.store.session(&alice(), &SessionId::new("s")).await.unwrap().finished);
}

#[tokio::test]
async fn a_run_of_full_age_ends_at_its_next_pause_and_at_last_in_the_middle_of_its_work() {
    let house = House::new().await;
    let pauses = house.session_with_run("pauses", ago(1), ago(10 * HOUR + 1), ago(120)).await;
    let works = house.session_with_run("works", ago(1), ago(10 * HOUR + 1), ago(1)).await;
    let last = house.session_with_run("works-on", ago(1), ago(11 * HOUR), ago(1)).await;
    let young = house.session_with_run("young", ago(1), ago(9 * HOUR), ago(120)).await;
    let mut runs = house.runs();
    runs.look(Timestamp::now()).await.unwrap();
    for run in [&pauses, &last] {
        house.settle(&runs, run).await;
        let end = house.end_of(run).await.unwrap();
        assert!(end.message.contains("lived as long as a run may"), "{end}");
    }
    for run in [&works, &young] {
        assert_eq!(house.end_of(run).await, None);
        house.step(run).await.unwrap();
    }
}

#[tokio::test]
async fn a_run_that_cannot_be_saved_is_not_lost_and_tried_again() {
    let house = House::new().await;
    let run = house.session_with_run("s", ago(1), ago(11 * HOUR), ago(HOUR)).await;
    *house.trainer.disk_is_full.lock() = true;
    let mut runs = house.runs();
    runs.look(Timestamp::now()).await.unwrap();
    house.settle(&runs, &run).await;
    assert_eq!(house.end_of(&run).await, None);

    *house.trainer.disk_is_full.lock() = false;
    let later = Timestamp::now() + SignedDuration::from_secs(300);
    runs.look(later).await.unwrap();
    house.settle(&runs, &run).await;
    assert!(house.end_of(&run).await.is_some());
    assert_eq!(house.trainer.asked("expire_model").len(), 2);
}

#[tokio::test]
async fn a_silent_run_goes_to_disk_once_for_each_silence() {
    let house = House::new().await;
    let silent = house.session_with_run("silent", ago(HOUR), ago(HOUR), ago(HOUR)).await;
    house.session_with_run("beats", ago(1), ago(HOUR), ago(HOUR)).await;
    house.session_with_run("trains", ago(HOUR), ago(HOUR), ago(1)).await;
    let mut runs = house.runs();
    for _ in 0..2 {
        runs.look(Timestamp::now()).await.unwrap();
        assert_eq!(house.trainer.asked("spill"), std::slice::from_ref(&silent));
    }
    house.step(&silent).await.unwrap();
    runs.look(Timestamp::now() + SignedDuration::from_mins(29)).await.unwrap();
    assert_eq!(house.trainer.asked("spill").iter().filter(|run| **run == silent).count(), 1);
    runs.look(Timestamp::now() + SignedDuration::from_mins(31)).await.unwrap();
    assert_eq!(house.trainer.asked("spill").iter().filter(|run| **run == silent).count(), 2);
}

fn make_folder(folder: &Path, name: &str) {
    std::fs::create_dir_all(folder.join(name)).unwrap();
    std::fs::write(folder.join(name).join("file"), "data").unwrap();
}

#[tokio::test]
async fn live_adapters_outlive_their_session_for_half_an_hour() {
    let house = House::new().await;
    let folder = tempfile::tempdir().unwrap();
    house.session_with_run("over", ago(2 * HOUR), ago(HOUR), ago(HOUR)).await;
    house.session_with_run("open", ago(2 * HOUR), ago(HOUR), ago(HOUR)).await;
    house.store.finish_session(&alice(), &SessionId::new("over")).await.unwrap();
    for name in ["over:sample:0", "open:sample:0", "unknown:sample:3", "something else"] {
        make_folder(folder.path(), name);
    }
    let published = PublishedAdapters::new(folder.path().to_path_buf());
    let saved = || published.saved().unwrap().into_iter().collect::<std::collections::BTreeSet<_>>();
    let mut adapters = LiveAdapters::new(house.store.clone(), published.clone());
    adapters.look(Timestamp::now()).await.unwrap();
    assert!(!saved().contains(&SamplingSessionId::new("unknown:sample:3")));
    assert_eq!(saved().len(), 3);
    adapters.look(Timestamp::now() + SignedDuration::from_mins(31)).await.unwrap();
    assert!(!saved().contains(&SamplingSessionId::new("over:sample:0")));
    assert!(saved().contains(&SamplingSessionId::new("open:sample:0")));
}

#[tokio::test]
async fn the_snapshot_of_a_closed_run_is_removed_and_an_open_ones_stays() {
    let house = House::new().await;
    let folder = tempfile::tempdir().unwrap();
    let open = house.session_with_run("a", ago(1), ago(1), ago(1)).await;
    let closed = house.session_with_run("b", ago(1), ago(1), ago(1)).await;
    house.store.close_run(&closed, &Error::not_found("unloaded")).await.unwrap();
    for run in [&open, &closed] {
        make_folder(folder.path(), run.as_str());
    }
    Snapshots::new(house.store.clone(), folder.path().to_path_buf()).look().await.unwrap();
    assert!(folder.path().join(open.as_str()).is_dir());
    assert!(!folder.path().join(closed.as_str()).exists());
}

#[test]
fn the_pause_follows_the_shortest_limit_within_bounds() {
    let args = |cleanup_interval| ServerArgs { cleanup_interval, ..ServerArgs::default() };
    let day = Some(Duration::from_hours(24));
    assert_eq!(pause(&args(3600.0), day, &[]), Duration::from_hours(1));
    assert_eq!(pause(&args(60.0), day, &[]), Duration::from_mins(1));
    assert_eq!(pause(&args(3600.0), Some(Duration::from_secs(40)), &[]), Duration::from_secs(10));
    assert_eq!(pause(&args(0.0), None, &[]), SHORTEST_PAUSE);
}
