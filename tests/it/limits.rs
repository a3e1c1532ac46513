//! Limits of a real server: what a client over one of them sees, and that nothing is lost with a run that ends.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use twinkle_tests::{Node, NodeOptions, SdkVersion, TinkerHttp, run_script};

const TOKENS: [u32; 12] = [5, 9, 31, 7, 120, 44, 3, 250, 18, 66, 12, 5];

async fn node(change: impl FnOnce(&mut NodeOptions)) -> Node {
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen3");
    change(&mut options);
    Node::start(options).await.expect("the server starts")
}

/// Posts and returns the status, how long to wait, and the body.
async fn post(node: &Node, route: &str, body: &Value) -> (u16, Option<Duration>, Value) {
    let request = reqwest::Client::new().post(format!("{}/api/v1/{route}", node.base_url()));
    let response = request.header("X-API-Key", "tml-limits").json(body).send().await.expect("an answer");
    let header = |name: &str| response.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
    let wait = header("retry-after-ms").map(Duration::from_millis);
    assert_eq!(wait.is_some(), header("retry-after").is_some(), "both headers or none");
    let status = response.status().as_u16();
    (status, wait, response.json().await.expect("JSON"))
}

fn optim_step(run: &str, sequence: u64) -> Value {
    json!({ "model_id": run, "seq_id": sequence, "adam_params": { "learning_rate": 1e-3 } })
}

#[tokio::test]
async fn a_client_over_its_quota_is_told_how_long_to_wait_and_is_then_served() {
    let node = node(|options| options.settings = "task_queue: {rps_limit: 3, window_seconds: 15}".to_owned()).await;
    let client = TinkerHttp::new(&node.base_url(), "tml-limits");
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    client.submit_optim_step(&run, 1, 1e-3).await.expect("accepted");
    client.submit_optim_step(&run, 2, 1e-3).await.expect("accepted");
    let (status, wait, body) = post(&node, "optim_step", &optim_step(&run, 3)).await;
    assert_eq!((status, body["code"].as_str()), (429, Some("quota_exceeded")), "{body}");
    let wait = wait.expect("a time to wait");
    assert!(wait <= Duration::from_secs(5), "{wait:?}");

    let other = TinkerHttp::new(&node.base_url(), "tml-other");
    other.create_run(node.model(), 4, 1).await.expect("another tenant has its own quota");
    sleep(wait).await;
    let (status, _, body) = post(&node, "optim_step", &optim_step(&run, 3)).await;
    assert_eq!(status, 200, "{body}");
    let result = client.result(body["request_id"].as_str().expect("an id")).await.expect("a result");
    assert!(result["metrics"].is_object(), "the refused call used up no number: {result}");
}

#[tokio::test]
async fn the_sdk_keeps_to_a_small_quota_by_itself() {
    let node = node(|options| options.settings = "task_queue: {rps_limit: 8, window_seconds: 1}".to_owned()).await;
    let arguments = ["--base-url", &node.base_url(), "--model", node.model()];
    if let Err(failure) = run_script(SdkVersion::V0_38_0, "training_loop.py", &arguments).await {
        panic!("{failure:#}\n--- server log ---\n{}", node.log());
    }
}

async fn sampling_session(client: &TinkerHttp, model: &str) -> String {
    let session =
        client.ask("create_session", &json!({ "tags": [], "sdk_version": "0.38.0" })).await.expect("a session");
    let body = json!({ "session_id": session["session_id"], "sampling_session_seq_id": 0, "base_model": model });
    let opened = client.ask("create_sampling_session", &body).await.expect("a sampling session");
    opened["sampling_session_id"].as_str().expect("an id").to_owned()
}

fn sample(session: &str, number: u64, samples: u32, max_tokens: u32) -> Value {
    json!({
        "sampling_session_id": session,
        "seq_id": number,
        "num_samples": samples,
        "prompt": { "chunks": [{ "tokens": [5, 9, 31, 7] }] },
        "sampling_params": { "max_tokens": max_tokens, "stop": [], "temperature": 1.0, "seed": 1 },
    })
}

#[tokio::test]
async fn a_sample_that_waits_too_long_is_to_be_sent_again_and_one_that_runs_too_long_is_stopped() {
    let node = node(|options| {
        options.settings =
            "task_queue: {queue_timeout: 0.2, execution_timeout: 1, tps_limit: 0, rps_limit: 0}".to_owned();
        options.sampler_settings = "deployments: [{max_ongoing_requests: 1}]".to_owned();
    })
    .await;
    let client = TinkerHttp::new(&node.base_url(), "tml-limits");
    let session = sampling_session(&client, node.model()).await;
    let slow = client.submit("asample", &sample(&session, 0, 1024, 400)).await.expect("accepted");
    let waits = client.submit("asample", &sample(&session, 1, 1, 2)).await.expect("accepted");
    let (status, _, body) = post(&node, "retrieve_future", &json!({ "request_id": waits })).await;
    assert_eq!(status, 410, "the SDK sends a sample again on 410: {body}");
    assert!(body["detail"].as_str().expect("a text").contains("no turn within 0.2 s"), "{body}");

    let stopped = client.result(&slow).await.expect("an answer");
    assert_eq!(stopped["category"], "server", "{stopped}");
    assert!(stopped["error"].as_str().expect("a text").contains("stopped after 1 s"), "{stopped}");
    let again = client.submit("asample", &sample(&session, 1, 1, 2)).await.expect("accepted");
    let sampled = client.result(&again).await.expect("a result");
    assert_eq!(sampled["sequences"].as_array().map(Vec::len), Some(1), "its work is gone from the engine: {sampled}");
}

