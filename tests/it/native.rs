//! The native protocol's training over plain requests: what a client of Python cannot see.

use std::path::Path;

use serde_json::{Value, json};
use twinkle_tests::{Node, NodeOptions};

use crate::fixture_node;

/// One session of one tenant with an adapter `a`.
struct Client {
    http: reqwest::Client,
    api: String,
    model: String,
    session: String,
}

impl Client {
    async fn new(node: &Node) -> Self {
        let (http, api) = (reqwest::Client::new(), format!("{}/api/v1", node.base_url()));
        let client = Self { http, api, model: node.model().to_owned(), session: String::new() };
        let (_, opened) = client.post("twinkle/create_session", json!({ "metadata": null })).await;
        let session = opened["session_id"].as_str().expect("a session").to_owned();
        Self { session, ..client }
    }

    async fn post(&self, route: &str, body: Value) -> (u16, Value) {
        let mut request = self.http.post(format!("{}/{route}", self.api)).bearer_auth("tml-native").json(&body);
        if !self.session.is_empty() {
            request = request.header("X-Twinkle-Session-Id", &self.session);
        }
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    /// An operation of adapter `a`, which must succeed.
    async fn ask(&self, operation: &str, mut body: Value) -> Value {
        body["adapter_name"] = "a".into();
        let (status, answer) = self.post(&format!("model/{}/twinkle/{operation}", self.model), body).await;
        assert_eq!(status, 200, "{operation}: {answer}");
        answer
    }

    /// The same for one that must fail.
    async fn refused(&self, operation: &str, mut body: Value) -> (u16, String) {
        body["adapter_name"] = "a".into();
        let (status, answer) = self.post(&format!("model/{}/twinkle/{operation}", self.model), body).await;
        assert!(status >= 400, "{operation}: {answer}");
        (status, answer["detail"].as_str().unwrap_or_default().to_owned())
    }

    async fn adapter(&self) -> String {
        let config = json!({ "r": 4, "target_modules": "all-linear" }).to_string();
        let added = self.ask("add_adapter_to_model", json!({ "config": config })).await;
        self.ask("set_optimizer", json!({ "optimizer_cls": "AdamW", "lr": 0.01 })).await;
        added["adapter_name"].as_str().expect("a name").to_owned()
    }

    async fn logps(&self) -> Value {
        self.ask("forward_only", json!({ "inputs": batch() })).await["result"]["logps"].clone()
    }
}

fn batch() -> Value {
    json!([
        { "input_ids": [5, 9, 31, 7, 120, 44, 3], "labels": [9, 31, 7, 120, 44, 3, -100] },
        { "input_ids": [5, 9, 31], "labels": [-100, 31, 7] },
    ])
}

#[tokio::test]
async fn the_way_data_and_steps_are_sent_changes_no_bit() {
    let node = fixture_node("qwen3").await;
    let client = Client::new(&node).await;
    client.adapter().await;
    let loss = json!({ "loss_cls": "GRPOLoss", "beta": 0.1 });
    client.ask("set_loss", loss).await;
    let given = json!({ "advantages": [1.0, -0.5], "ref_logps": client.logps().await });
    let with = |inputs: Value| {
        let mut body = given.clone();
        body["inputs"] = inputs;
        body
    };

    let at_once = client.ask("forward_backward", with(batch())).await["result"].clone();
    let norm = client.ask("clip_grad_norm", json!({})).await["value"].clone();
    client.ask("zero_grad", json!({})).await;

    client.ask("forward", json!({ "inputs": batch() })).await;
    assert_eq!(client.refused("backward", json!({})).await.0, 409, "there is no loss yet");
    let loss = client.ask("calculate_loss", given.clone()).await["result"].clone();
    assert_eq!(loss, at_once["loss"]);
    client.ask("backward", json!({})).await;
    assert_eq!(client.refused("backward", json!({})).await.0, 409, "its gradients would count twice");
    assert_eq!(client.ask("clip_grad_norm", json!({})).await["value"], norm, "step by step");
    client.ask("zero_grad", json!({})).await;

    // Padding never reaches the network, and packed texts do not see each other.
    let padded = json!([
        { "input_ids": [5, 9, 31, 7, 120, 44, 3], "labels": [9, 31, 7, 120, 44, 3, -100] },
        { "input_ids": [5, 9, 31, 0, 0], "labels": [-100, 31, 7, -100, -100], "attention_mask": [1, 1, 1, 0, 0] },
    ]);
    let packed = json!([{
        "input_ids": [5, 9, 31, 7, 120, 44, 3, 5, 9, 31],
        "labels": [9, 31, 7, 120, 44, 3, -100, -100, 31, 7],
        "position_ids": [0, 1, 2, 3, 4, 5, 6, 0, 1, 2],
    }]);
    for inputs in [padded, packed] {
        let found = client.ask("forward_backward", with(inputs.clone())).await["result"].clone();
        assert_eq!((&found["loss"], &found["logps"]), (&at_once["loss"], &at_once["logps"]), "{inputs}");
        assert_eq!(client.ask("clip_grad_norm", json!({})).await["value"], norm, "{inputs}");
        client.ask("zero_grad", json!({})).await;
    }
}

#[tokio::test]
async fn an_adapter_goes_on_after_a_power_cut_with_all_that_was_set() {
    let mut node = fixture_node("qwen3").await;
    let client = Client::new(&node).await;
    let run = client.adapter().await;
    client.ask("set_loss", json!({ "loss_cls": "CrossEntropyLoss" })).await;
    client.ask("set_lr_scheduler", json!({ "scheduler_cls": "ExponentialLR", "gamma": 0.5 })).await;
    client.ask("set_template", json!({ "template_cls": "Template", "max_length": 5 })).await;
    client.ask("add_metric", json!({ "metric_cls": "GRPOMetric", "is_training": true })).await;
    let first = client.ask("forward_backward", json!({ "inputs": batch(), "gradient_accumulation_steps": 2 })).await;
    let before = client.logps().await;
    node.kill().expect("a power cut");
    node.start_again().await.expect("the server starts again");

    assert_eq!(client.adapter_again().await, run, "it is the live one");
    assert_eq!(client.logps().await, before);
    let long = json!({ "inputs": [{ "messages": [{ "role": "user", "content": "far too long for five tokens" }] }] });
    let (status, text) = client.refused("forward_only", long).await;
    assert!(status == 400 && text.contains('5'), "the template is the one that was set: {text}");
    assert_eq!(client.refused("backward", json!({})).await.0, 409, "inputs of a forward are not kept over a restart");
    // The gradient of before the power cut is there: this fills the window.
    let mean = client.ask("forward_backward", json!({ "inputs": batch() })).await["result"]["loss"].clone();
    assert!(mean.as_f64().expect("a loss") < 10.0, "a mean, as the loss that was set: {mean}");
    client.ask("clip_grad_and_step", json!({})).await;
    let metrics = client.ask("calculate_metric", json!({})).await["values"].clone();
    assert_eq!(metrics["learning rate(param group 1)"], 0.005, "{metrics}");
    assert!(metrics["train/mean_new_logp"].is_number(), "{metrics}");
    let number = |value: &Value| value.as_f64().expect("a number");
    let both = f64::midpoint(number(&first["result"]["loss"]), number(&mean));
    assert!((number(&metrics["loss"]) - both).abs() < 1e-9, "the pass before the power cut counts: {metrics}");
    assert_ne!(client.logps().await, before);
}

/// Puts files of a checkpoint where Hugging Face's own tool would have put them.
fn publish(cache: &Path, repository: &str, folder: &str, names: &[&str]) {
    let snapshot = cache.join(format!("models--{}/snapshots/main", repository.replace('/', "--")));
    std::fs::create_dir_all(&snapshot).expect("a folder of the cache");
    for name in names {
        std::fs::copy(Path::new(folder).join(name), snapshot.join(name)).expect("a file of the checkpoint");
    }
}

#[tokio::test]
async fn an_adapter_in_a_hubs_cache_is_loaded_described_and_needed_only_once() {
    let cache = tempfile::tempdir().expect("a folder");
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen3");
    options.environment.push(("TWINKLE_OFFLINE".to_owned(), "1".to_owned()));
    options.environment.push(("HF_HUB_CACHE".to_owned(), cache.path().to_string_lossy().into_owned()));
    let mut node = Node::start(options).await.expect("the server starts");
    let trained = Client::new(&node).await;
    trained.adapter().await;
    trained.ask("forward_backward", json!({ "inputs": batch() })).await;
    trained.ask("clip_grad_and_step", json!({})).await;
    let saved = json!({ "name": "x", "save_optimizer": true, "consumed_train_samples": 2 });
    let folder = trained.ask("save", saved).await["checkpoint_dir"].as_str().expect("a folder").to_owned();
    let adapter = ["adapter_config.json", "adapter_model.safetensors"];
    publish(cache.path(), "me/plain", &folder, &adapter);
    publish(cache.path(), "me/whole", &folder, &[&adapter[..], &["run.json", "optimizer.safetensors"]].concat());
    let expected = trained.logps().await;

    let client = Client::new(&node).await;
    let run = client.adapter().await;
    client.ask("load", json!({ "name": "hf://me/plain" })).await;
    assert_eq!(client.logps().await, expected);
    let (status, text) = client.refused("resume_from_checkpoint", json!({ "name": "hf://me/plain" })).await;
    assert!(status == 400 && text.contains("no optimizer"), "{status}: {text}");
    let (status, text) = client.refused("load", json!({ "name": "ms://me/absent" })).await;
    assert!(status == 404 && text.contains("may be put into"), "{status}: {text}");
    let progress = client.ask("resume_from_checkpoint", json!({ "name": "me/whole" })).await["result"].clone();
    assert_eq!((&progress["cur_step"], &progress["consumed_train_samples"]), (&json!(1), &json!(2)));
    let door = client.http.get(format!("{}/v1/models", node.base_url())).bearer_auth("tml-native").send().await;
    assert!(door.expect("an answer").headers().contains_key("x-twinkle-replica-id"));
    let (_, info) = client.post("twinkle/weights_info", json!({ "twinkle_path": "hf://me/whole" })).await;
    assert_eq!((&info["base_model"], &info["lora_rank"]), (&json!(node.model()), &json!(4)), "{info}");

    // A copy is the run's own: neither the hub nor its cache is asked again.
    std::fs::remove_dir_all(cache.path()).expect("the cache is emptied");
    node.kill().expect("a power cut");
    node.start_again().await.expect("the server starts again");
    assert_eq!(client.logps().await, expected);
    let listed = client.http.get(format!("{}/twinkle/training_runs/{run}/checkpoints", client.api));
    let listed: Value = listed.bearer_auth("tml-native").send().await.expect("an answer").json().await.expect("JSON");
    let ids: Vec<&str> = listed["checkpoints"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["checkpoint_id"].as_str())
        .collect();
    assert_eq!(ids.len(), 2, "one for each, whatever failed: {ids:?}");
    assert!(ids[0].starts_with("weights/hub_plain_") && ids[1].starts_with("weights/hub_whole_"), "{ids:?}");
}

impl Client {
    async fn adapter_again(&self) -> String {
        let config = json!({ "r": 4, "target_modules": "all-linear" });
        let added = self.ask("add_adapter_to_model", json!({ "config": config })).await;
        added["adapter_name"].as_str().expect("a name").to_owned()
    }
}

#[tokio::test]
async fn requests_at_once_are_done_one_after_the_other_and_an_ended_adapter_begins_anew() {
    let node = fixture_node("qwen3").await;
    let client = Client::new(&node).await;
    let run = client.adapter().await;
    let fresh = client.logps().await;
    let pass = || client.ask("forward_backward", json!({ "inputs": batch() }));
    let found: [Value; 3] = tokio::join!(pass(), pass(), pass()).into();
    assert!(found.iter().all(|answer| *answer == found[0]), "none of them sees half of another");
    client.ask("clip_grad_and_step", json!({})).await;
    let values = client.ask("calculate_metric", json!({})).await["values"].clone();
    assert_eq!(values["iters"], 2, "three passes, counted from 0: {values}");

    let changed = json!({ "config": { "r": 8, "target_modules": "all-linear" } });
    assert_eq!(client.refused("add_adapter_to_model", changed).await.0, 409);
    let (status, _) = client.post("unload_model", json!({ "model_id": run })).await;
    assert_eq!(status, 200);
    // The Tinker protocol answers before it is done.
    while client.post(&format!("model/{}/twinkle/zero_grad", client.model), json!({ "adapter_name": "a" })).await.0
        == 200
    {}
    assert_eq!(client.refused("forward_only", json!({ "inputs": batch() })).await.0, 404);
    let again = client.adapter().await;
    assert_eq!(again, format!("{run}~2"), "another run under the same name");
    assert_eq!(client.logps().await, fresh, "an adapter begins as the base model");
}
