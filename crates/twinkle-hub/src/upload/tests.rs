//! Uploads to hubs that answer as the real ones do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use parking_lot::Mutex;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

/// What a hub was asked: method and path, its credential, its body.
#[derive(Clone, Debug)]
struct Asked {
    what: String,
    credential: Option<String>,
    body: Vec<u8>,
}

/// Answers of paths that end like this.
type Instead = BTreeMap<&'static str, Vec<(StatusCode, Value)>>;

/// A hub that takes everything but what the test says.
#[derive(Clone)]
struct FakeHub {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Used up one by one.
    instead: Arc<Mutex<Instead>>,
}

impl FakeHub {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let hub = Self { address, asked: Arc::default(), instead: Arc::default() };
        let router = Router::new().fallback(answer).with_state(hub.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        hub
    }

    fn instead(&self, path: &'static str, status: StatusCode, body: Value) {
        self.instead.lock().entry(path).or_default().push((status, body));
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }

    fn body_of(&self, ending: &str) -> Vec<u8> {
        self.asked().into_iter().find(|asked| asked.what.ends_with(ending)).unwrap().body
    }
}

async fn answer(
    State(hub): State<FakeHub>,
    method: axum::http::Method,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path();
    let credential = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    hub.asked.lock().push(Asked { what: format!("{method} {path}"), credential, body: body.to_vec() });
    let instead = {
        let mut instead = hub.instead.lock();
        let waiting = instead.iter_mut().find(|(ending, answers)| path.ends_with(*ending) && !answers.is_empty());
        waiting.map(|(_, answers)| answers.remove(0))
    };
    if let Some((status, body)) = instead {
        return (status, Json(body)).into_response();
    }
    let objects = json!([{ "oid": "x", "actions": { "upload": { "href": format!("{}/storage/1", hub.address), "header": { "x-signed": "yes" } } } }]);
    let said = if path.contains("preupload") {
        json!({ "files": [{ "path": "adapter_model.safetensors", "uploadMode": "lfs" }, { "path": "adapter_config.json", "uploadMode": "regular" }] })
    } else if path.ends_with("/batch") && path.starts_with("/api/v1") {
        json!({ "Code": 200, "Success": true, "Data": { "objects": objects } })
    } else if path.ends_with("/batch") {
        json!({ "objects": objects })
    } else {
        json!({ "Code": 200, "Success": true })
    };
    Json(said).into_response()
}

/// A folder with an adapter, and an uploader that knows only this hub.
fn prepared(hub: &FakeHub, which: Hub) -> (tempfile::TempDir, Uploader, Upload) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_model.safetensors"), vec![7; 600_000]).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), b"{}").unwrap();
    let variables = [("HF_ENDPOINT", &hub.address), ("MODELSCOPE_ENDPOINT", &hub.address)];
    let environment = Environment::new(variables.map(|(name, value)| (name.to_owned(), value.clone())));
    let patience = Patience { first_wait: Duration::from_millis(1), ..Patience::default() };
    let upload = Upload {
        hub: which,
        repository: HubModel { organisation: "me".to_owned(), name: "adapter".to_owned(), revision: None },
        token: "secret-token".to_owned(),
        folder: folder.path().to_owned(),
        files: vec!["adapter_config.json".to_owned(), "adapter_model.safetensors".to_owned()],
    };
    (folder, Uploader::new(&environment, None, patience).unwrap(), upload)
}

#[tokio::test]
async fn hugging_face_gets_large_files_first_and_one_commit_of_all() {
    let hub = FakeHub::start().await;
    let (_folder, uploader, upload) = prepared(&hub, Hub::HuggingFace);
    let progress = Progress::default();
    uploader.upload(upload, &progress).await.unwrap();
    let paths: Vec<String> = hub.asked().into_iter().map(|asked| asked.what).collect();
    assert_eq!(
        paths,
        [
            "POST /api/repos/create",
            "POST /api/models/me/adapter/preupload/main",
            "POST /me/adapter.git/info/lfs/objects/batch",
            "PUT /storage/1",
            "POST /api/models/me/adapter/commit/main",
        ]
    );
    assert_eq!(hub.body_of("/storage/1").len(), 600_000);
    assert_eq!((progress.sent(), progress.total()), (600_002, 600_002));
    let commit = String::from_utf8(hub.body_of("/commit/main")).unwrap();
    let lines: Vec<Value> = commit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["key"], "header");
    assert_eq!((&lines[1]["key"], &lines[1]["value"]["content"]), (&json!("file"), &json!("e30=")));
    assert_eq!((&lines[2]["key"], &lines[2]["value"]["size"]), (&json!("lfsFile"), &json!(600_000)));
}

