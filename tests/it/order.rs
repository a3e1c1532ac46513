//! Numbers decide the order of a run, not the order of arrival; a repeated number is not executed again.

use serde_json::{Value, json};
use tokio::task::JoinSet;
use twinkle_tests::{Node, TinkerHttp};

use crate::fixture_node;

const TOKENS: [u32; 9] = [5, 9, 31, 7, 120, 44, 3, 250, 18];

#[tokio::test]
async fn operations_wait_for_the_numbers_before_them() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-order");
    let mut finals = Vec::new();
    for order in [[1, 2, 3, 4], [4, 2, 3, 1]] {
        let run = client.create_run(node.model(), 4, 1).await.expect("a run");
        let mut requests = Vec::new();
        for sequence in order {
            let request = if sequence % 2 == 1 {
                client.submit_forward_backward(&run, sequence, &TOKENS).await
            } else {
                client.submit_optim_step(&run, sequence, 1e-2).await
            };
            requests.push(request.expect("accepted"));
        }
        for request in &requests {
            client.result(request).await.expect("a result");
        }
        finals.push(client.forward(&run, 5, &TOKENS).await.expect("logprobs")["loss_fn_outputs"].clone());
    }
    assert_eq!(finals[0], finals[1]);
}

#[tokio::test]
async fn a_resent_operation_gets_the_first_answer_and_a_different_one_is_refused() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-order");
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let first = client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
    let again = client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
    assert_eq!(first, again);
    let step = json!({ "model_id": run, "seq_id": 1, "adam_params": { "learning_rate": 1.0 } });
    let (status, body) = client.post("optim_step", &step).await.expect("an answer");
    assert_eq!(status, 400, "{body}");
}

#[tokio::test]
async fn a_refused_operation_uses_up_its_number() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-order");
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let bad = json!({ "model_id": run, "seq_id": 1, "adam_params": { "learning_rate": "fast" } });
    let (status, _) = client.post("optim_step", &bad).await.expect("an answer");
    assert!((400..500).contains(&status) && ![408, 409, 429].contains(&status), "{status}");
    let request = client.submit_forward_backward(&run, 2, &TOKENS).await.expect("accepted");
    let result = client.result(&request).await.expect("it does not wait for number 1");
    assert!(result["metrics"]["loss:sum"].is_number(), "{result}");
}

/// A custom loss computed by the client reserves two numbers for each chunk: forwards, and the backwards that follow
/// when the user's function has run. Whatever was submitted meanwhile has a higher number.
#[tokio::test]
async fn later_operations_wait_for_the_numbers_a_custom_loss_has_reserved() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-order");
    let others = [8, 8, 199, 2, 75, 31, 40];
    let mut finals = Vec::new();
    for step_is_early in [false, true] {
        let run = client.create_run(node.model(), 4, 1).await.expect("a run");
        let mut step = None;
        if step_is_early {
            step = Some(client.submit_optim_step(&run, 5, 1e-2).await.expect("accepted"));
        }
        // The second chunk comes first, as the SDK sends them.
        client.forward(&run, 1, &TOKENS).await.expect("logprobs");
        let second = client.forward(&run, 2, &others).await.expect("logprobs");
        assert!(second["loss_fn_outputs"].is_array(), "{second}");
        client.submit_forward_backward(&run, 4, &others).await.expect("accepted");
        client.submit_forward_backward(&run, 3, &TOKENS).await.expect("accepted");
        let step = match step {
            Some(step) => step,
            None => client.submit_optim_step(&run, 5, 1e-2).await.expect("accepted"),
        };
        let stepped = client.result(&step).await.expect("a result");
        assert!(stepped["metrics"].is_object(), "{stepped}");
        finals.push(client.forward(&run, 6, &TOKENS).await.expect("logprobs")["loss_fn_outputs"].clone());
    }
    assert_eq!(finals[0], finals[1]);
}

