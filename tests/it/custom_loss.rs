//! Losses that clients write, run by the server: requests as the SDK's tracer made them (`tests/golden/custom_losses.py`).

use serde_json::{Value, json};
use twinkle_tests::{TinkerHttp, run_with_torch};

use crate::fixture_node;

const TOKENS: [u32; 6] = [5, 9, 31, 7, 120, 44];
const TARGETS: [u32; 6] = [9, 31, 7, 120, 44, 3];
const ADVANTAGES: [f64; 6] = [0.5, -1.0, 0.0, 2.0, 1.0, -0.25];

/// The request the SDK sends for one of the traced losses.
fn creation(session: &str, number: u64, loss: &str) -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/custom_losses.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).expect("the golden losses")).expect("JSON");
    let cases = golden["cases"].as_array().expect("cases");
    let case = cases.iter().find(|case| case["name"] == loss).expect("the loss");
    json!({
        "session_id": session,
        "custom_loss_seq_id": number,
        "name": loss,
        "inputs": case["inputs"],
        "graph": case["graph"],
        "type": "create_custom_loss",
    })
}

async fn create(client: &TinkerHttp, body: &Value) -> Value {
    let request = client.submit("create_custom_loss", body).await.expect("accepted");
    client.result(&request).await.expect("a result")
}

fn tensor(values: &[f64]) -> Value {
    json!({ "data": values, "dtype": "float32" })
}

/// An operation on one datum with these inputs beside its targets.
async fn train(client: &TinkerHttp, run: &str, number: u64, loss: &str, config: &Value, inputs: &Value) -> Value {
    let mut inputs = inputs.clone();
    inputs["target_tokens"] = json!({ "data": TARGETS, "dtype": "int64" });
    let body = json!({
        "model_id": run,
        "seq_id": number,
        "forward_backward_input": {
            "loss_fn": loss,
            "loss_fn_config": config,
            "data": [{ "model_input": { "chunks": [{ "tokens": TOKENS }] }, "loss_fn_inputs": inputs }],
        },
    });
    let request = client.submit("forward_backward", &body).await.expect("accepted");
    client.result(&request).await.expect("a result")
}

fn logprobs(result: &Value) -> Vec<f64> {
    let data = result["loss_fn_outputs"][0]["logprobs"]["data"].as_array();
    data.unwrap_or_else(|| panic!("no logprobs: {result}")).iter().filter_map(Value::as_f64).collect()
}

/// What every traced loss of the golden file reads; `w` has no dimension, `m` two.
fn inputs(sampled: &[f64]) -> Value {
    json!({
        "a": tensor(&ADVANTAGES),
        "b": tensor(sampled),
        "m": { "data": vec![0.5; 12], "dtype": "float32", "shape": [6, 2] },
        "w": { "data": [0.9], "dtype": "float32", "shape": [] },
        "n": { "data": [0, 1, 2, 3, 4, 5], "dtype": "int64" },
        "z": { "data": [0, 1, 1, 1, 1, 1], "dtype": "int64" },
    })
}

fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap_or_else(|| panic!("{found}"));
    assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{found} instead of {expected}");
}

#[tokio::test]
async fn a_traced_loss_trains_as_the_same_loss_by_weights_does() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-custom");
    let mut after = Vec::new();
    for by_server in [true, false] {
        let run = client.create_run(node.model(), 4, 1).await.expect("a run");
        let session = run.strip_suffix(":train:0").expect("the usual form");
        let weighted = |weights: &[f64]| json!({ "weights": tensor(weights) });
        let seen = train(&client, &run, 1, "cross_entropy", &json!({}), &weighted(&[0.0; 6])).await;
        let before = logprobs(&seen);
        // A sampler that was a little off, so that no ratio is 1 and some are clipped.
        let sampled: Vec<f64> =
            before.iter().enumerate().map(|(place, value)| value + 0.1 * (place as f64 - 2.5)).collect();
        let mask = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let counted: f64 = mask.iter().sum();
        if by_server {
            let created = create(&client, &creation(session, 0, "entropy_penalised")).await;
            assert_eq!(created["type"], "create_custom_loss", "{created}");
            assert_eq!(create(&client, &creation(session, 0, "entropy_penalised")).await, created);
            let config = json!({ "loss_id": created["loss_id"] });
            let result = train(&client, &run, 2, "custom", &config, &inputs(&sampled)).await;
            assert_eq!(logprobs(&result), before, "{result}");
            let policy: f64 = (0..6).map(|i| -(before[i] - sampled[i]).exp() * ADVANTAGES[i] * mask[i]).sum();
            let entropy: f64 = (0..6).map(|i| -before[i].exp() * before[i] * mask[i]).sum::<f64>() / counted;
            close(&result["metrics"]["loss:sum"], policy - 0.01 * entropy);
            close(&result["metrics"]["custom/entropy:mean"], entropy);
        } else {
            // What the SDK does on the client: minus the derivatives as weights.
            let weights: Vec<f64> = (0..6)
                .map(|i| {
                    let policy = -(before[i] - sampled[i]).exp() * ADVANTAGES[i];
                    let entropy = -before[i].exp() * (1.0 + before[i]) / counted;
                    -(policy - 0.01 * entropy) * mask[i]
                })
                .collect();
            let result = train(&client, &run, 2, "cross_entropy", &json!({}), &weighted(&weights)).await;
            assert!(result["metrics"]["loss:sum"].is_number(), "{result}");
        }
        let step = client.submit_optim_step(&run, 3, 1e-2).await.expect("accepted");
        client.result(&step).await.expect("a step");
        let end = train(&client, &run, 4, "cross_entropy", &json!({}), &weighted(&[0.0; 6])).await;
        let end = logprobs(&end);
        assert!(end.iter().zip(&before).any(|(end, before)| (end - before).abs() > 1e-3), "nothing was learned");
        after.push(end);
    }
    for (server, client) in after[0].iter().zip(&after[1]) {
        assert!((server - client).abs() < 1e-4, "{server} and {client}");
    }
}

