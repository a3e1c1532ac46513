//! A pass that several tenants share fails.

use twinkle_core::Result;
use twinkle_core::call::{ForwardBackwardOutcome, RunOutcome};
use twinkle_core::component::{Health, Lifecycle};
use twinkle_core::ids::RequestId;

use crate::faults::Fault;
use crate::node::{NEVER, Node, STEPS, forward_backward, limits, optim_step, undisturbed};

/// Alice and bob send their steps while the engine is in a pass of carol's, so that they share the next one.
async fn steps_in_shared_passes(node: &Node) -> (Vec<RequestId>, Vec<RequestId>) {
    let (mut at_gate, open) = node.backend.close_gate();
    node.backend.plan_in_passes("carol", &[Fault::Gate]);
    let of_carol = node.submit("carol", Some(1), forward_backward(1)).await;
    at_gate.recv().await.unwrap();
    let requests = (node.submit_steps("alice", 1..=STEPS).await, node.submit_steps("bob", 1..=STEPS).await);
    drop(open);
    node.result("carol", &of_carol).await.unwrap();
    requests
}

#[tokio::test]
async fn a_failure_of_a_shared_pass_that_does_not_come_again_costs_nothing() {
    let (expected, expected_logprobs) = undisturbed(None).await;
    for fault in [Fault::Panic, Fault::OutOfMemory, Fault::DeviceLost] {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::with_runs(folder.path(), limits(NEVER), &["alice", "bob", "carol"]).await;
        node.backend.plan_in_passes("alice", &[fault]);
        let (of_alice, of_bob) = steps_in_shared_passes(&node).await;
        for (tenant, requests) in [("alice", &of_alice), ("bob", &of_bob)] {
            assert_eq!(node.results(tenant, requests).await, expected, "{tenant} {fault:?}");
            assert_eq!(node.logprobs(tenant).await, expected_logprobs, "{tenant} {fault:?}");
        }
        let runs = node.backend.runs_in_passes_of("alice");
        assert_eq!(runs[..2], [2, 1], "shared, and then apart: {runs:?}");
        assert_eq!(node.status()["restarts"], u64::from(fault == Fault::DeviceLost));
        node.stop().await;
    }
}

/// Every result of alice's steps, of which the first forward-backward was not sent, and her logprobs afterwards.
async fn undisturbed_without_the_first_forward_backward() -> (Vec<Result<RunOutcome>>, ForwardBackwardOutcome) {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_runs(folder.path(), limits(NEVER), &["alice"]).await;
    let mut results = Vec::new();
    for step in 1..=STEPS {
        if step > 1 {
            let request = node.submit("alice", None, forward_backward(step)).await;
            results.push(node.result("alice", &request).await);
        }
        let request = node.submit("alice", None, optim_step(step)).await;
        results.push(node.result("alice", &request).await);
    }
    let logprobs = node.logprobs("alice").await;
    node.stop().await;
    (results, logprobs)
}

#[tokio::test]
async fn only_the_guilty_one_of_a_shared_pass_fails() {
    let (expected, expected_logprobs) = undisturbed_without_the_first_forward_backward().await;
    let (expected_of_bob, logprobs_of_bob) = undisturbed(None).await;
    for (fault, sign) in [
        (Fault::Panic, "scripted panic"),
        (Fault::OutOfMemory, "out of memory"),
        (Fault::DeviceLost, "poison operation"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::with_runs(folder.path(), limits(NEVER), &["alice", "bob", "carol"]).await;
        node.backend.plan_in_passes("alice", &[fault; 2]);
        let (of_alice, of_bob) = steps_in_shared_passes(&node).await;
        let mut results = node.results("alice", &of_alice).await;
        let failure = results.remove(0).unwrap_err();
        assert!(failure.to_string().contains(sign), "{failure}");
        assert_eq!(results, expected, "{fault:?}");
        assert_eq!(node.logprobs("alice").await, expected_logprobs, "{fault:?}");
        assert_eq!(node.results("bob", &of_bob).await, expected_of_bob, "{fault:?}");
        assert_eq!(node.logprobs("bob").await, logprobs_of_bob, "{fault:?}");
        assert_eq!(node.component.health(), Health::Ready);
        node.stop().await;

        let node = Node::open(folder.path(), limits(NEVER)).await;
        assert_eq!(node.logprobs("alice").await, expected_logprobs, "after a restart, {fault:?}");
        assert_eq!(node.logprobs("bob").await, logprobs_of_bob, "after a restart, {fault:?}");
        node.stop().await;
    }
}
