//! The examples, as a reader starts them: those of the client against one server, those of the libraries by themselves.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use twinkle_tests::Node;

use crate::fixture_node;

/// How long an example may take.
const LIMIT: Duration = Duration::from_mins(3);

/// Runs an example that cargo has built beside this test; what it printed.
async fn run(name: &str, arguments: &[&str]) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_node")).parent().expect("a folder").join("examples");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut command = Command::new(programs.join(name));
    command.args(arguments).current_dir(root).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(LIMIT, command.output()).await;
    let Output { status, stdout, stderr } = ended.expect("it ends in time").expect("it starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{name} ended with {status}:\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// Runs an example of the client against a node.
async fn against(node: &Node, name: &str, arguments: &[&str]) -> String {
    let url = node.base_url();
    let server = ["--url", &url, "--api-key", "tml-examples", "--model", node.model()];
    run(name, &[&server, arguments].concat()).await
}

/// The word after `before`.
fn word_after<'a>(text: &'a str, before: &str) -> &'a str {
    let rest = text.split_once(before).map_or("", |(_, rest)| rest);
    rest.split_whitespace().next().unwrap_or_else(|| panic!("`{before}` is not in:\n{text}"))
}

#[tokio::test]
async fn every_example_of_the_client_does_what_it_says() {
    let node = fixture_node("qwen3").await;

    let said = against(&node, "self_cognition", &["--steps", "4", "--batch-size", "4", "--rank", "4"]).await;
    let adapter = word_after(&said, "saved as").to_owned();
    assert!(said.contains("Before:") && said.contains("After:") && adapter.starts_with("tinker://"), "{said}");

    let weights = ["Hello", "Bye", "--weights", &adapter, "--samples", "2", "--max-tokens", "4", "--seed", "1"];
    let said = against(&node, "sample", &weights).await;
    assert!(said.contains(node.model()) && said.contains("\nHello\n") && said.contains("\nBye\n"), "{said}");
    assert_eq!(said.matches("mean logprob").count(), 4, "{said}");
    let again = against(&node, "sample", &weights).await;
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&said), sorted(&again), "the same seed gives the same answers");

    let said = against(&node, "lora", &["--epochs", "1", "--rank", "4", "--learning-rate", "1e-2"]).await;
    let loss = |text: &str, before: &str| -> f64 {
        word_after(text, before).trim_end_matches(',').parse().unwrap_or_else(|_| panic!("{text}"))
    };
    assert!(loss(&said, "held out") < loss(&said, "held-out loss"), "{said}");
    let state = word_after(&said, "saved as").to_owned();
    let said = against(&node, "lora", &["--epochs", "2", "--resume", &state]).await;
    assert!(said.contains("epoch 2:") && !said.contains("epoch 1:"), "it continues where it was: {said}");

    let said = against(&node, "grpo", &["--steps", "2", "--problems", "2", "--group", "4", "--max-tokens", "6"]).await;
    assert!(said.contains("step 1: reward") && said.contains("were right at first"), "{said}");

    let said = against(&node, "dpo", &["--steps", "5", "--batch-size", "2", "--learning-rate", "1e-2"]).await;
    assert!(loss(&said, "\nMargin") > 0.0, "{said}");

    let said = against(&node, "rl_letter", &["--steps", "1", "--group", "2", "--max-tokens", "4"]).await;
    assert!(said.contains("The letter `e` per answer"), "{said}");
}

#[tokio::test]
async fn the_network_is_trained_without_a_server() {
    let said = run("train_adapter", &["tests/golden/fixtures/qwen3", "--steps", "8"]).await;
    let losses: Vec<f64> = said.lines().filter_map(|line| line.split_once("loss ")?.1.parse().ok()).collect();
    assert_eq!(losses.len(), 8, "{said}");
    assert!(losses[7] < 0.9 * losses[0], "{said}");
    assert!(said.contains("adapter_model.safetensors"), "{said}");
}

#[tokio::test]
async fn tokens_are_sampled_without_a_server() {
    let said = run("sample_tokens", &["tests/golden/fixtures/qwen3", "5", "9", "31", "--max-tokens", "6"]).await;
    assert_eq!(said.lines().filter(|line| line.contains("logprob")).count(), 2, "{said}");
}