/// Submits as the SDK does, under an idempotency key.
fn submit_under(node: &Node, key: &str, route: &str, body: &Value) -> impl Future<Output = String> + Send + use<> {
    let post = reqwest::Client::new().post(format!("{}/api/v1/{route}", node.base_url()));
    let sent = post.header("X-API-Key", "tml-order").header("X-Idempotency-Key", key).json(body).send();
    async move {
        let answer: Value = sent.await.expect("an answer").json().await.expect("JSON");
        answer["request_id"].as_str().unwrap_or_else(|| panic!("no request id: {answer}")).to_owned()
    }
}

/// The same once for each key, all at once.
async fn submit_at_once(node: &Node, keys: &[String], route: &str, body: &Value) -> Vec<String> {
    let sent: JoinSet<_> = keys.iter().map(|key| submit_under(node, key, route, body)).collect();
    sent.join_all().await
}

#[tokio::test]
async fn whatever_layer_sends_an_operation_again_it_is_executed_once() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-order");
    let mut finals = Vec::new();
    for copies in [1, 8] {
        let run = client.create_run(node.model(), 4, 1).await.expect("a run");
        client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
        let step = json!({ "model_id": run, "seq_id": 2, "adam_params": { "learning_rate": 1e-2 } });
        // The transport keeps its key, the layer above takes a new one; all at once, as after a slow answer.
        let keys: Vec<_> = (0..copies).map(|copy| format!("stainless-python-retry-{}", copy / 2)).collect();
        let requests = submit_at_once(&node, &keys, "optim_step", &step).await;
        assert!(requests.iter().all(|request| *request == requests[0]), "{requests:?}");
        client.result(&requests[0]).await.expect("a result");
        assert_eq!(submit_under(&node, "late", "optim_step", &step).await, requests[0], "also when it is done");
        finals.push(client.forward(&run, 3, &TOKENS).await.expect("logprobs")["loss_fn_outputs"].clone());
    }
    assert_eq!(finals[0], finals[1]);
}

#[tokio::test]
async fn a_model_and_a_sample_that_are_asked_for_twice_are_made_once() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-order");
    let session = client.ask("create_session", &json!({ "tags": [] })).await.expect("a session");
    let model = json!({ "session_id": session["session_id"], "model_seq_id": 0, "base_model": node.model(),
                        "lora_config": { "rank": 2, "seed": 1 } });
    let made = submit_at_once(&node, &["a", "a", "b", "b"].map(str::to_owned), "create_model", &model).await;
    assert!(made.iter().all(|request| *request == made[0]), "{made:?}");
    client.result(&made[0]).await.expect("a model");
    let listed = client.get("training_runs").await.expect("a list");
    assert_eq!(listed["cursor"]["total_count"], 1, "{listed}");

    let wanted =
        json!({ "session_id": session["session_id"], "sampling_session_seq_id": 0, "base_model": node.model() });
    let sampler = client.ask("create_sampling_session", &wanted).await.expect("a sampling session");
    let again = client.ask("create_sampling_session", &wanted).await.expect("the same");
    assert_eq!(sampler, again);
    let sample = |number: u64| {
        json!({ "sampling_session_id": sampler["sampling_session_id"], "seq_id": number, "num_samples": 1,
                "prompt": { "chunks": [{ "tokens": [5, 9, 31] }] }, "sampling_params": { "max_tokens": 4 } })
    };
    let first = submit_under(&node, "a", "asample", &sample(0)).await;
    assert_eq!(submit_under(&node, "b", "asample", &sample(0)).await, first, "its answer was lost");
    let result = client.result(&first).await.expect("a sample");
    assert_eq!(submit_under(&node, "c", "asample", &sample(0)).await, first, "also when it is done");
    assert_eq!(client.result(&first).await.expect("a sample"), result, "drawn once, without a seed");
    assert_ne!(submit_under(&node, "d", "asample", &sample(1)).await, first, "a sampling retry has a new number");
}
