//! The official Python SDKs, unmodified, against a running server.

use twinkle_tests::{SdkVersion, run_script};

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
