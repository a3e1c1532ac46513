//! What survives a restart, and in which bits.

use super::*;
use crate::call::SamplerTarget;
use crate::ids::{CheckpointKind, CheckpointPath, SamplingSessionId};

#[tokio::test]
async fn a_result_is_delivered_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let request = node.submit(1, step(0.3)).await.unwrap();
    let before = node.result(&request).await;
    node.stop().await;

    let node = Node::start(folder.path()).await;
    assert_eq!(node.result(&request).await, before);
    assert_eq!(node.submit(1, step(0.3)).await.unwrap(), request);
}

#[tokio::test]
async fn the_unfinished_tail_is_executed_in_order_and_ends_in_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let first = node.submit(1, step(0.1)).await.unwrap();
    node.result(&first).await.unwrap();
    node.recorder.keep_answers_back();
    let unnumbered = node.submit(None, step(0.2)).await.unwrap();
    let third = node.submit(3, step(0.4)).await.unwrap();
    let second = node.submit(2, step(0.3)).await.unwrap();
    node.stop().await;

    let node = Node::start(folder.path()).await;
    let polled_before_recovery = node.futures.wait(&alice(), &third, Duration::ZERO).await;
    assert_eq!(polled_before_recovery, Waited::Pending);
    assert_eq!(node.journal.recover().await.unwrap(), 1);
    assert_eq!(sum_in(&node.result(&unnumbered).await).to_bits(), sum(&[0.1, 0.2]).to_bits());
    assert_eq!(sum_in(&node.result(&second).await).to_bits(), sum(&[0.1, 0.2, 0.3]).to_bits());
    assert_eq!(sum_in(&node.result(&third).await).to_bits(), sum(&[0.1, 0.2, 0.3, 0.4]).to_bits());
    let fourth = node.submit(4, step(0.5)).await.unwrap();
    assert_eq!(sum_in(&node.result(&fourth).await).to_bits(), sum(&[0.1, 0.2, 0.3, 0.4, 0.5]).to_bits());
}

#[tokio::test]
async fn another_base_models_runs_are_left_to_its_own_journal() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.recorder.keep_answers_back();
    let unfinished = node.submit(1, step(0.1)).await.unwrap();
    node.stop().await;

    let of = |base_model: &str| JournalOptions { base_model: Some(base_model.to_owned()), ..JournalOptions::default() };
    let other = Node::start_with(folder.path(), of("another")).await;
    assert_eq!(other.journal.recover().await.unwrap(), 0);
    other.stop().await;

    let own = Node::start_with(folder.path(), of("tiny")).await;
    assert_eq!(own.journal.recover().await.unwrap(), 1);
    assert_eq!(sum_in(&own.result(&unfinished).await).to_bits(), sum(&[0.1]).to_bits());
}

#[tokio::test]
async fn operations_accepted_while_a_run_is_rebuilt_come_after_its_tail() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.recorder.keep_answers_back();
    let first = node.submit(1, step(0.1)).await.unwrap();
    node.stop().await;

    let node = Node::start(folder.path()).await;
    node.recorder.keep_answers_back();
    let unnumbered = node.submit(None, step(0.2)).await.unwrap();
    let second = node.submit(2, step(0.3)).await.unwrap();
    let recovering = node.journal.clone();
    let recovery = tokio::spawn(async move { recovering.recover().await });
    node.recorder.answer_all();
    recovery.await.unwrap().unwrap();
    assert_eq!(sum_in(&node.result(&first).await).to_bits(), sum(&[0.1]).to_bits());
    assert_eq!(sum_in(&node.result(&unnumbered).await).to_bits(), sum(&[0.1, 0.2]).to_bits());
    assert_eq!(sum_in(&node.result(&second).await).to_bits(), sum(&[0.1, 0.2, 0.3]).to_bits());
    assert_eq!(node.recorder.seen().len(), 4);
}

#[tokio::test]
async fn an_idle_run_is_rebuilt_when_it_is_first_touched() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.result(&node.submit(1, step(0.1)).await.unwrap()).await.unwrap();
    node.stop().await;

    let node = Node::start(folder.path()).await;
    assert_eq!(node.journal.recover().await.unwrap(), 0);
    assert_eq!(node.recorder.seen(), []);
    let second = node.submit(2, step(0.2)).await.unwrap();
    assert_eq!(sum_in(&node.result(&second).await).to_bits(), sum(&[0.1, 0.2]).to_bits());
}

#[tokio::test]
async fn a_snapshot_stands_for_the_operations_it_covers() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    for number in 1..=3 {
        node.result(&node.submit(number, step(number as f64)).await.unwrap()).await.unwrap();
        if number == 2 {
            node.snapshot(folder.path(), numbered(2)).await;
        }
    }
    node.stop().await;

    let node = Node::start(folder.path()).await;
    let fourth = node.submit(4, step(4.0)).await.unwrap();
    assert_eq!(sum_in(&node.result(&fourth).await).to_bits(), sum(&[1.0, 2.0, 3.0, 4.0]).to_bits());
    let expected = [(numbered(2), "restore"), (numbered(3), "optim_step"), (numbered(4), "optim_step")];
    assert_eq!(node.recorder.seen(), expected);
}

