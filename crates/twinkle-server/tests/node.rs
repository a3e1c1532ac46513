//! A whole node in this process: a tiny real model, a real state folder, real HTTP.

use std::path::{Path, PathBuf};

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use twinkle_core::config::ServerConfig;
use twinkle_server::{LaunchError, RunningServer, TwinkleServer};

const MODEL: &str = "tiny/llama3";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/llama3")
}

/// All four applications over one tiny model, with their state in `folder`.
fn configuration(folder: &Path) -> String {
    let (model, state) = (fixture(), folder.join("state"));
    let (model, state) = (model.display(), state.display());
    format!(
        "
http_options: {{host: 127.0.0.1, port: 0}}
persistence: {{mode: file, file_path: {state}}}
applications:
  - {{name: server, route_prefix: /api/v1, import_path: server}}
  - name: model
    route_prefix: /api/v1/model/{MODEL}
    import_path: model
    args:
      model_id: {model}
      torch_dtype: float32
      device_group: {{name: model, ranks: 1, device_type: CPU}}
  - name: sampler
    route_prefix: /api/v1/sampler/{MODEL}
    import_path: sampler
    args:
      model_id: {model}
      sampler_type: torch
      engine_args: {{enable_lora: true}}
      device_group: {{name: sampler, ranks: 1, device_type: CPU}}
  - name: processor
    route_prefix: /api/v1/processor
    import_path: processor
    args: {{ncpu_proc_per_node: 1}}
"
    )
}

struct Node {
    server: RunningServer,
    client: Client,
}

impl Node {
    async fn start(folder: &Path) -> Self {
        Self::started(&configuration(folder)).await.unwrap()
    }

    async fn started(yaml: &str) -> Result<Self, LaunchError> {
        let config = ServerConfig::parse("node.yaml", yaml)?;
        let server = TwinkleServer::new(config).start().await?;
        Ok(Self { server, client: Client::new() })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address())
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).header("x-api-key", "tml-alice").send().await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Response {
        self.client.post(self.url(path)).header("x-api-key", "tml-alice").json(body).send().await.unwrap()
    }
}

async fn json_of(response: Response) -> Value {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_application_is_ready_and_describes_itself() {
    let folder = TempDir::new().unwrap();
    let node = Node::start(folder.path()).await;

    let ready = json_of(node.client.get(node.url("/readyz")).send().await.unwrap()).await;
    assert_eq!(ready["ready"], true);
    assert_eq!(ready["applications"].as_array().unwrap().len(), 4);
    let model = json_of(node.get(&format!("/api/v1/model/{MODEL}")).await).await;
    assert_eq!(
        (&model["import_path"], &model["base_model"], &model["health"]),
        (&json!("model"), &json!(MODEL), &json!("ready"))
    );
    let capabilities = json_of(node.get("/api/v1/get_server_capabilities").await).await;
    assert_eq!(capabilities["supported_models"][0]["model_name"], MODEL);
    assert_eq!(json_of(node.get("/api/v1/healthz").await).await, json!({"status": "ok"}));
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processor_encodes_and_decodes_at_its_prefix() {
    let folder = TempDir::new().unwrap();
    let node = Node::start(folder.path()).await;
    let encoded = json_of(node.post("/api/v1/processor/encode", &json!({"texts": ["hello"]})).await).await;
    let tokens = encoded["encoded"][0]["tokens"].clone();
    assert!(!tokens.as_array().unwrap().is_empty());
    let decoded = json_of(node.post("/api/v1/processor/decode", &json!({"sequences": [tokens]})).await).await;
    assert_eq!(decoded["texts"], json!(["hello"]));

    let misspelt = node.post("/api/v1/processor/encode", &json!({"text": ["hello"]})).await;
    assert_eq!(misspelt.status(), StatusCode::BAD_REQUEST);
    let body: Value = misspelt.json().await.unwrap();
    assert!(body["detail"].as_str().unwrap().contains("unknown field `text`"), "{body}");
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_the_node_that_made_it() {
    let folder = TempDir::new().unwrap();
    let node = Node::start(folder.path()).await;
    let created =
        json_of(node.post("/api/v1/create_session", &json!({"tags": [], "sdk_version": "0.38.0"})).await).await;
    let session = created["session_id"].clone();
    node.server.shutdown().await;

    let node = Node::start(folder.path()).await;
    let heartbeat = node.post("/api/v1/session_heartbeat", &json!({"session_id": session})).await;
    assert_eq!(heartbeat.status(), StatusCode::OK);
    let stranger = node.client.post(node.url("/api/v1/session_heartbeat")).header("x-api-key", "tml-bob");
    let foreign = stranger.json(&json!({"session_id": session})).send().await.unwrap();
    assert_eq!(foreign.status(), StatusCode::NOT_FOUND);
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_the_same_state_folder_is_refused() {
    let folder = TempDir::new().unwrap();
    let node = Node::start(folder.path()).await;
    let Err(LaunchError::Failed(error)) = Node::started(&configuration(folder.path())).await else {
        panic!("two nodes run on one state folder")
    };
    assert!(error.message.contains("state.sqlite"), "{error}");
    node.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_model_is_one_error_and_nothing_listens() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture().join(file), model.join(file)).unwrap();
    }
    let weights = std::fs::read(fixture().join("model.safetensors")).unwrap();
    std::fs::write(model.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let yaml = configuration(folder.path()).replace(&fixture().display().to_string(), &model.display().to_string());
    let Err(LaunchError::Failed(error)) = Node::started(&yaml).await else { panic!("a truncated file was served") };
    assert!(error.message.contains("model.safetensors"), "{error}");
}
