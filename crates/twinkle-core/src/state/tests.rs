//! The store on a real file system.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::call::{
    CheckpointRecord, LoraSpec, Position, RunOutcome, RunRecord, SamplingSessionRecord, SamplingSource, SessionRecord,
};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{CheckpointKind, CheckpointPath, RequestId, RunId, SamplingSessionId, SessionId, TenantId};

fn alice() -> TenantId {
    TenantId::new("alice")
}

fn mallory() -> TenantId {
    TenantId::new("mallory")
}

fn lora() -> LoraSpec {
    LoraSpec { rank: 8, alpha: 0.1 + 0.2, seed: u64::MAX, train_attn: true, train_mlp: false, train_unembed: true }
}

fn session(id: &str) -> SessionRecord {
    SessionRecord {
        id: SessionId::new(id),
        tenant: alice(),
        tags: vec!["a".to_owned(), "ü".to_owned()],
        user_metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        sdk_version: Some("0.38.0".to_owned()),
        finished: false,
        created_at: Timestamp::now(),
    }
}

fn run_id() -> RunId {
    RunId::new("s:train:0")
}

fn operation(position: Position) -> NewOperation {
    NewOperation {
        request: RequestId::journaled(),
        tenant: alice(),
        run: run_id(),
        position,
        name: "optim_step",
        payload: vec![1, 2, 3],
        fingerprint: [7; 32],
    }
}

fn numbered(number: u64) -> Position {
    Position { after: number, arrival: 0 }
}

fn new_run() -> NewRun {
    let record = RunRecord {
        id: run_id(),
        tenant: alice(),
        session: SessionId::new("s"),
        base_model: "tiny".to_owned(),
        lora: lora(),
        user_metadata: BTreeMap::new(),
        closed: false,
        created_at: Timestamp::now(),
        last_used_at: Timestamp::now(),
    };
    NewRun { record, operation: NewOperation { name: "create_model", ..operation(Position::default()) } }
}

async fn with_run() -> StateStore {
    let store = StateStore::open_in_memory().await.unwrap();
    store.create_session(&session("s")).await.unwrap();
    store.insert_run(new_run()).await.unwrap();
    store
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with results")]
fn stepped() -> Result<RunOutcome> {
    Ok(RunOutcome::OptimStep { metrics: BTreeMap::from([("grad_norm".to_owned(), 0.1 + 0.2)]) })
}

#[tokio::test]
async fn everything_is_there_again_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("below/state.sqlite");
    let store = StateStore::open(&path).await.unwrap();
    let session = session("s");
    store.create_session(&session).await.unwrap();
    let run = new_run();
    store.insert_run(run.clone()).await.unwrap();
    store.finish(&run.operation.request, &stepped()).await.unwrap();
    store.close().await;
    assert_eq!(store.create_session(&session).await.unwrap_err().code, ErrorCode::Draining);

    let store = StateStore::open(&path).await.unwrap();
    assert_eq!(store.session(&alice(), &session.id).await.unwrap(), session);
    assert_eq!(store.run(&alice(), &run_id()).await.unwrap(), run.record);
    let state = store.operation_result(&alice(), &run.operation.request).await.unwrap();
    assert_eq!(state, Some(OperationState::Finished(stepped())));
}

#[tokio::test]
async fn another_tenants_objects_look_absent_word_for_word() {
    let store = with_run().await;
    let (session, sampling) = (SessionId::new("s"), SamplingSessionId::new("s:sample:0"));
    let record = SamplingSessionRecord {
        id: sampling.clone(),
        tenant: alice(),
        session: session.clone(),
        base_model: "tiny".to_owned(),
        source: SamplingSource::Base,
    };
    store.create_sampling_session(&record).await.unwrap();
    let empty = StateStore::open_in_memory().await.unwrap();
    for (foreign, absent) in [
        (store.session(&mallory(), &session).await.err(), empty.session(&mallory(), &session).await.err()),
        (store.touch_session(&mallory(), &session).await.err(), empty.touch_session(&mallory(), &session).await.err()),
        (
            store.finish_session(&mallory(), &session).await.err(),
            empty.finish_session(&mallory(), &session).await.err(),
        ),
        (store.run(&mallory(), &run_id()).await.err(), empty.run(&mallory(), &run_id()).await.err()),
        (
            store.sampling_session(&mallory(), &sampling).await.err(),
            empty.sampling_session(&mallory(), &sampling).await.err(),
        ),
    ] {
        assert_eq!(foreign.as_ref().map(|error| error.code), Some(ErrorCode::NotFound));
        assert_eq!(foreign, absent);
    }
    let theirs = SamplingSessionRecord { tenant: mallory(), ..record };
    assert_eq!(
        store.create_sampling_session(&theirs).await.unwrap_err(),
        empty.create_sampling_session(&theirs).await.unwrap_err()
    );
    assert_eq!(store.list_runs(&mallory(), 10, 0).await.unwrap(), (vec![], 0));
}