#[tokio::test]
async fn a_run_whose_snapshot_is_gone_is_closed_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let other = node.submit_as(&alice(), &run(1), None, create("tiny")).await.unwrap();
    node.result(&other).await.unwrap();
    node.result(&node.submit(1, step(0.1)).await.unwrap()).await.unwrap();
    let snapshot = node.snapshot(folder.path(), numbered(1)).await;
    node.recorder.keep_answers_back();
    let lost = node.submit(2, step(0.2)).await.unwrap();
    let kept = node.submit_as(&alice(), &run(1), Some(1), step(0.3)).await.unwrap();
    node.stop().await;
    std::fs::remove_dir_all(snapshot).unwrap();

    let node = Node::start(folder.path()).await;
    node.journal.recover().await.unwrap();
    let error = node.result(&lost).await.unwrap_err();
    assert!(error.message.contains("could not be rebuilt") && error.message.contains("snapshot-1"), "{error}");
    assert_eq!(node.submit(3, step(0.3)).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(sum_in(&node.result(&kept).await).to_bits(), sum(&[0.3]).to_bits());
}

#[tokio::test]
async fn failed_operations_and_saved_checkpoints_are_not_executed_again_but_live_adapters_are() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let path = CheckpointPath::new(run(0), CheckpointKind::SamplerWeights, "a").unwrap();
    let save = |target| RunOperation::SaveForSampler { target, ttl_seconds: None, user_metadata: BTreeMap::new() };
    let live = SamplerTarget::Live(SamplingSessionId::new("s:sample:0"));
    let operations = [step(0.1), step(REFUSED_RATE), save(SamplerTarget::Checkpoint(path)), save(live), step(0.2)];
    for (number, operation) in (1..).zip(operations) {
        let _ = node.result(&node.submit(number, operation).await.unwrap()).await;
    }
    node.stop().await;

    let node = Node::start(folder.path()).await;
    let last = node.submit(6, step(0.3)).await.unwrap();
    assert_eq!(sum_in(&node.result(&last).await).to_bits(), sum(&[0.1, 0.2, 0.3]).to_bits());
    assert_eq!(node.recorder.numbers(), [1, 4, 5, 6]);
}

#[tokio::test]
async fn an_operation_behind_a_gap_still_waits_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let third = node.submit(3, step(0.3)).await.unwrap();
    node.journal.consume(&alice(), &run(0), 2).await.unwrap();
    node.stop().await;

    let node = Node::start(folder.path()).await;
    node.journal.recover().await.unwrap();
    assert_eq!(node.futures.wait(&alice(), &third, Duration::ZERO).await, Waited::Pending);
    assert_eq!(node.submit(3, step(0.3)).await.unwrap(), third);
    let first = node.submit(1, step(0.1)).await.unwrap();
    node.result(&first).await.unwrap();
    assert_eq!(sum_in(&node.result(&third).await).to_bits(), sum(&[0.1, 0.3]).to_bits());
    assert_eq!(node.recorder.numbers(), [1, 3]);
}

#[tokio::test]
async fn an_unfinished_creation_is_executed_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    node.open_session().await;
    node.recorder.keep_answers_back();
    let created = node.submit(None, create("tiny")).await.unwrap();
    node.stop().await;

    let node = Node::start(folder.path()).await;
    // The client did not hear the answer and asks again before the server has recovered.
    assert_eq!(node.submit(None, create("tiny")).await.unwrap(), created);
    node.result(&created).await.unwrap();
    assert_eq!(node.recorder.seen(), [(numbered(0), "create_model")]);
}

#[tokio::test]
async fn a_closed_run_stays_closed_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let unload = node.submit(None, RunOperation::Unload).await.unwrap();
    node.result(&unload).await.unwrap();
    node.stop().await;

    let node = Node::start(folder.path()).await;
    assert_eq!(node.journal.recover().await.unwrap(), 0);
    assert_eq!(node.submit(1, step(0.1)).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(node.submit(None, RunOperation::Unload).await.unwrap(), unload);
    assert_eq!(node.recorder.seen(), []);
}

#[tokio::test]
async fn a_run_is_described_as_it_is_after_what_was_answered_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let first = node.submit(1, step(0.1)).await.unwrap();
    node.result(&first).await.unwrap();
    let described = node.journal.describe(&alice(), &run(0), false).await.unwrap();
    assert_eq!(described.optimizer.lr().to_bits(), sum(&[0.1]).to_bits());
    node.stop().await;

    let node = Node::start(folder.path()).await;
    let described = node.journal.describe(&alice(), &run(0), false).await.unwrap();
    assert_eq!(described.optimizer.lr().to_bits(), sum(&[0.1]).to_bits(), "rebuilt first");
    let foreign = node.journal.describe(&TenantId::new("bob"), &run(0), false).await.unwrap_err();
    assert_eq!(foreign.code, ErrorCode::NotFound);
    let second = node.submit(2, step(0.2)).await.unwrap();
    assert_eq!(sum_in(&node.result(&second).await).to_bits(), sum(&[0.1, 0.2]).to_bits(), "its order is as before");
}