#[tokio::test]
async fn modelscope_gets_large_files_first_and_one_commit_of_all() {
    let hub = FakeHub::start().await;
    hub.instead("/api/v1/models/me/adapter", StatusCode::NOT_FOUND, json!({ "Code": 404, "Success": false }));
    let (_folder, uploader, upload) = prepared(&hub, Hub::ModelScope);
    let progress = Progress::default();
    uploader.upload(upload, &progress).await.unwrap();
    let paths: Vec<String> = hub.asked().into_iter().map(|asked| asked.what).collect();
    assert_eq!(
        paths,
        [
            "GET /api/v1/models/me/adapter",
            "POST /api/v1/models",
            "POST /api/v1/repos/models/me/adapter/info/lfs/objects/batch",
            "PUT /storage/1",
            "POST /api/v1/repos/models/me/adapter/commit/master",
        ]
    );
    let commit: Value = serde_json::from_slice(&hub.body_of("/commit/master")).unwrap();
    assert_eq!((&commit["actions"][0]["type"], &commit["actions"][1]["type"]), (&json!("normal"), &json!("lfs")));
    assert_eq!(progress.sent(), progress.total());
}

#[tokio::test]
async fn a_hub_that_is_busy_is_asked_again_and_bytes_are_counted_once() {
    let hub = FakeHub::start().await;
    for path in ["/api/repos/create", "/storage/1"] {
        hub.instead(path, StatusCode::SERVICE_UNAVAILABLE, json!({}));
    }
    let (_folder, uploader, upload) = prepared(&hub, Hub::HuggingFace);
    let progress = Progress::default();
    uploader.upload(upload, &progress).await.unwrap();
    assert_eq!((progress.sent(), progress.total()), (600_002, 600_002));
}

#[tokio::test]
async fn a_refusal_is_told_without_the_token_and_is_not_repeated() {
    let hub = FakeHub::start().await;
    hub.instead("/create", StatusCode::UNAUTHORIZED, json!({ "error": "Invalid username or password." }));
    let (_folder, uploader, upload) = prepared(&hub, Hub::HuggingFace);
    let error = uploader.upload(upload, &Progress::default()).await.unwrap_err();
    assert_eq!(error.message, "Hugging Face refused the repository `me/adapter`: 401: Invalid username or password");
    assert!(!error.to_string().contains("secret-token"));
    assert_eq!(hub.asked().len(), 1);
}

#[tokio::test]
async fn a_failure_that_modelscope_tells_with_status_200_is_one() {
    let hub = FakeHub::start().await;
    hub.instead("/commit/master", StatusCode::OK, json!({ "Code": 403, "Success": false, "Message": "no permission" }));
    let (_folder, uploader, upload) = prepared(&hub, Hub::ModelScope);
    let error = uploader.upload(upload, &Progress::default()).await.unwrap_err();
    assert_eq!(error.message, "ModelScope refused the commit: 403: no permission");
}

#[tokio::test]
async fn the_credential_goes_to_the_hub_and_nowhere_else() {
    let (hub, storage) = (FakeHub::start().await, FakeHub::start().await);
    let elsewhere = json!({ "upload": { "href": format!("{}/bucket", storage.address), "header": {} } });
    hub.instead("/batch", StatusCode::OK, json!({ "objects": [{ "oid": "x", "actions": elsewhere }] }));
    let (_folder, uploader, upload) = prepared(&hub, Hub::HuggingFace);
    uploader.upload(upload, &Progress::default()).await.unwrap();
    assert!(hub.asked().iter().all(|asked| asked.credential.as_deref() == Some("Bearer secret-token")));
    let [stored] = &storage.asked()[..] else { panic!("one file") };
    assert_eq!((stored.credential.as_deref(), stored.body.len()), (None, 600_000));
}

#[tokio::test]
async fn an_operator_who_forbids_the_network_forbids_uploads() {
    let hub = FakeHub::start().await;
    for (name, value, which, why) in [
        ("HF_HUB_OFFLINE", "1", Hub::HuggingFace, "Hugging Face: not asked: `HF_HUB_OFFLINE` is set"),
        ("TWINKLE_FORBID_HF", "1", Hub::HuggingFace, "Hugging Face: the operator does not allow it"),
        ("TWINKLE_HUB_UPLOADS", "hf", Hub::ModelScope, "ModelScope: the operator does not allow it"),
        ("TWINKLE_HUB_UPLOADS", "none", Hub::HuggingFace, "Hugging Face: the operator does not allow it"),
    ] {
        let environment = Environment::new([(name.to_owned(), value.to_owned())]);
        let uploader = Uploader::new(&environment, None, Patience::default()).unwrap();
        let (_folder, _, upload) = prepared(&hub, which);
        let error = uploader.upload(upload, &Progress::default()).await.unwrap_err();
        assert_eq!(error.message, format!("nothing is uploaded to {why}"));
    }
    let wrong = Environment::new([("TWINKLE_HUB_UPLOADS".to_owned(), "s3".to_owned())]);
    assert!(Uploader::new(&wrong, None, Patience::default()).is_err());
    // What the configuration says wins over the variable, but not over what forbids a hub altogether.
    let variables = [("TWINKLE_HUB_UPLOADS", "ms,hf"), ("TWINKLE_FORBID_HF", "1")];
    let environment = Environment::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
    for (allowed, which) in [(&[Hub::HuggingFace][..], Hub::ModelScope), (&[Hub::HuggingFace], Hub::HuggingFace)] {
        let uploader = Uploader::new(&environment, Some(allowed), Patience::default()).unwrap();
        let (_folder, _, upload) = prepared(&hub, which);
        let error = uploader.upload(upload, &Progress::default()).await.unwrap_err();
        assert!(error.message.ends_with("the operator does not allow it"), "{error}");
    }
}
