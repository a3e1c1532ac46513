//! A node that stops in the middle of something.

use std::time::Duration;

use twinkle_core::Result;
use twinkle_core::call::RunOperation;
use twinkle_core::component::{Health, Lifecycle};
use twinkle_core::futures::Waited;
use twinkle_core::ids::TenantId;
use twinkle_model::engine::EngineLimits;

use crate::faults::Fault;
use crate::node::{NEVER, Node, STEPS, forward_backward, limits, optim_step, rate, run, undisturbed};

#[tokio::test]
async fn a_node_that_stops_during_a_long_operation_parks_it_within_the_bound() {
    let (expected, expected_logprobs) = undisturbed(None).await;
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_runs(folder.path(), limits(NEVER), &["alice"]).await;
    let (mut at_gate, open) = node.backend.close_gate();
    node.backend.plan("alice", rate(2), &[Fault::Gate]);
    let requests = node.submit_steps("alice", 1..=STEPS).await;
    at_gate.recv().await.unwrap();
    assert_eq!(node.status()["current_operation"], "optim_step of run `alice:train:0`");
    assert_eq!(node.component.health(), Health::Ready, "a long operation is work");

    node.stop_during_an_operation(open).await;
    assert_eq!(node.store.latest_snapshot(&run("alice")).await.unwrap().map(|taken| taken.through.after), Some(4));
    for parked in &requests[4..] {
        let waited = node.futures.wait(&TenantId::new("alice"), parked, Duration::ZERO).await;
        assert_eq!(waited, Waited::Pending);
    }
    node.store.close().await;

    let node = Node::open(folder.path(), limits(NEVER)).await;
    assert_eq!(node.journal.recover().await.unwrap(), 1);
    assert_eq!(node.results("alice", &requests).await, expected);
    assert_eq!(node.logprobs("alice").await, expected_logprobs);
    node.stop().await;
}

/// An operation of three passes, where a pass has eight rows.
fn three_passes() -> RunOperation {
    let operations = (1..=3).map(forward_backward);
    let data = operations.flat_map(|operation| match operation {
        RunOperation::ForwardBackward { data, .. } => data,
        _ => Vec::new(),
    });
    let RunOperation::ForwardBackward { loss, backward, options, .. } = forward_backward(1) else { unreachable!() };
    RunOperation::ForwardBackward { data: data.collect(), loss, backward, options }
}

#[tokio::test]
async fn an_operation_that_a_stop_finds_between_its_passes_is_executed_whole_after_the_restart() {
    let small_passes = EngineLimits { rows_per_pass: 8, ..limits(NEVER) };
    let mut expected = Vec::new();
    for interrupted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut node = Node::with_runs(folder.path(), small_passes, &["alice"]).await;
        let mut requests = node.submit_steps("alice", 1..=1).await;
        node.results("alice", &requests).await;
        let (mut at_gate, open) = node.backend.close_gate();
        node.backend.plan_in_passes("alice", &[Fault::Nothing, Fault::Gate]);
        requests.push(node.submit("alice", Some(3), three_passes()).await);
        requests.push(node.submit("alice", Some(4), optim_step(2)).await);
        at_gate.recv().await.unwrap();
        if interrupted {
            node.stop_during_an_operation(open).await;
            let snapshot = node.store.latest_snapshot(&run("alice")).await.unwrap();
            assert_eq!(snapshot.map(|taken| taken.through.after), Some(2), "the state before it");
            node.store.close().await;
            node = Node::open(folder.path(), small_passes).await;
            assert_eq!(node.journal.recover().await.unwrap(), 1);
        } else {
            drop(open);
        }
        let found = (node.results("alice", &requests).await, node.logprobs("alice").await);
        assert!(found.0.iter().all(Result::is_ok), "{found:?}");
        expected.push(found);
        node.stop().await;
    }
    assert_eq!(expected[0], expected[1]);
}