#[tokio::test]
async fn a_finished_session_takes_no_more_runs_or_heartbeats() {
    let store = StateStore::open_in_memory().await.unwrap();
    store.create_session(&session("s")).await.unwrap();
    store.finish_session(&alice(), &SessionId::new("s")).await.unwrap();
    store.finish_session(&alice(), &SessionId::new("s")).await.unwrap();
    assert_eq!(store.touch_session(&alice(), &SessionId::new("s")).await.unwrap_err().code, ErrorCode::Gone);
    assert_eq!(store.insert_run(new_run()).await.unwrap_err().code, ErrorCode::Gone);
    assert_eq!(store.run(&alice(), &run_id()).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_sampling_session_is_made_once_and_refused_with_other_weights() {
    let store = with_run().await;
    let record = SamplingSessionRecord {
        id: SamplingSessionId::new("s:sample:1"),
        tenant: alice(),
        session: SessionId::new("s"),
        base_model: "tiny".to_owned(),
        source: SamplingSource::Base,
    };
    assert_eq!(store.create_sampling_session(&record).await.unwrap(), record);
    assert_eq!(store.create_sampling_session(&record).await.unwrap(), record);
    let other = SamplingSessionRecord { source: SamplingSource::Live(record.id.clone()), ..record };
    assert_eq!(store.create_sampling_session(&other).await.unwrap_err().code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn a_run_is_made_once() {
    let store = with_run().await;
    let again = store.insert_run(new_run()).await.unwrap();
    assert!(matches!(again, Appended::Existing(existing) if existing.fingerprint == [7; 32]));
}

#[tokio::test]
async fn many_writers_share_commits_and_each_gets_its_own_answer() {
    let store = with_run().await;
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..200_u64 {
        let store = store.clone();
        // Every number twice, and a session that exists already in between.
        writers.spawn(async move {
            let duplicate = store.create_session(&session("s")).await.unwrap_err();
            (duplicate.code, store.append(operation(numbered(1 + number / 2))).await.unwrap())
        });
    }
    let mut new = 0;
    for (code, appended) in writers.join_all().await {
        assert_eq!(code, ErrorCode::Conflict);
        new += u32::from(appended == Appended::New);
    }
    assert_eq!(new, 100);
    let order = store.run_order(&run_id()).await.unwrap();
    assert_eq!(order.pending, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_disk_is_told_and_takes_nothing_with_it() {
    struct LimitPages;
    impl writer::Write for LimitPages {
        type Answer = ();
        async fn apply(&self, connection: &mut connection::Connection) -> Result<(), failure::Failure> {
            sql::query("PRAGMA max_page_count = 1").fetch_optional(connection).await?;
            Ok(())
        }
    }
    let store = with_run().await;
    store.writer.write(LimitPages).await.unwrap();
    let large = NewOperation { payload: vec![0; 1 << 20], ..operation(numbered(1)) };
    let (tenant, touched) = (alice(), SessionId::new("s"));
    let (full, small) = tokio::join!(store.append(large), store.touch_session(&tenant, &touched));
    let full = full.unwrap_err();
    assert_eq!(full.code, ErrorCode::ResourceExhausted, "{full}");
    small.unwrap();
    assert_eq!(store.operation_at(&run_id(), numbered(1)).await.unwrap(), None);
}

#[tokio::test]
async fn a_result_is_stored_once_and_a_later_one_is_ignored() {
    let store = with_run().await;
    let operation = operation(numbered(1));
    store.append(operation.clone()).await.unwrap();
    assert_eq!(store.operation_result(&alice(), &operation.request).await.unwrap(), Some(OperationState::Pending));
    store.finish(&operation.request, &stepped()).await.unwrap();
    store.finish(&operation.request, &Err(Error::internal("late"))).await.unwrap();
    let state = store.operation_result(&alice(), &operation.request).await.unwrap();
    assert_eq!(state, Some(OperationState::Finished(stepped())));
    assert_eq!(store.operation_result(&mallory(), &operation.request).await.unwrap(), None);
    assert_eq!(store.finish(&RequestId::journaled(), &stepped()).await.unwrap_err().code, ErrorCode::Internal);
}

#[tokio::test]
async fn unloading_closes_the_run_and_fails_what_still_waits() {
    let store = with_run().await;
    let (unload, waiting) = (NewOperation { name: "unload_model", ..operation(numbered(1)) }, operation(numbered(2)));
    store.append(unload.clone()).await.unwrap();
    store.append(waiting.clone()).await.unwrap();
    let finished = store.finish(&unload.request, &Ok(RunOutcome::Unloaded { run: run_id() })).await.unwrap();
    assert!(finished.closed && finished.abandoned.contains(&waiting.request));
    assert!(store.run(&alice(), &run_id()).await.unwrap().closed);
    assert_eq!(store.append(operation(numbered(3))).await.unwrap_err().code, ErrorCode::NotFound);
    let state = store.operation_result(&alice(), &waiting.request).await.unwrap();
    assert!(matches!(state, Some(OperationState::Finished(Err(error))) if error.code == ErrorCode::NotFound));
}

#[tokio::test]
async fn a_snapshot_drops_the_payloads_it_covers_and_names_the_one_it_replaces() {
    let store = with_run().await;
    let creation = store.tail(&run_id(), None, numbered(9), 1).await.unwrap().remove(0);
    store.finish(&creation.request, &Ok(RunOutcome::Created { run: run_id() })).await.unwrap();
    for position in [numbered(1), Position { after: 1, arrival: 1 }, numbered(2)] {
        let operation = operation(position);
        store.append(operation.clone()).await.unwrap();
        store.finish(&operation.request, &stepped()).await.unwrap();
    }
    let first = SnapshotRecord { directory: PathBuf::from("/snapshots/1"), through: numbered(1) };
    assert_eq!(store.record_snapshot(&run_id(), &first).await.unwrap(), None);
    let payloads: Vec<bool> =
        store.tail(&run_id(), None, numbered(9), 9).await.unwrap().iter().map(|kept| kept.payload.is_some()).collect();
    assert_eq!(payloads, [false, false, true, true]);

    let second = SnapshotRecord { directory: PathBuf::from("/snapshots/2"), through: numbered(2) };
    assert_eq!(store.record_snapshot(&run_id(), &second).await.unwrap(), Some(first.directory.clone()));
    assert_eq!(store.latest_snapshot(&run_id()).await.unwrap(), Some(second.clone()));
    assert_eq!(store.snapshot_directories().await.unwrap(), [second.directory]);
    assert!(store.record_snapshot(&run_id(), &first).await.is_err());
}

#[tokio::test]
async fn a_snapshot_waits_for_the_results_it_covers() {
    let store = with_run().await;
    let creation = store.tail(&run_id(), None, numbered(9), 1).await.unwrap().remove(0);
    let snapshot = SnapshotRecord { directory: PathBuf::from("/snapshots/0"), through: Position::default() };
    let finishing = async {
        tokio::task::yield_now().await;
        store.finish(&creation.request, &Ok(RunOutcome::Created { run: run_id() })).await
    };
    let run = run_id();
    let (recorded, finished) = tokio::join!(store.record_snapshot(&run, &snapshot), finishing);
    finished.unwrap();
    recorded.unwrap();
}

#[tokio::test]
async fn swept_numbers_stay_used_up_and_unfinished_or_uncovered_operations_stay() {
    let store = with_run().await;
    let creation = store.tail(&run_id(), None, numbered(9), 1).await.unwrap().remove(0);
    store.finish(&creation.request, &Ok(RunOutcome::Created { run: run_id() })).await.unwrap();
    for number in 1..=3 {
        let operation = operation(numbered(number));
        store.append(operation.clone()).await.unwrap();
        store.finish(&operation.request, &stepped()).await.unwrap();
    }
    store.append(operation(numbered(4))).await.unwrap();
    let snapshot = SnapshotRecord { directory: PathBuf::from("/snapshots/2"), through: numbered(2) };
    store.record_snapshot(&run_id(), &snapshot).await.unwrap();

    let at_once = Retention { results: Duration::ZERO, ..Retention::default() };
    let swept = store.sweep(&at_once).await.unwrap();
    assert_eq!(swept, Swept { results: 4, operations: 3, sessions: 0 });
    let kept: Vec<u64> =
        store.tail(&run_id(), None, numbered(9), 9).await.unwrap().iter().map(|kept| kept.position.after).collect();
    assert_eq!(kept, [3, 4]);
    let order = store.run_order(&run_id()).await.unwrap();
    assert_eq!((order.passed_through, order.pending), (3, vec![4]));
}

#[tokio::test]
async fn sessions_without_runs_are_forgotten_when_their_clients_are_long_gone() {
    let store = with_run().await;
    store.create_session(&session("idle")).await.unwrap();
    let at_once = Retention { idle_sessions: Duration::ZERO, ..Retention::default() };
    assert_eq!(store.sweep(&at_once).await.unwrap().sessions, 1);
    store.session(&alice(), &SessionId::new("s")).await.unwrap();
    assert!(store.session(&alice(), &SessionId::new("idle")).await.is_err());
}

#[tokio::test]
async fn checkpoints_are_listed_until_they_expire_or_are_deleted() {
    let store = StateStore::open_in_memory().await.unwrap();
    let path = |name| CheckpointPath::new(run_id(), CheckpointKind::Weights, name).unwrap();
    let record = |name, expires_at| CheckpointRecord {
        path: path(name),
        tenant: alice(),
        base_model: "tiny".to_owned(),
        lora: lora(),
        size_bytes: 5,
        user_metadata: BTreeMap::new(),
        created_at: Timestamp::UNIX_EPOCH,
        expires_at,
    };
    store.insert_checkpoint(&record("kept", None)).await.unwrap();
    store.insert_checkpoint(&record("old", Some(Timestamp::UNIX_EPOCH))).await.unwrap();
    assert_eq!(store.list_checkpoints(&alice(), None).await.unwrap(), [record("kept", None)]);
    assert_eq!(store.checkpoint(&alice(), &path("kept")).await.unwrap(), record("kept", None));
    let expired = store.expired_checkpoints(Timestamp::now(), 10).await.unwrap();
    assert_eq!(expired, [record("old", Some(Timestamp::UNIX_EPOCH))]);
    let foreign = store.delete_checkpoint(&mallory(), &path("kept")).await.unwrap_err();
    store.delete_checkpoint(&alice(), &path("kept")).await.unwrap();
    assert_eq!(store.checkpoint(&alice(), &path("kept")).await.unwrap_err(), foreign);
}

#[tokio::test]
async fn two_servers_cannot_share_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let first = StateStore::open(&path).await.unwrap();
    let refused = StateStore::open(&path).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict);
    assert!(refused.message.contains("in use by another server"), "{refused}");
    first.close().await;
    StateStore::open(&path).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let text = "not a database, but long enough to be taken for one. ".repeat(40);
    std::fs::write(&path, &text).unwrap();
    let error = StateStore::open(&path).await.unwrap_err();
    assert!(error.message.contains("is not a state store"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn another_programs_database_is_refused() {
    use sqlx::ConnectOptions;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql("CREATE TABLE recipes (name TEXT)").execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let error = StateStore::open(&path).await.unwrap_err();
    assert!(error.message.contains("another program"), "{error}");
}

#[tokio::test]
async fn a_store_with_a_broken_page_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let store = StateStore::open(&path).await.unwrap();
    for number in 0..100 {
        store.create_session(&session(&format!("s{number}"))).await.unwrap();
    }
    store.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in &mut bytes[8192..] {
        *byte = 0xaa;
    }
    std::fs::write(&path, bytes).unwrap();
    let error = StateStore::open(&path).await.unwrap_err();
    assert!(error.message.contains("damaged"), "{error}");
}
