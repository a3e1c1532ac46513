//! Twinkle's own Python client, the unmodified package `twinkle-kit`, against a running server.
//!
//! `tests/python/twinkle` has the scenarios. Its imports alone take ten seconds, so one process runs many of them.

use std::path::Path;

use twinkle_tests::{Node, NodeOptions, run_with_kit};

const VARIANT: &str = "qwen3";

/// Runs files of scenarios one after the other against one node.
async fn check(files: &[&str]) {
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), VARIANT);
    // Scenarios of one process are many adapters, and nobody else is there.
    options.model_args = "max_loras: 256\n      queue_config: {rps_limit: 0, tps_limit: 0}".to_owned();
    options.sampler_args = "queue_config: {rps_limit: 0, tps_limit: 0}".to_owned();
    let data = tempfile::tempdir().expect("a folder");
    options.environment.push(("TWINKLE_DATA_DIRS".to_owned(), data.path().to_string_lossy().into_owned()));
    let model_path = options.model.clone();
    let node = Node::start(options).await.expect("the server starts");
    let (url, model_path) = (node.base_url(), Path::new(&model_path).to_string_lossy());
    let data = data.path().to_string_lossy();
    let mut arguments = vec!["--base-url", &url, "--model", node.model(), "--model-path", &model_path, "--data", &data];
    arguments.extend(files);
    if let Err(failure) = run_with_kit("twinkle/run.py", &arguments).await {
        panic!("{failure:#}\n--- server log ---\n{}", node.log());
    }
}

#[tokio::test]
async fn twinkles_own_client_trains_and_its_losses_are_their_formulas() {
    check(&["training", "losses", "checkpoints", "together"]).await;
}

#[tokio::test]
async fn twinkles_own_client_prepares_data_samples_and_shares_the_server() {
    check(&["data", "sampling", "tenants", "weaknesses"]).await;
}
