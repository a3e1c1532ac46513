//! Runs that are ended by the node, not by their clients.

use super::*;
use crate::call::Ending;
use crate::ids::{CheckpointKind, CheckpointPath};
use crate::state::RunLimits;

fn path() -> CheckpointPath {
    CheckpointPath::new(run(0), CheckpointKind::Weights, "expired-1").unwrap()
}

async fn expire(node: &Node, insist: bool) -> Result<Option<RequestId>> {
    node.journal.expire(&alice(), &run(0), path(), Ending::Lifetime, insist).await
}

#[tokio::test]
async fn a_run_ends_behind_its_queue_and_then_says_where_it_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.recorder.keep_answers_back();
    let queued = [node.submit(1, step(0.1)).await.unwrap(), node.submit(2, step(0.2)).await.unwrap()];
    let end = expire(&node, true).await.unwrap().unwrap();
    node.recorder.answer_all();
    for request in &queued {
        assert!(matches!(node.result(request).await, Ok(RunOutcome::OptimStep { .. })));
    }
    assert!(matches!(node.result(&end).await, Ok(RunOutcome::Expired { .. })));
    let names: Vec<_> = node.recorder.seen().into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["create_model", "optim_step", "optim_step", "expire_model"]);

    let error = node.submit(3, step(0.3)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Gone);
    assert!(error.message.contains("tinker://s:train:0/weights/expired-1"), "{error}");
    assert_eq!(node.submit(2, step(0.2)).await.unwrap(), queued[1], "a repetition gets its first answer");
    assert_eq!(expire(&node, true).await.unwrap_err().code, ErrorCode::Gone);
}

#[tokio::test]
async fn a_run_at_work_or_with_a_gap_is_left_alone_unless_one_insists() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.recorder.keep_answers_back();
    let works = node.submit(1, step(0.1)).await.unwrap();
    assert_eq!(expire(&node, false).await.unwrap(), None);
    node.recorder.answer_all();
    node.result(&works).await.unwrap();
    let behind_a_gap = node.submit(3, step(0.3)).await.unwrap();
    assert_eq!(expire(&node, false).await.unwrap(), None);

    let end = expire(&node, true).await.unwrap().unwrap();
    node.result(&end).await.unwrap();
    let abandoned = node.result(&behind_a_gap).await.unwrap_err();
    assert!(abandoned.message.contains("expired-1"), "{abandoned}");
}

#[tokio::test]
async fn an_end_that_was_accepted_is_reached_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.recorder.keep_answers_back();
    let end = expire(&node, true).await.unwrap().unwrap();
    node.stop().await;

    let node = Node::start(folder.path()).await;
    assert_eq!(node.journal.recover().await.unwrap(), 0, "the run is closed by the end of its tail");
    assert!(matches!(node.result(&end).await, Ok(RunOutcome::Expired { .. })));
    assert!(node.submit(1, step(0.1)).await.unwrap_err().message.contains("expired-1"));
}

#[tokio::test]
async fn a_run_that_was_moved_to_disk_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.result(&node.submit(1, step(0.1)).await.unwrap()).await.unwrap();
    node.journal.spill(&alice(), &run(0)).await.unwrap();
    node.result(&node.submit(2, step(0.2)).await.unwrap()).await.unwrap();
    assert_eq!(node.recorder.numbers(), [1, 2], "moving it is no operation of the run");
}

#[tokio::test]
async fn a_client_cannot_ask_for_what_the_journal_does() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    for operation in [RunOperation::Spill, RunOperation::Expire { path: path(), ending: Ending::Session }] {
        assert_eq!(node.submit(None, operation).await.unwrap_err().code, ErrorCode::Internal);
    }
}

#[tokio::test]
async fn ending_a_run_makes_room_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let run_limits = RunLimits { per_tenant: Some(1), per_model: None };
    let node = Node::start_with(folder.path(), JournalOptions { run_limits, ..JournalOptions::default() }).await;
    node.open_session().await;
    node.result(&node.submit(None, create("tiny")).await.unwrap()).await.unwrap();
    let second = async || node.submit_as(&alice(), &run(1), None, create("tiny")).await;
    assert_eq!(second().await.unwrap_err().code, ErrorCode::LimitReached);
    node.result(&expire(&node, true).await.unwrap().unwrap()).await.unwrap();
    node.result(&second().await.unwrap()).await.unwrap();
}
