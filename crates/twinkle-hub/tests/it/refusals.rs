//! What an operator reads when a model cannot be had.

use twinkle_core::ErrorCode;

use crate::Machine;
use crate::stand_in::{COMMIT, StandIn};

#[tokio::test]
async fn a_missing_model_says_everywhere_it_was_looked_for() {
    let hub = StandIn::start().await;
    let machine = Machine::with(&hub);
    insta::assert_snapshot!(machine.refusal("org/name", &hub.url()).await, @r"the model `org/name` cannot be had; looked at `<home>/org/name` (not there), `<home>/.cache/modelscope/models/org--name/snapshots/master` (not there), `<home>/.cache/modelscope/models/org/name` (not there), `<home>/.cache/modelscope/hub/models/org/name` (not there), `<home>/.cache/modelscope/org/name` (not there), `<home>/.cache/modelscope/hub/org/name` (not there), `<home>/.cache/huggingface/hub/models--org--name/snapshots/main` (not there), `<hub>` (404: model not exists) (hint: check the name and the revision at `<hub>/models/org/name`; if it is on Hugging Face, write `hf://org/name`)");
    insta::assert_snapshot!(machine.refusal("hf://org/name@v2", &hub.url()).await, @r"the model `hf://org/name@v2` cannot be had; looked at `<home>/.cache/huggingface/hub/models--org--name/snapshots/v2` (not there), `<hub>` (404: Repository not found) (hint: check the name and the revision at `<hub>/org/name`)");
    insta::assert_snapshot!(machine.refusal("./org/name", &hub.url()).await, @r"the model `./org/name` cannot be had; looked at `<home>/org/name` (not there) (hint: give the folder that holds `config.json`, a `.gguf` file, or a model on a hub: `ms://org/name`, `hf://org/name`)");
    assert_eq!(machine.folder("ms://org/name").await.err().unwrap().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_private_or_gated_model_says_how_to_log_in() {
    let hub = StandIn::start().await;
    hub.refuse("org/private", 401, "Invalid username or password.");
    hub.refuse("org/gated", 403, "Access to model org/gated is restricted.");
    let mut machine = Machine::with(&hub);
    insta::assert_snapshot!(machine.refusal("hf://org/private", &hub.url()).await, @r"the model `hf://org/private` cannot be had; looked at `<home>/.cache/huggingface/hub/models--org--private/snapshots/main` (not there), `<hub>` (401: Invalid username or password) (hint: check the name; if the model is private, set `HF_TOKEN`, or log in with `hf auth login`)");
    insta::assert_snapshot!(machine.refusal("ms://org/gated", &hub.url()).await, @r"the model `ms://org/gated` cannot be had; looked at `<home>/.cache/modelscope/models/org--gated/snapshots/master` (not there), `<home>/.cache/modelscope/models/org/gated` (not there), `<home>/.cache/modelscope/hub/models/org/gated` (not there), `<home>/.cache/modelscope/org/gated` (not there), `<home>/.cache/modelscope/hub/org/gated` (not there), `<hub>` (403: Access to model org/gated is restricted) (hint: the model is private or gated: accept its terms at `<hub>/models/org/gated`, and set `MODELSCOPE_API_TOKEN`)");
    machine.set("HF_TOKEN", "secret");
    let text = machine.refusal("hf://org/gated", &hub.url()).await;
    insta::assert_snapshot!(text, @r"the model `hf://org/gated` cannot be had; looked at `<home>/.cache/huggingface/hub/models--org--gated/snapshots/main` (not there), `<hub>` (403: Access to model org/gated is restricted) (hint: the model is private or gated: accept its terms at `<hub>/org/gated`, and the token of `HF_TOKEN` or of `hf auth login` must be allowed to read it)");
    assert!(!text.contains("secret"));
    assert_eq!(machine.folder("hf://org/gated").await.err().unwrap().code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn a_hub_that_cannot_be_reached_says_so() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}");
    let text = Machine::with_endpoint(&url).refusal("hf://org/name", &url).await;
    assert!(text.contains("Connection refused"), "{text}");
    assert!(text.ends_with("(hint: check the network; behind a proxy set `HTTPS_PROXY`, for a mirror set `HF_ENDPOINT`, or give the model's folder)"), "{text}");
}

#[tokio::test]
async fn offline_nobody_is_asked() {
    let hub = StandIn::start().await;
    let mut machine = Machine::with(&hub);
    machine.set("TRANSFORMERS_OFFLINE", "1");
    insta::assert_snapshot!(machine.refusal("hf://org/name", &hub.url()).await, @r"the model `hf://org/name` cannot be had; looked at `<home>/.cache/huggingface/hub/models--org--name/snapshots/main` (not there), `<hub>` (not asked: `TRANSFORMERS_OFFLINE` is set) (hint: go online once, or download it elsewhere and give its folder as `model_id`)");
    machine.set("TWINKLE_OFFLINE", "1");
    insta::assert_snapshot!(machine.refusal("org/name", &hub.url()).await, @r"the model `org/name` cannot be had; looked at `<home>/org/name` (not there), `<home>/.cache/modelscope/models/org--name/snapshots/master` (not there), `<home>/.cache/modelscope/models/org/name` (not there), `<home>/.cache/modelscope/hub/models/org/name` (not there), `<home>/.cache/modelscope/org/name` (not there), `<home>/.cache/modelscope/hub/org/name` (not there), `<home>/.cache/huggingface/hub/models--org--name/snapshots/main` (not there), `<hub>` (not asked: `TWINKLE_OFFLINE` is set) (hint: go online once, or download it elsewhere and give its folder as `model_id`)");
    assert!(hub.seen().is_empty());
}

#[tokio::test]
async fn a_model_without_safetensors_says_what_it_has_instead() {
    let hub = StandIn::start().await;
    let machine = Machine::with(&hub);
    let file = |name: &'static str| (name, b"x".to_vec());
    hub.publish("org/pickled", &[file("config.json"), file("pytorch_model.bin")]);
    hub.publish("org/quantised", &[file("name.Q4_K_M.gguf")]);
    hub.publish("org/adapter", &[file("adapter_config.json"), file("adapter_model.safetensors")]);
    insta::assert_snapshot!(machine.refusal("hf://org/pickled", &hub.url()).await, @r"`org/pickled` is there, but has no `config.json` with `model.safetensors` or `model.safetensors.index.json` beside it (hint: pickled weights can carry code and are never read; look for a version with safetensors)");
    insta::assert_snapshot!(machine.refusal("ms://org/quantised", &hub.url()).await, @r"`org/quantised` is there, but has no `config.json` with `model.safetensors` or `model.safetensors.index.json` beside it (hint: it holds GGUF files: download the one you want and give it as `model_id: ./name.gguf`)");
    insta::assert_snapshot!(machine.refusal("ms://org/adapter", &hub.url()).await, @r"`org/adapter` is there, but has no `config.json` with `model.safetensors` or `model.safetensors.index.json` beside it (hint: give a model that can be loaded on its own, not an adapter or a part of one)");
}

#[tokio::test]
async fn an_index_that_names_what_is_not_there_is_refused() {
    let hub = StandIn::start().await;
    let index = br#"{"weight_map": {"a": "1.safetensors", "b": "../2.safetensors"}}"#;
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors.index.json", index.to_vec())];
    hub.publish("org/name", &files);
    let machine = Machine::with(&hub);
    insta::assert_snapshot!(machine.refusal("hf://org/name", &hub.url()).await, @r"`org/name` lacks `../2.safetensors`, which its index names");
}

#[tokio::test]
async fn an_answer_that_is_no_hubs_is_named() {
    let hub = StandIn::start().await;
    // A path below the endpoint that a hub never has.
    let url = format!("{}/org/name/resolve/{COMMIT}", hub.url());
    let text = Machine::with_endpoint(&url).refusal("ms://org/name", &url).await;
    assert!(text.contains("404"), "{text}");
}

#[tokio::test]
async fn hugging_face_can_be_forbidden() {
    let hub = StandIn::start().await;
    let mut machine = Machine::with(&hub);
    machine.set("TWINKLE_FORBID_HF", "1");
    insta::assert_snapshot!(machine.refusal("hf://org/name", &hub.url()).await, @r"`hf://org/name` is on Hugging Face, which `TWINKLE_FORBID_HF` forbids (hint: give the model as `ms://org/name` or as a folder)");
    assert!(hub.seen().is_empty());
}
