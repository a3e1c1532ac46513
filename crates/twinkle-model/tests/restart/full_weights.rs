//! A run that trains all weights and a process that is killed.

use std::time::Duration;

use twinkle_core::Result;
use twinkle_core::call::{ForwardBackwardOutcome, RunOutcome};
use twinkle_core::config::TrainMode;
use twinkle_model::engine::EngineLimits;

use crate::node::{NEVER, Node, STEPS, limits};

const ALICE: &str = "alice";

/// What a run of `STEPS` steps was answered, and what it computes then. With `killed_after` the process ends after that
/// step, with nothing saved that was not saved already, and another one goes on.
async fn trained(
    variant: &str,
    snapshot_after: Duration,
    killed_after: Option<u64>,
) -> (Vec<Result<RunOutcome>>, ForwardBackwardOutcome) {
    let limits = EngineLimits { train_mode: TrainMode::Full, ..limits(snapshot_after) };
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::with_runs_on(variant, folder.path(), limits, &[ALICE]).await;
    let mut answers = Vec::new();
    for step in 1..=STEPS {
        let requests = node.submit_steps(ALICE, step..=step).await;
        answers.extend(node.results(ALICE, &requests).await);
        if killed_after == Some(step) {
            node.store.close().await;
            node = Node::open_on(variant, folder.path(), limits).await;
        }
    }
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let logprobs = node.logprobs(ALICE).await;
    node.stop().await;
    (answers, logprobs)
}

#[tokio::test]
async fn all_weights_are_rebuilt_in_the_same_bits_after_a_kill() {
    for variant in ["qwen3", "qwen3_5_moe"] {
        let expected = trained(variant, NEVER, None).await;
        for (snapshot_after, killed_after) in [(NEVER, 1), (NEVER, 2), (Duration::ZERO, 2)] {
            let found = trained(variant, snapshot_after, Some(killed_after)).await;
            assert!(found == expected, "{variant}, killed after step {killed_after}, {snapshot_after:?}");
        }
    }
}
