//! `kill -9` between acknowledged operations loses nothing and changes no bit.

use serde_json::Value;
use twinkle_tests::{Node, TinkerHttp};

use crate::fixture_node;

const TOKENS: [u32; 12] = [5, 9, 31, 7, 120, 44, 3, 250, 18, 66, 12, 5];
const OTHER_TOKENS: [u32; 7] = [8, 8, 199, 2, 75, 31, 40];

/// Submits steps `from..=to` (a forward-backward and an optimizer step each) and returns the request ids.
async fn submit_steps(client: &TinkerHttp, run: &str, from: u64, to: u64) -> Vec<String> {
    let mut requests = Vec::new();
    for step in from..=to {
        let tokens: &[u32] = if step % 2 == 0 { &TOKENS } else { &OTHER_TOKENS };
        requests.push(client.submit_forward_backward(run, 2 * step - 1, tokens).await.expect("accepted"));
        requests.push(client.submit_optim_step(run, 2 * step, 1e-2).await.expect("accepted"));
    }
    requests
}

async fn results(client: &TinkerHttp, requests: &[String]) -> Vec<Value> {
    let mut results = Vec::new();
    for request in requests {
        results.push(client.result(request).await.expect("a result"));
    }
    results
}

/// Six steps without interruption: every result, and the logprobs afterwards.
async fn uninterrupted(node: &Node) -> (Vec<Value>, Value) {
    let client = TinkerHttp::new(&node.base_url(), "tml-crash");
    let run = client.create_run(node.model(), 4, 11).await.expect("a run");
    let requests = submit_steps(&client, &run, 1, 6).await;
    let results = results(&client, &requests).await;
    let logprobs = client.forward(&run, 13, &TOKENS).await.expect("logprobs");
    (results, logprobs["loss_fn_outputs"].clone())
}

#[tokio::test]
async fn a_killed_server_continues_in_the_same_bits() {
    let (expected_results, expected_logprobs) = uninterrupted(&fixture_node("qwen3").await).await;

    let mut node = fixture_node("qwen3").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-crash");
    let run = client.create_run(node.model(), 4, 11).await.expect("a run");
    // Killed with results fetched, then with operations accepted and perhaps not even begun.
    let mut requests = submit_steps(&client, &run, 1, 2).await;
    results(&client, &requests).await;
    requests.extend(submit_steps(&client, &run, 3, 4).await);
    node.kill().expect("killed");
    node.start_again().await.expect("it starts again");
    requests.extend(submit_steps(&client, &run, 5, 5).await);
    node.kill().expect("killed");
    node.start_again().await.expect("it starts again");
    requests.extend(submit_steps(&client, &run, 6, 6).await);

    let results = results(&client, &requests).await;
    assert_eq!(results, expected_results, "every result, fetched before or after the crashes, is the same");
    let logprobs = client.forward(&run, 13, &TOKENS).await.expect("logprobs");
    assert_eq!(logprobs["loss_fn_outputs"], expected_logprobs, "the state is the same to the last bit");
}

#[tokio::test]
async fn accumulated_gradients_survive_a_kill() {
    let client_steps = |sequence: u64| (sequence, sequence + 1);
    let mut finals = Vec::new();
    for kill in [false, true] {
        let mut node = fixture_node("llama3").await;
        let client = TinkerHttp::new(&node.base_url(), "tml-crash");
        let run = client.create_run(node.model(), 2, 3).await.expect("a run");
        let (first, second) = client_steps(1);
        let one = client.submit_forward_backward(&run, first, &TOKENS).await.expect("accepted");
        let two = client.submit_forward_backward(&run, second, &OTHER_TOKENS).await.expect("accepted");
        results(&client, &[one, two]).await;
        if kill {
            node.kill().expect("killed");
            node.start_again().await.expect("it starts again");
        }
        let step = client.submit_optim_step(&run, 3, 1e-2).await.expect("accepted");
        results(&client, &[step]).await;
        finals.push(client.forward(&run, 4, &TOKENS).await.expect("logprobs")["loss_fn_outputs"].clone());
    }
    assert_eq!(finals[0], finals[1]);
}

#[tokio::test]
async fn a_result_is_delivered_again_after_a_restart() {
    let mut node = fixture_node("llama3").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-crash");
    let run = client.create_run(node.model(), 2, 3).await.expect("a run");
    let request = client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
    let before = client.result(&request).await.expect("a result");
    node.kill().expect("killed");
    node.start_again().await.expect("it starts again");
    assert_eq!(client.result(&request).await.expect("a result"), before);
    let repeated = client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
    assert_eq!(repeated, request, "a repeated number names the first operation");
}
