//! Operations, their order, their results and snapshots.

use std::path::PathBuf;
use std::time::Duration;

use twinkle_core::call::{Position, RunOutcome};
use twinkle_core::ids::RequestId;
use twinkle_core::state::{Appended, NewOperation, OperationState, Retention, RunOrder, SnapshotRecord, Swept};
use twinkle_core::{Error, ErrorCode};

use crate::fixtures::{alice, mallory, new_run, numbered, operation, run_id, session, stepped, with_run};
use crate::lab::Lab;

pub(crate) async fn a_run_is_made_once(lab: &Lab) {
    let store = with_run(lab).await;
    let again = store.insert_run(new_run()).await.unwrap();
    assert!(matches!(again, Appended::Existing(existing) if existing.fingerprint == [7; 32]));
}

pub(crate) async fn many_writers_share_commits_and_each_gets_its_own_answer(lab: &Lab) {
    let store = with_run(lab).await;
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

pub(crate) async fn a_result_is_stored_once_and_a_later_one_is_ignored(lab: &Lab) {
    let store = with_run(lab).await;
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

pub(crate) async fn unloading_closes_the_run_and_fails_what_still_waits(lab: &Lab) {
    let store = with_run(lab).await;
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

pub(crate) async fn a_snapshot_drops_the_payloads_it_covers_and_names_the_one_it_replaces(lab: &Lab) {
    let store = with_run(lab).await;
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

pub(crate) async fn a_snapshot_waits_for_the_results_it_covers(lab: &Lab) {
    let store = with_run(lab).await;
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

pub(crate) async fn swept_numbers_stay_used_up_and_unfinished_or_uncovered_operations_stay(lab: &Lab) {
    let store = with_run(lab).await;
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
    assert_eq!(swept, Swept { results: 4, operations: 3, ..Swept::default() });
    let kept: Vec<u64> =
        store.tail(&run_id(), None, numbered(9), 9).await.unwrap().iter().map(|kept| kept.position.after).collect();
    assert_eq!(kept, [3, 4]);
    let order = store.run_order(&run_id()).await.unwrap();
    assert_eq!((order.passed_through, order.pending), (3, vec![4]));
}

pub(crate) async fn numbers_are_used_up_by_refusals_gaps_and_results(lab: &Lab) {
    let store = with_run(lab).await;
    let second = operation(numbered(2));
    store.append(second.clone()).await.unwrap();
    store.append_refused(&alice(), &run_id(), 3).await.unwrap();
    store.append_refused(&alice(), &run_id(), 2).await.unwrap();
    let unnumbered = NewOperation { name: "forward", ..operation(Position { after: 2, arrival: 5 }) };
    store.append(unnumbered.clone()).await.unwrap();
    let order = store.run_order(&run_id()).await.unwrap();
    let expected = RunOrder { passed_through: 0, last_arrival: 5, pending: vec![2], refused: vec![3] };
    assert_eq!(order, expected, "the creation itself has no number of its own");

    store.pass_over(&run_id(), 1).await.unwrap();
    store.pass_over(&run_id(), 0).await.unwrap();
    assert_eq!(store.run_order(&run_id()).await.unwrap().passed_through, 1);
    store.finish(&second.request, &stepped()).await.unwrap();
    assert_eq!(store.run_order(&run_id()).await.unwrap().passed_through, 2);

    assert!(store.operation_at(&run_id(), numbered(3)).await.unwrap().unwrap().refused);
    assert_eq!(store.operation_at(&run_id(), numbered(4)).await.unwrap(), None);
    assert_eq!(store.latest_named(&run_id(), "forward").await.unwrap(), Some(unnumbered.request));
    assert_eq!(store.latest_named(&run_id(), "nothing").await.unwrap(), None);
    let foreign = store.append(NewOperation { tenant: mallory(), ..operation(numbered(9)) }).await.unwrap_err();
    assert_eq!(foreign.code, ErrorCode::NotFound);
}

pub(crate) async fn large_payloads_come_back_whole(lab: &Lab) {
    let store = with_run(lab).await;
    let payload: Vec<u8> = (0..3_u32 << 20).map(|index| (index % 251) as u8).collect();
    store.append(NewOperation { payload: payload.clone(), ..operation(numbered(1)) }).await.unwrap();
    let kept = store.tail(&run_id(), Some(Position::default()), numbered(1), 5).await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].payload.as_deref(), Some(payload.as_slice()));
}
