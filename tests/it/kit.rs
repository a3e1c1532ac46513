//! Twinkle's own Python client, the unmodified package `twinkle-kit`, against a running server.
//!
//! `tests/python/twinkle` has the scenarios. Its imports alone take ten seconds, so one process runs all of them.

use twinkle_tests::{Node, NodeOptions, run_with_first_kit, run_with_kit};

const VARIANT: &str = "qwen3";
/// Files of scenarios, in the order of their questions: what a step does, then what tenants see of each other.
const SCENARIOS: [&str; 9] =
    ["training", "losses", "checkpoints", "data", "sampling", "tenants", "weaknesses", "together", "full"];

#[tokio::test]
async fn twinkles_own_client_trains_samples_prepares_data_and_meets_none_of_the_originals_weaknesses() {
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), VARIANT);
    // Scenarios of one process are many adapters, and nobody else is there.
    options.model_args = "max_loras: 256\n      queue_config: {rps_limit: 0, tps_limit: 0}".to_owned();
    options.sampler_args = "queue_config: {rps_limit: 0, tps_limit: 0}".to_owned();
    options.environment.push(("TWINKLE_OFFLINE".to_owned(), "1".to_owned()));
    let data = tempfile::tempdir().expect("a folder");
    options.environment.push(("TWINKLE_DATA_DIRS".to_owned(), data.path().to_string_lossy().into_owned()));
    let model_path = options.model.to_string_lossy().into_owned();
    let node = Node::start(options).await.expect("the server starts");
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), VARIANT);
    options.model_args = "train_mode: full".to_owned();
    let full = Node::start(options).await.expect("the server starts");
    let (url, full_url) = (node.base_url(), full.base_url());
    let data = data.path().to_string_lossy();
    let mut arguments = vec!["--base-url", &url, "--model", node.model(), "--model-path", &model_path, "--data", &data];
    arguments.extend(["--full-url", &full_url]);
    arguments.extend(SCENARIOS);
    if let Err(failure) = run_with_kit("twinkle/run.py", &arguments).await {
        panic!("{failure:#}\n--- server log ---\n{}", node.log());
    }
}

#[tokio::test]
async fn the_first_generation_of_twinkles_client_trains_and_samples() {
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), VARIANT);
    options.first_generation = true;
    options.settings = "server_type: twinkle".to_owned();
    let data = tempfile::tempdir().expect("a folder");
    options.environment.push(("TWINKLE_DATA_DIRS".to_owned(), data.path().to_string_lossy().into_owned()));
    let node = Node::start(options).await.expect("the server starts");
    let (url, data) = (node.base_url(), data.path().to_string_lossy());
    let arguments = ["--base-url", &url, "--model", node.model(), "--data", &data];
    if let Err(failure) = run_with_first_kit("twinkle/first_generation.py", &arguments).await {
        panic!("{failure:#}\n--- server log ---\n{}", node.log());
    }
}
