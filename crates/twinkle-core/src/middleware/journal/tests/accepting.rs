//! Durability, repetition and order while the server runs.

use super::*;
use crate::state::OperationState;

#[tokio::test]
async fn an_operation_is_durable_before_it_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.recorder.keep_answers_back();
    let request = node.submit(1, step(0.5)).await.unwrap();
    let state = node.store.operation_result(&alice(), &request).await.unwrap();
    assert_eq!(state, Some(OperationState::Pending));
    node.recorder.answer_all();
    let outcome = node.result(&request).await;
    let state = node.store.operation_result(&alice(), &request).await.unwrap();
    assert_eq!(state, Some(OperationState::Finished(outcome)));
}

#[tokio::test]
async fn a_repetition_gets_the_first_answer_and_is_not_executed_again() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let first = node.submit(1, step(0.5)).await.unwrap();
    let while_pending_or_done = node.submit(1, step(0.5)).await.unwrap();
    node.result(&first).await.unwrap();
    let when_done = node.submit(1, step(0.5)).await.unwrap();
    assert_eq!((&while_pending_or_done, &when_done), (&first, &first));
    assert_eq!(node.recorder.numbers(), [1]);
}

#[tokio::test]
async fn a_number_used_for_another_operation_is_a_lasting_error_of_the_request() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.submit(1, step(0.5)).await.unwrap();
    node.submit(3, step(0.5)).await.unwrap();
    for number in [1, 3] {
        assert_eq!(node.submit(number, step(0.6)).await.unwrap_err().code, ErrorCode::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn any_order_of_arrival_with_repetitions_is_executed_once_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let node = Arc::new(Node::with_run(folder.path()).await);
    let mut clients = tokio::task::JoinSet::new();
    for number in (1..=40_u64).rev().chain(1..=40) {
        let node = Arc::clone(&node);
        clients.spawn(async move { (number, node.submit(number, step(number as f64)).await.unwrap()) });
    }
    let mut requests: BTreeMap<u64, RequestId> = BTreeMap::new();
    for (number, request) in clients.join_all().await {
        assert_eq!(requests.entry(number).or_insert_with(|| request.clone()), &request);
    }
    for request in requests.values() {
        node.result(request).await.unwrap();
    }
    assert_eq!(node.recorder.numbers(), (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn operations_without_a_number_go_in_order_of_arrival_and_do_not_wait_for_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.result(&node.submit(1, step(1.0)).await.unwrap()).await.unwrap();
    node.submit(3, step(3.0)).await.unwrap();
    for _ in 0..2 {
        node.result(&node.submit(None, step(0.1)).await.unwrap()).await.unwrap();
    }
    let positions: Vec<Position> = node.recorder.seen().into_iter().map(|(position, _)| position).collect();
    let unnumbered = |arrival| Position { after: 1, arrival };
    assert_eq!(positions, [numbered(0), numbered(1), unnumbered(1), unnumbered(2)]);
}

#[tokio::test]
async fn a_refused_requests_number_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let second = node.submit(2, step(2.0)).await.unwrap();
    node.journal.consume(&alice(), &run(0), 1).await.unwrap();
    node.result(&second).await.unwrap();
    assert_eq!(node.recorder.numbers(), [2]);
    assert_eq!(node.submit(1, step(1.0)).await.unwrap_err().code, ErrorCode::Gone);
    // An accepted number cannot be taken back.
    node.journal.consume(&alice(), &run(0), 2).await.unwrap();
    assert_eq!(node.submit(2, step(2.0)).await.unwrap(), second);
}

/// Keeps the paused clock still while threads outside of the runtime (the database's) are at work.
struct HeldClock {
    _release: std::sync::mpsc::Sender<()>,
}

impl HeldClock {
    fn hold() -> Self {
        let (release, released) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || released.recv());
        Self { _release: release }
    }
}

#[tokio::test(start_paused = true)]
async fn a_number_that_never_arrives_is_passed_over_after_the_grace_period() {
    let _clock = HeldClock::hold();
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let third = node.submit(3, step(3.0)).await.unwrap();
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(node.futures.wait(&alice(), &third, Duration::ZERO).await, Waited::Pending);
    assert_eq!(node.recorder.numbers(), [0_u64; 0]);
    tokio::time::advance(Duration::from_secs(2)).await;
    node.result(&third).await.unwrap();
    assert_eq!(node.recorder.numbers(), [3]);
    assert_eq!(node.submit(2, step(2.0)).await.unwrap_err().code, ErrorCode::Gone);
}

#[tokio::test(start_paused = true)]
async fn the_grace_period_does_not_run_while_the_run_is_at_work() {
    let _clock = HeldClock::hold();
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.recorder.keep_answers_back();
    let first = node.submit(1, step(1.0)).await.unwrap();
    let third = node.submit(3, step(3.0)).await.unwrap();
    tokio::time::advance(Duration::from_mins(10)).await;
    node.recorder.answer_all();
    node.result(&first).await.unwrap();
    assert_eq!(node.recorder.numbers(), [1]);
    let second = node.submit(2, step(2.0)).await.unwrap();
    node.result(&second).await.unwrap();
    node.result(&third).await.unwrap();
    assert_eq!(node.recorder.numbers(), [1, 2, 3]);
}

#[tokio::test]
async fn creating_a_run_twice_gives_the_same_request_and_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    node.open_session().await;
    let first = node.submit(None, create("tiny")).await.unwrap();
    assert_eq!(node.submit(None, create("tiny")).await.unwrap(), first);
    node.result(&first).await.unwrap();
    assert_eq!(node.submit(None, create("tiny")).await.unwrap(), first);
    assert_eq!(node.submit(None, create("other")).await.unwrap_err().code, ErrorCode::InvalidArgument);
    assert_eq!(node.recorder.seen(), [(numbered(0), "create_model")]);
}

