//! An operation fails, or the device is lost, and the engine goes on or another one begins.

use std::time::Duration;

use twinkle_core::component::{Health, Lifecycle};
use twinkle_core::{Error, ErrorCode};
use twinkle_model::engine::EngineLimits;

use crate::faults::Fault;
use crate::node::{NEVER, Node, STEPS, limits, rate, undisturbed};

/// A panic in an operation of alice's is this error, everything else is as if it had not been sent.
async fn a_failed_step(snapshot_after: Duration, fault: Fault) -> Error {
    let (expected, expected_logprobs) = undisturbed(Some(2)).await;
    let (expected_of_bob, logprobs_of_bob) = undisturbed(None).await;
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_runs(folder.path(), limits(snapshot_after), &["alice", "bob"]).await;
    node.backend.plan("alice", rate(2), &[fault]);
    let of_alice = node.submit_steps("alice", 1..=STEPS).await;
    let of_bob = node.submit_steps("bob", 1..=STEPS).await;

    let mut results = node.results("alice", &of_alice).await;
    let failure = results.remove(3).unwrap_err();
    assert_eq!(results, expected);
    assert_eq!(node.logprobs("alice").await, expected_logprobs);
    assert_eq!(node.results("bob", &of_bob).await, expected_of_bob);
    assert_eq!(node.logprobs("bob").await, logprobs_of_bob);
    assert_eq!(node.component.health(), Health::Ready);
    assert_eq!(node.status()["restarts"], 0, "the engine lives on");
    node.stop().await;

    // The failure is in the journal, so the next start leaves it out as well.
    let node = Node::open(folder.path(), limits(NEVER)).await;
    assert_eq!(node.logprobs("alice").await, expected_logprobs);
    assert_eq!(node.result("alice", &of_alice[3]).await.unwrap_err(), failure);
    node.stop().await;
    failure
}

#[tokio::test]
async fn a_panic_fails_one_operation_and_its_run_goes_on_in_the_same_bits() {
    let failure = a_failed_step(NEVER, Fault::Panic).await;
    assert_eq!(failure.code, ErrorCode::Internal);
    assert!(failure.message.contains("scripted panic") && failure.hint.is_some(), "{failure}");
}

#[tokio::test]
async fn a_run_with_a_snapshot_is_rebuilt_from_it_after_a_panic() {
    a_failed_step(Duration::ZERO, Fault::Panic).await;
}

#[tokio::test]
async fn too_little_memory_fails_one_operation_with_a_hint_and_leaves_the_run_intact() {
    let failure = a_failed_step(NEVER, Fault::OutOfMemory).await;
    assert_eq!(failure.code, ErrorCode::ResourceExhausted);
    assert!(failure.to_string().contains("smaller batch"), "{failure}");
}

#[tokio::test]
async fn a_lost_device_fails_nothing_and_every_run_ends_in_the_same_bits() {
    let (expected, expected_logprobs) = undisturbed(None).await;
    for snapshot_after in [NEVER, Duration::ZERO] {
        let folder = tempfile::tempdir().unwrap();
        let tenants = ["alice", "bob", "carol"];
        let node = Node::with_runs(folder.path(), limits(snapshot_after), &tenants).await;
        node.backend.plan("alice", rate(1), &[Fault::DeviceLost]);
        node.backend.plan("bob", rate(3), &[Fault::DeviceLost]);
        *node.backend.dead_probes.lock() = 2;
        let mut requests = Vec::new();
        for tenant in tenants {
            requests.push((tenant, node.submit_steps(tenant, 1..=STEPS).await));
        }
        for (tenant, requests) in &requests {
            assert_eq!(node.results(tenant, requests).await, expected, "{tenant}");
        }
        for tenant in tenants {
            assert_eq!(node.logprobs(tenant).await, expected_logprobs, "{tenant}");
        }
        assert_eq!(node.component.health(), Health::Ready);
        let status = node.status();
        assert_eq!((&status["state"], &status["restarts"]), (&"ready".into(), &4.into()));
        assert_eq!(status["runs_in_memory"], 3);
        node.stop().await;
    }
}

#[tokio::test]
async fn an_operation_that_takes_the_engine_with_it_twice_is_given_up_and_the_others_go_on() {
    let (expected, expected_logprobs) = undisturbed(Some(2)).await;
    let (expected_of_bob, _) = undisturbed(None).await;
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_runs(folder.path(), limits(NEVER), &["alice", "bob"]).await;
    node.backend.plan("alice", rate(2), &[Fault::DeviceLost; 10]);
    let of_alice = node.submit_steps("alice", 1..=STEPS).await;
    let of_bob = node.submit_steps("bob", 1..=STEPS).await;

    let mut results = node.results("alice", &of_alice).await;
    let failure = results.remove(3).unwrap_err();
    assert_eq!(failure.code, ErrorCode::Internal);
    assert!(failure.message.contains("poison operation") && failure.message.contains("optim_step"), "{failure}");
    assert_eq!(results, expected);
    assert_eq!(node.logprobs("alice").await, expected_logprobs);
    assert_eq!(node.results("bob", &of_bob).await, expected_of_bob);
    assert_eq!(node.status()["restarts"], 2);
    node.stop().await;
}

#[tokio::test]
async fn runs_that_wait_on_disk_survive_the_engine() {
    let (expected, expected_logprobs) = undisturbed(None).await;
    let folder = tempfile::tempdir().unwrap();
    let tight = EngineLimits { max_runs: Some(1), ..limits(NEVER) };
    let node = Node::with_runs(folder.path(), tight, &["alice", "bob"]).await;
    node.backend.plan("bob", rate(2), &[Fault::DeviceLost]);
    let of_alice = node.submit_steps("alice", 1..=STEPS).await;
    let of_bob = node.submit_steps("bob", 1..=STEPS).await;
    for (tenant, requests) in [("alice", &of_alice), ("bob", &of_bob)] {
        assert_eq!(node.results(tenant, requests).await, expected, "{tenant}");
        assert_eq!(node.logprobs(tenant).await, expected_logprobs, "{tenant}");
    }
    node.stop().await;
}