#[tokio::test]
async fn one_run_too_many_is_refused_with_what_to_do_and_closing_one_makes_room() {
    let node = node(|options| options.server_args = "{server_config: {per_token_model_limit: 2}}".to_owned()).await;
    let client = TinkerHttp::new(&node.base_url(), "tml-limits");
    let first = client.create_run(node.model(), 4, 1).await.expect("a run");
    client.create_run(node.model(), 4, 1).await.expect("a run");
    let refusal = format!("{:#}", client.create_run(node.model(), 4, 1).await.expect_err("one too many"));
    for part in ["400", "2 runs are open", &first, "unload_model"] {
        assert!(refusal.contains(part), "`{part}` is missing in {refusal}");
    }
    let unload = client.submit("unload_model", &json!({ "model_id": first })).await.expect("accepted");
    client.result(&unload).await.expect("unloaded");
    client.create_run(node.model(), 4, 1).await.expect("there is room again");
}

/// Trains two steps: the run, and the logprobs of its weights.
async fn trained(client: &TinkerHttp, model: &str) -> (String, Value) {
    let run = client.create_run(model, 4, 7).await.expect("a run");
    for step in 0..2 {
        client.submit_forward_backward(&run, 2 * step + 1, &TOKENS).await.expect("accepted");
        client.submit_optim_step(&run, 2 * step + 2, 1e-2).await.expect("accepted");
    }
    let logprobs = client.forward(&run, 5, &TOKENS).await.expect("logprobs");
    (run, logprobs["loss_fn_outputs"].clone())
}

/// Waits until the server has ended the run: the path it was saved under, as a refused operation tells it.
async fn saved_path(node: &Node, run: &str) -> String {
    let deadline = Instant::now() + Duration::from_mins(1);
    let client = TinkerHttp::new(&node.base_url(), "tml-limits");
    loop {
        let saved = client.get(&format!("training_runs/{run}/checkpoints")).await.expect("a list");
        if saved["checkpoints"].as_array().is_some_and(|saved| !saved.is_empty()) {
            break;
        }
        assert!(Instant::now() < deadline, "the run did not end:\n{}", node.log());
        sleep(Duration::from_millis(100)).await;
    }
    // The first ones may still be accepted, and then fail with the same text.
    for sequence in 6.. {
        let (status, _, body) = post(node, "optim_step", &optim_step(run, sequence)).await;
        let detail = body["detail"].as_str().unwrap_or_default().to_owned();
        if status == 410 {
            let path = detail.split('`').find(|part| part.starts_with("tinker://")).expect("a path").to_owned();
            assert!(path.contains(&format!("{run}/weights/expired-")), "{detail}");
            return path;
        }
        assert!(status == 200 && Instant::now() < deadline, "{status}: {body}");
    }
    unreachable!("the numbers do not run out")
}

/// Loads the checkpoint into a new run: the logprobs of its weights.
async fn loaded(client: &TinkerHttp, path: &str) -> Value {
    let session =
        client.ask("create_session", &json!({ "tags": [], "sdk_version": "0.38.0" })).await.expect("a session");
    let load = json!({ "session_id": session["session_id"], "model_seq_id": 0, "path": path, "optimizer": true });
    let created = client.result(&client.submit("load_weights", &load).await.expect("accepted")).await.expect("a run");
    let run = created["model_id"].as_str().expect("a model id");
    client.forward(run, 1, &TOKENS).await.expect("logprobs")["loss_fn_outputs"].clone()
}

#[tokio::test]
async fn the_run_of_a_silent_session_is_saved_and_goes_on_in_the_same_bits() {
    let node = node(|options| {
        options.server_args = "{server_config: {expiration_timeout: 3, cleanup_interval: 1}}".to_owned();
    })
    .await;
    let client = TinkerHttp::new(&node.base_url(), "tml-limits");
    let (run, logprobs) = trained(&client, node.model()).await;
    let path = saved_path(&node, &run).await;
    let session = run.split(':').next().expect("a session");
    let (status, _, _) = post(&node, "session_heartbeat", &json!({ "session_id": session })).await;
    assert_eq!(status, 410, "the SDK stops its heartbeat quietly");
    assert_eq!(loaded(&client, &path).await, logprobs);
}

#[tokio::test]
async fn a_run_at_the_end_of_its_lifetime_is_saved_and_goes_on_in_the_same_bits() {
    let node = node(|options| {
        options.model_args = "adapter_config: {adapter_max_lifetime: 3, adapter_timeout: 1}".to_owned();
        options.server_args = "{server_config: {cleanup_interval: 1}}".to_owned();
    })
    .await;
    let client = TinkerHttp::new(&node.base_url(), "tml-limits");
    let (run, logprobs) = trained(&client, node.model()).await;
    let path = saved_path(&node, &run).await;
    assert_eq!(loaded(&client, &path).await, logprobs);
}