#[tokio::test]
async fn a_run_that_could_not_be_created_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    node.open_session().await;
    let request = node.submit(None, create("unknown")).await.unwrap();
    assert_eq!(node.result(&request).await.unwrap_err().code, ErrorCode::InvalidArgument);
    assert!(node.store.run(&alice(), &run(0)).await.unwrap().closed);
    assert_eq!(node.submit(1, step(1.0)).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn an_unloaded_run_accepts_nothing_but_repeats_its_answers() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let first = node.submit(1, step(1.0)).await.unwrap();
    let waiting = node.submit(3, step(3.0)).await.unwrap();
    let unload = node.submit(None, RunOperation::Unload).await.unwrap();
    node.result(&unload).await.unwrap();
    assert_eq!(node.result(&waiting).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(node.submit(2, step(2.0)).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(node.submit(1, step(1.0)).await.unwrap(), first);
    assert_eq!(node.submit(None, RunOperation::Unload).await.unwrap(), unload);
}

#[tokio::test]
async fn another_tenants_run_looks_absent_word_for_word() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let mallory = TenantId::new("mallory");
    let foreign = node.submit_as(&mallory, &run(0), Some(1), step(1.0)).await.unwrap_err();
    let consumed = node.journal.consume(&mallory, &run(0), 1).await.unwrap_err();
    let other = Node::start(tempfile::tempdir().unwrap().path()).await;
    let absent = other.submit_as(&mallory, &run(0), Some(1), step(1.0)).await.unwrap_err();
    assert_eq!(absent.code, ErrorCode::NotFound);
    assert_eq!((&foreign, &consumed), (&absent, &absent));
}

#[tokio::test]
async fn a_failed_or_panicking_operation_leaves_the_run_usable() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let refused = node.submit(1, step(REFUSED_RATE)).await.unwrap();
    let panicking = node.submit(2, step(PANICKING_RATE)).await.unwrap();
    let fine = node.submit(3, step(3.0)).await.unwrap();
    assert_eq!(node.result(&refused).await.unwrap_err().code, ErrorCode::InvalidArgument);
    assert_eq!(node.result(&panicking).await.unwrap_err().code, ErrorCode::Internal);
    node.result(&fine).await.unwrap();
}

#[tokio::test]
async fn a_run_with_too_many_waiting_operations_is_refused_and_then_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = JournalOptions { waiting_per_run: 3, ..JournalOptions::default() };
    let node = Node::start_with(folder.path(), options).await;
    node.open_session().await;
    node.submit(None, create("tiny")).await.unwrap();
    for number in 2..=4 {
        node.submit(number, step(1.0)).await.unwrap();
    }
    let refused = node.submit(5, step(1.0)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.retry_after_ms.is_some());
    node.submit(1, step(1.0)).await.unwrap();
    let last = node.submit(5, step(1.0)).await.unwrap();
    node.result(&last).await.unwrap();
    assert_eq!(node.recorder.numbers(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn waiting_operations_hold_no_more_memory_than_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let options = JournalOptions { waiting_mebibytes: 0, ..JournalOptions::default() };
    let node = Node::start_with(folder.path(), options).await;
    node.open_session().await;
    assert_eq!(node.submit(None, create("tiny")).await.unwrap_err().code, ErrorCode::Overloaded);
}

#[tokio::test]
async fn draining_refuses_new_operations_and_waits_for_those_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.recorder.keep_answers_back();
    let request = node.submit(1, step(1.0)).await.unwrap();
    while node.recorder.numbers().is_empty() {
        tokio::task::yield_now().await;
    }
    let recorder = node.recorder.clone();
    let drained = node.journal.drain(Duration::from_secs(30));
    let releasing = async { recorder.answer_all() };
    tokio::join!(drained, releasing);
    let state = node.store.operation_result(&alice(), &request).await.unwrap();
    assert!(matches!(state, Some(OperationState::Finished(Ok(_)))));
    assert_eq!(node.submit(2, step(2.0)).await.unwrap_err().code, ErrorCode::Draining);
}
