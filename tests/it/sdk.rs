//! The official Python SDKs, unmodified, against a running server.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use twinkle_tests::{Node, NodeOptions, SdkVersion, run_script};

use crate::fixture_node;

/// The oldest and the newest dialect, for the scripts that take longer.
const VERSIONS: [SdkVersion; 2] = [SdkVersion::V0_16_1, SdkVersion::V0_38_0];

async fn check(script: &str, variant: &str) {
    for version in VERSIONS {
        let node = fixture_node(variant).await;
        let arguments = ["--base-url", &node.base_url(), "--model", node.model()];
        if let Err(failure) = run_script(version, script, &arguments).await {
            panic!("{failure:#}\n--- server log ---\n{}", node.log());
        }
    }
}

/// Runs the script with several releases against one node: each is a tenant of its own.
async fn check_together(versions: &[SdkVersion], script: &str, variant: &str) {
    let node = fixture_node(variant).await;
    let arguments = ["--base-url", &node.base_url(), "--model", node.model()];
    for version in versions {
        if let Err(failure) = run_script(*version, script, &arguments).await {
            panic!("{failure:#}\n--- server log ---\n{}", node.log());
        }
    }
}

#[tokio::test]
async fn every_release_trains_saves_restores_samples_and_lists() {
    check_together(&SdkVersion::ALL, "every_release.py", "qwen3").await;
}

#[tokio::test]
async fn every_release_between_the_oldest_and_the_newest_learns_too() {
    let [_oldest, between @ .., _newest] = SdkVersion::ALL;
    check_together(&between, "training_loop.py", "llama3").await;
}

#[tokio::test]
async fn the_dialect_of_twinkles_own_client_is_understood() {
    check_together(&[SdkVersion::V0_16_1], "twinkle_dialect.py", "qwen2").await;
}

#[tokio::test]
async fn the_python_package_prepares_the_sdk_for_any_key_and_twinkles_paths() {
    check_together(&VERSIONS, "prepared_sdk.py", "qwen2").await;
}

#[tokio::test]
async fn a_training_loop_learns_saves_and_samples() {
    check("training_loop.py", "qwen3").await;
}

#[tokio::test]
async fn every_loss_is_what_its_formula_says() {
    check("losses.py", "qwen2").await;
}

#[tokio::test]
async fn sampling_extras_agree_with_each_other_and_with_the_trainer() {
    check_together(&VERSIONS, "sampling_extras.py", "qwen2_untied").await;
}

#[tokio::test]
async fn four_tenants_at_once_get_what_each_gets_alone() {
    check("tenants.py", "llama3_tied").await;
}

#[tokio::test]
async fn bad_input_is_answered_clearly_and_loses_nothing() {
    check("bad_input.py", "qwen2_untied").await;
}

#[tokio::test]
async fn training_resumes_after_a_restart() {
    for version in VERSIONS {
        let mut node = fixture_node("qwen2").await;
        let state = node.folder().join("resume.json");
        let state = state.to_string_lossy().into_owned();
        for phase in ["1", "2"] {
            let arguments =
                ["--base-url", &node.base_url(), "--model", node.model(), "--phase", phase, "--state-file", &state];
            if let Err(failure) = run_script(version, "restart_resume.py", &arguments).await {
                panic!("{failure:#}\n--- server log ---\n{}", node.log());
            }
            node.kill().expect("killed");
            node.start_again().await.expect("it starts again");
        }
    }
}

#[tokio::test]
async fn every_mistake_is_refused_at_once_by_the_right_exception_and_changes_nothing() {
    check("errors.py", "qwen3").await;
}

#[tokio::test]
async fn the_samplers_logprobs_are_the_trainers_at_every_temperature() {
    // In bf16 the two round to 8 bits in another order, and a tiny model's logits are near each other.
    for (dtype, largest, mean) in [("float32", "1e-4", "1e-5"), ("bfloat16", "0.2", "0.01")] {
        let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen3");
        options.dtype = dtype.to_owned();
        let node = Node::start(options).await.expect("the server starts");
        let address = node.base_url();
        let mut arguments = vec!["--base-url", &address, "--model", node.model()];
        arguments.extend(["--tolerance", largest, "--mean-tolerance", mean]);
        if let Err(failure) = run_script(SdkVersion::V0_38_0, "agreement.py", &arguments).await {
            panic!("{dtype}: {failure:#}\n--- server log ---\n{}", node.log());
        }
    }
}

#[tokio::test]
async fn every_setting_of_the_optimizer_does_what_adamw_does() {
    for version in VERSIONS {
        let node = fixture_node("qwen2").await;
        let checkpoints = node.folder().join("state/checkpoints");
        let (address, checkpoints) = (node.base_url(), checkpoints.to_string_lossy());
        let arguments = ["--base-url", &address, "--model", node.model(), "--checkpoints", &checkpoints];
        if let Err(failure) = run_script(version, "optimizer.py", &arguments).await {
            panic!("{failure:#}\n--- server log ---\n{}", node.log());
        }
    }
}

#[tokio::test]
async fn a_quota_slows_the_sdk_down_and_nothing_fails() {
    for version in VERSIONS {
        let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen2");
        options.settings = "task_queue: {rps_limit: 8, window_seconds: 1}".to_owned();
        let node = Node::start(options).await.expect("the server starts");
        let address = node.base_url();
        let arguments = ["--base-url", &address, "--model", node.model(), "--what", "quota", "--rate", "8"];
        if let Err(failure) = run_script(version, "transient.py", &arguments).await {
            panic!("{failure:#}\n--- server log ---\n{}", node.log());
        }
    }
}

#[tokio::test]
async fn a_loop_goes_on_through_a_killed_server_to_the_last_bit() {
    for version in VERSIONS {
        let mut node = fixture_node("llama3").await;
        let (address, model) = (node.base_url(), node.model().to_owned());
        let (working, killed) = (node.folder().join("working"), node.folder().join("killed"));
        let (begun, gone) = (working.clone(), killed.to_string_lossy().into_owned());
        let script = tokio::spawn(async move {
            let begun = begun.to_string_lossy();
            let arguments = ["--base-url", &address, "--model", &model, "--what", "outage"];
            let files = ["--working", &begun, "--killed", &gone];
            run_script(version, "transient.py", &[arguments.as_slice(), &files].concat()).await
        });
        let deadline = Instant::now() + Duration::from_mins(2);
        while !working.exists() && !script.is_finished() && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
        node.kill().expect("killed");
        std::fs::write(&killed, "").expect("told");
        node.start_again().await.expect("it starts again");
        if let Err(failure) = script.await.expect("the script's task ends") {
            panic!("{failure:#}\n--- server log ---\n{}", node.log());
        }
    }
}

#[tokio::test]
async fn the_tinker_command_lists_changes_and_downloads() {
    check_together(&VERSIONS, "cli.py", "qwen2").await;
}
