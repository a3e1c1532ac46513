//! Uploads as a client sees them, to a hub that answers as the real one does.

use axum::Router;
use axum::response::Json;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use twinkle_core::error::{Error, ErrorCode};
use twinkle_core::ids::{RequestId, TenantId};
use twinkle_core::state::UploadRecord;

use super::Uploads;
use crate::twinkle::tests::{Gateway, Said};

/// A hub that takes everything.
async fn hub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let place = format!("{address}/storage");
    let router = Router::new().fallback(move || {
        let place = place.clone();
        async move {
            let objects = json!([{ "actions": { "upload": { "href": place } } }]);
            Json(json!({ "Success": true, "objects": objects, "Data": { "objects": objects } }))
        }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A node whose hubs are at this address.
async fn node(address: &str) -> Gateway {
    Gateway::with_hubs(&[("HF_ENDPOINT", address), ("MODELSCOPE_ENDPOINT", address)]).await
}

async fn upload(gateway: &Gateway, tenant: &str, body: Value) -> Said {
    gateway.ask(tenant, "POST", "/twinkle/upload_to_hub", Some(body)).await
}

async fn ended(gateway: &Gateway, tenant: &str, request: &str) -> Value {
    loop {
        let said = gateway.ask(tenant, "GET", &format!("/twinkle/upload_status/{request}"), None).await;
        if said.body["status"] != "running" {
            return said.body;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_checkpoint_reaches_either_hub_and_its_owner_can_follow_it() {
    let gateway = node(&hub().await).await;
    let session = gateway.session("alice").await;
    let path = gateway.trained("alice", &session, "math", "step-1").await;
    for (id, dir) in [
        ("hf://me/adapter", json!(path.to_twinkle())),
        ("me/adapter", json!({ "twinkle_path": path.to_string(), "checkpoint_dir": null })),
    ] {
        let body = json!({ "checkpoint_dir": dir, "hub_model_id": id, "hub_token": "t", "async_upload": true });
        let said = upload(&gateway, "alice", body).await;
        let request = said.body["request_id"].as_str().unwrap().to_owned();
        let end = ended(&gateway, "alice", &request).await;
        assert_eq!((&end["status"], &end["error"]), (&json!("completed"), &Value::Null), "{end}");
        assert_eq!(end["progress"]["sent_bytes"], end["progress"]["total_bytes"]);
        let foreign = gateway.ask("bob", "GET", &format!("/twinkle/upload_status/{request}"), None).await;
        assert_eq!(foreign.status, StatusCode::NOT_FOUND);
        assert_eq!(foreign.body["detail"], json!(format!("Upload task not found: {request}")));
    }
}

#[tokio::test]
async fn only_the_tenants_own_checkpoints_are_uploaded_and_only_with_a_token_of_the_hub() {
    let gateway = node("http://127.0.0.1:1").await;
    let session = gateway.session("alice").await;
    let path = gateway.trained("alice", &session, "math", "step-1").await.to_twinkle();
    let wanted = |dir: &str, id: &str, token: Option<&str>| json!({ "checkpoint_dir": dir, "hub_model_id": id, "hub_token": token });
    for (tenant, body, status, text) in [
        ("bob", wanted(&path, "me/a", Some("t")), 404, "not found or access denied"),
        ("alice", wanted("/etc", "me/a", Some("t")), 404, "not found or access denied"),
        ("alice", wanted(&path, "me/a", None), 400, "`hub_token` is missing"),
        ("alice", wanted(&path, "a", Some("t")), 400, "not a model on a hub"),
        ("alice", wanted(&path, "./a", Some("t")), 400, "not a model on a hub"),
        ("alice", wanted(&path, "me/a@v1", Some("t")), 400, "names a revision"),
    ] {
        let said = upload(&gateway, tenant, body).await;
        assert_eq!(said.status.as_u16(), status, "{}", said.body);
        assert!(said.body["detail"].as_str().unwrap().contains(text), "{}", said.body);
    }
}

#[tokio::test]
async fn an_upload_that_fails_says_why_and_never_what_the_token_was() {
    let gateway = node("http://127.0.0.1:1").await;
    let session = gateway.session("alice").await;
    let path = gateway.trained("alice", &session, "math", "step-1").await.to_twinkle();
    let body = json!({ "checkpoint_dir": path, "hub_model_id": "hf://me/a", "hub_token": "very-secret" });
    let request = upload(&gateway, "alice", body).await.body["request_id"].as_str().unwrap().to_owned();
    let end = ended(&gateway, "alice", &request).await;
    assert_eq!(end["status"], json!("failed"));
    let error = end["error"].as_str().unwrap();
    assert!(error.starts_with("Hugging Face did not take the upload") && !error.contains("very-secret"), "{error}");
}

#[tokio::test]
async fn a_tenant_has_a_few_uploads_at_a_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // It takes connections and never answers.
    let gateway = node(&format!("http://{}", listener.local_addr().unwrap())).await;
    let session = gateway.session("alice").await;
    let path = gateway.trained("alice", &session, "math", "step-1").await.to_twinkle();
    let body = json!({ "checkpoint_dir": path, "hub_model_id": "hf://me/a", "hub_token": "t" });
    for _ in 0..4 {
        assert_eq!(upload(&gateway, "alice", body.clone()).await.status, StatusCode::OK);
    }
    let refused = upload(&gateway, "alice", body).await;
    assert_eq!(refused.body["code"], json!("limit_reached"), "{}", refused.body);
    let other = gateway.front.shared.uploads.state(&TenantId::new("bob"), "req_x").await;
    assert!(other.is_err());
}

#[tokio::test]
async fn how_an_upload_ended_is_told_after_a_restart_and_one_that_was_under_way_is_called_interrupted() {
    let gateway = node(&hub().await).await;
    let session = gateway.session("alice").await;
    let path = gateway.trained("alice", &session, "math", "step-1").await.to_twinkle();
    let body = json!({ "checkpoint_dir": path, "hub_model_id": "hf://me/a", "hub_token": "t" });
    let request = upload(&gateway, "alice", body).await.body["request_id"].as_str().unwrap().to_owned();
    let end = ended(&gateway, "alice", &request).await;
    let store = gateway.front.context.store.clone();
    let under_way = UploadRecord {
        request: RequestId::new("req_1"),
        tenant: TenantId::new("alice"),
        sent_bytes: 3,
        total_bytes: 7,
        end: None,
    };
    store.keep_upload(&under_way).await.unwrap();

    // Another process with the same store.
    let restarted = Uploads::new(Err(Error::internal("it is not asked to upload")), store);
    let known = restarted.state(&TenantId::new("alice"), &request).await.unwrap();
    assert_eq!(known.end, Some(Ok(())));
    assert_eq!(json!(known.sent_bytes), end["progress"]["sent_bytes"]);
    let lost = restarted.state(&TenantId::new("alice"), "req_1").await.unwrap();
    assert_eq!((lost.sent_bytes, lost.total_bytes), (3, 7));
    assert_eq!(lost.end.unwrap().unwrap_err().code, ErrorCode::Interrupted);
    assert!(restarted.state(&TenantId::new("bob"), "req_1").await.is_err());
    let told = gateway.ask("alice", "GET", "/twinkle/upload_status/req_1", None).await.body;
    assert_eq!((&told["status"], &told["code"]), (&json!("failed"), &json!("interrupted")), "{told}");
}