#[tokio::test]
async fn a_loss_that_cannot_be_run_says_why_and_leaves_the_run_alone() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-custom");
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let session = run.strip_suffix(":train:0").expect("the usual form");
    let text = |result: &Value| {
        assert_eq!(result["category"], "user", "{result}");
        result["error"].as_str().unwrap_or_default().to_owned()
    };

    let mut random = creation(session, 0, "dpo");
    let nodes = random["graph"]["nodes"].as_array_mut().expect("nodes");
    let place = nodes.iter().position(|node| node["op"] == "call_function").expect("a function");
    nodes[place]["target"] = json!("torch.rand_like");
    let error = text(&create(&client, &random).await);
    assert!(error.contains("`torch.rand_like`") && error.contains("node `"), "{error}");

    let seen = train(&client, &run, 1, "cross_entropy", &json!({}), &json!({ "weights": tensor(&[0.0; 6]) })).await;
    let before = logprobs(&seen);
    let unknown = format!("{session}:loss:9");
    let cases = [
        (json!({}), "needs the setting `loss_id`"),
        (json!({ "loss_id": unknown }), "does not exist"),
        (json!({ "loss_id": "nonsense" }), "custom loss `nonsense` does not exist"),
    ];
    let mut number = 2;
    for (config, expected) in cases {
        let error = text(&train(&client, &run, number, "custom", &config, &inputs(&before)).await);
        assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        number += 1;
    }

    let created = create(&client, &creation(session, 1, "focal")).await;
    let config = json!({ "loss_id": created["loss_id"] });
    let mut missing = inputs(&before);
    missing.as_object_mut().expect("inputs").remove("w");
    let error = text(&train(&client, &run, number, "custom", &config, &missing).await);
    assert!(error.contains("there is no `w`"), "{error}");
    let mut flat = inputs(&before);
    flat["w"] = tensor(&[1.0, 2.0]);
    let error = text(&train(&client, &run, number + 1, "custom", &config, &flat).await);
    assert!(error.contains("`w` has rank 1") && error.contains("rank 0"), "{error}");

    // Another session of the same user does not have it.
    let other = client.create_run(node.model(), 4, 1).await.expect("a run");
    let error = text(&train(&client, &other, 1, "custom", &config, &inputs(&before)).await);
    assert!(error.ends_with("does not exist"), "{error}");

    // Nothing was accumulated: a step with no gradient moves nothing.
    let step = client.submit_optim_step(&run, number + 2, 1e-2).await.expect("accepted");
    client.result(&step).await.expect("a step");
    let unweighted = json!({ "weights": tensor(&[0.0; 6]) });
    let seen = train(&client, &run, number + 3, "cross_entropy", &json!({}), &unweighted).await;
    assert_eq!(logprobs(&seen), before);
}

#[tokio::test]
async fn a_run_is_rebuilt_without_the_list_of_losses() {
    let mut node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-custom");
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let session = run.strip_suffix(":train:0").expect("the usual form").to_owned();
    let created = create(&client, &creation(&session, 0, "clipped_ppo")).await;
    let config = json!({ "loss_id": created["loss_id"] });
    let sampled: Vec<f64> = (0..6).map(|place| -4.0 - 0.3 * f64::from(place)).collect();
    train(&client, &run, 1, "custom", &config, &inputs(&sampled)).await;
    let step = client.submit_optim_step(&run, 2, 1e-2).await.expect("accepted");
    client.result(&step).await.expect("a step");
    let seen = train(&client, &run, 3, "custom", &config, &inputs(&sampled)).await;
    assert!(seen["metrics"]["loss:sum"].is_number(), "{seen}");

    node.kill().expect("killed");
    node.start_again().await.expect("started again");
    let client = TinkerHttp::new(&node.base_url(), "tml-custom");
    let again = train(&client, &run, 4, "custom", &config, &inputs(&sampled)).await;
    assert_eq!(logprobs(&again), logprobs(&seen));
    assert_eq!(again["metrics"], seen["metrics"]);
    assert_eq!(create(&client, &creation(&session, 0, "clipped_ppo")).await, created);
}

#[tokio::test]
async fn the_sdk_gets_from_the_server_what_it_would_compute_itself() {
    let node = fixture_node("qwen3").await;
    let arguments = ["--base-url", &node.base_url(), "--model", node.model()];
    if let Err(failure) = run_with_torch("custom_losses.py", &arguments).await {
        panic!("{failure:#}\n--- server log ---\n{}", node.log());
    }
}
