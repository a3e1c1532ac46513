//! The native front over a real `server` component and store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use twinkle_core::call::{CheckpointRecord, LoraSpec, Position, RunOperation, RunRecord, ServeRequest};
use twinkle_core::checkpoint::{CheckpointMeta, CheckpointStore};
use twinkle_core::component::{BoxComponent, Component};
use twinkle_core::config::{ServerArgs, TrainMode};
use twinkle_core::futures::{Futures, FuturesOptions};
use twinkle_core::ids::{CheckpointPath, RequestId, RunId, SessionId, TenantId};
use twinkle_core::state::{NewOperation, NewRun, StateStore};
use twinkle_hub::{Environment, Patience};

use super::front::Shared;
use super::hub;
use super::{Answer, Caller, Replica, TwinkleFront, mount, ok, patiently, server_routes};
use crate::directory::{Directory, ServedModel};
use crate::downloads::{Downloads, SigningKey};
use crate::front::FrontContext;
use crate::route_table::{Route, router_of};
use crate::server_component::{ServerComponent, ServerContext};

/// A gateway of one model, and what is behind it.
pub(super) struct Gateway {
    pub(super) front: TwinkleFront,
    router: Router,
    folder: TempDir,
}

/// What was answered.
pub(super) struct Said {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Gateway {
    pub(super) async fn new() -> Self {
        Self::with_hubs(&[("TWINKLE_OFFLINE", "1")]).await
    }

    /// One that finds hubs and their caches by these variables.
    pub(super) async fn with_hubs(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = StateStore::open_in_memory().await.unwrap();
        let checkpoints = CheckpointStore::new(folder.path().join("checkpoints"));
        let directory = Directory::new(vec![served("tiny/model")]);
        let context =
            ServerContext { store: store.clone(), checkpoints: checkpoints.clone(), directory: directory.clone() };
        let server = ServerComponent::build(ServerArgs::default(), context).await.unwrap();
        let server: BoxComponent = Component::boxed(server);
        let context = FrontContext {
            server: server.clone(),
            settings: Arc::default(),
            directory,
            futures: Futures::new(store.clone(), FuturesOptions::default()),
            store: store.clone(),
            checkpoints: checkpoints.clone(),
            downloads: Downloads::new(SigningKey::fresh(), store, checkpoints, false),
            templates: twinkle_processor::Templates::default(),
            stopping: CancellationToken::new(),
        };
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let patience = Patience { first_wait: Duration::from_millis(1), ..Patience::default() };
        let shared = Shared::new(&context, &Environment::new(variables), patience);
        let front = TwinkleFront::new(&context, server, None, Arc::new(shared));
        let routes = || server_routes().into_iter().chain(hub::routes()).collect();
        let mounted = mount(Router::new(), routes, &[], &front);
        Self { front, router: mounted, folder }
    }

    /// A request of a tenant to a path below the prefix.
    pub(super) async fn ask(&self, tenant: &str, method: &str, path: &str, body: Option<Value>) -> Said {
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let mut request = Request::builder().method(method).uri(path).body(body).unwrap();
        request.extensions_mut().insert(TenantId::new(tenant));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Said { status: head.status, body: serde_json::from_slice(&bytes).unwrap() }
    }

    async fn get(&self, tenant: &str, path: &str) -> Said {
        self.ask(tenant, "GET", path, None).await
    }

    pub(super) async fn session(&self, tenant: &str) -> SessionId {
        let said = self.ask(tenant, "POST", "/twinkle/create_session", Some(json!({ "metadata": null }))).await;
        SessionId::new(said.body["session_id"].as_str().unwrap())
    }

    /// A run with one checkpoint of it, as the trainer would leave them.
    pub(super) async fn trained(&self, tenant: &str, session: &SessionId, adapter: &str, name: &str) -> CheckpointPath {
        let (store, tenant) = (&self.front.context.store, TenantId::new(tenant));
        let run = RunId::of_adapter(session, adapter).unwrap();
        let now = jiff::Timestamp::now();
        let record = RunRecord {
            id: run.clone(),
            tenant: tenant.clone(),
            session: session.clone(),
            base_model: "tiny/model".to_owned(),
            lora: LoraSpec::default(),
            user_metadata: [("adapter_name".to_owned(), adapter.to_owned())].into(),
            closed: false,
            created_at: now,
            last_used_at: now,
        };
        let operation = NewOperation {
            request: RequestId::journaled(),
            tenant: tenant.clone(),
            run: run.clone(),
            position: Position::default(),
            name: RunOperation::Unload.name(),
            payload: Vec::new(),
            fingerprint: [0; 32],
        };
        store.insert_run(NewRun { record, operation }).await.unwrap();
        let path = CheckpointPath::parse(&format!("twinkle://{run}/weights/{name}")).unwrap();
        let draft = self.front.context.checkpoints.draft(&tenant, &path).unwrap();
        std::fs::write(draft.directory().join("adapter_model.safetensors"), b"weights").unwrap();
        let meta = CheckpointMeta {
            base_model: "tiny/model".to_owned(),
            lora: LoraSpec::default(),
            user_metadata: [].into(),
            created_at: now,
            position: Position::default(),
            optimizer_steps: None,
        };
        let size_bytes = draft.commit(&meta, false).unwrap().size_bytes;
        let record = CheckpointRecord {
            path: path.clone(),
            tenant,
            base_model: "tiny/model".to_owned(),
            lora: LoraSpec::default(),
            size_bytes,
            user_metadata: [].into(),
            created_at: now,
            expires_at: None,
            public: false,
        };
        store.insert_checkpoint(&record).await.unwrap();
        path
    }
}

fn served(name: &str) -> ServedModel {
    ServedModel {
        name: name.to_owned(),
        max_context: 128,
        vocabulary: 256,
        train_mode: TrainMode::Lora,
        max_rank: 32,
        max_loras: 8,
        default_alpha: 32.0,
        tokenizer: PathBuf::from("models/tiny"),
        trainer: None,
        journal: None,
        sampler: None,
    }
}

#[tokio::test]
async fn a_session_lives_for_its_tenant_and_nobody_else() {
    let gateway = Gateway::new().await;
    let session = gateway.session("alice").await;
    assert!(session.as_str().strip_prefix("session_").is_some_and(|rest| rest.len() == 32), "{session}");
    let beat = json!({ "session_id": session });
    let kept = gateway.ask("alice", "POST", "/twinkle/session_heartbeat", Some(beat.clone())).await;
    assert_eq!((kept.status, kept.body), (StatusCode::OK, json!({})));
    let foreign = gateway.ask("bob", "POST", "/twinkle/session_heartbeat", Some(beat)).await;
    let absent = gateway.ask("bob", "POST", "/twinkle/session_heartbeat", Some(json!({ "session_id": "x" }))).await;
    assert_eq!((foreign.status, &foreign.body["detail"]), (StatusCode::NOT_FOUND, &json!("Unknown session")));
    assert_eq!(foreign.body, absent.body);
}

#[tokio::test]
async fn a_client_may_name_its_session_and_finds_it_again() {
    let gateway = Gateway::new().await;
    let named = |name: &str| Some(json!({ "metadata": {}, "session_id": name }));
    for _ in 0..2 {
        let said = gateway.ask("alice", "POST", "/twinkle/create_session", named("mine-1")).await;
        assert_eq!((said.status, &said.body["session_id"]), (StatusCode::OK, &json!("mine-1")));
    }
    assert_eq!(gateway.front.context.store.open_records().await.unwrap().sessions, 1);
    for (tenant, name) in [("bob", "mine-1"), ("alice", "session_1"), ("alice", "a:train:0")] {
        let refused = gateway.ask(tenant, "POST", "/twinkle/create_session", named(name)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{tenant} {name}: {}", refused.body);
    }
}

#[tokio::test]
async fn notes_of_a_session_are_bounded_and_a_body_that_is_wrong_names_its_field() {
    let gateway = Gateway::new().await;
    let long = json!({ "metadata": { "k": "x".repeat(65 << 10) } });
    let refused = gateway.ask("alice", "POST", "/twinkle/create_session", Some(long)).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", refused.body);
    let wrong = gateway.ask("alice", "POST", "/twinkle/session_heartbeat", Some(json!({ "session_id": 7 }))).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert!(wrong.body["detail"].as_str().unwrap().contains("`session_id`"), "{}", wrong.body);
    let nothing = gateway.ask("alice", "POST", "/twinkle/create_session", None).await;
    assert_eq!(nothing.status, StatusCode::OK);
}

#[tokio::test]
async fn runs_and_checkpoints_are_listed_to_their_owner_only() {
    let gateway = Gateway::new().await;
    let session = gateway.session("alice").await;
    let path = gateway.trained("alice", &session, "math", "step-1").await;
    let run = path.run.as_str();

    let list = gateway.get("alice", "/twinkle/training_runs?limit=5&offset=0&all_users=true").await.body;
    assert_eq!(list["cursor"], json!({ "limit": 5, "offset": 0, "total_count": 1 }));
    let shown = &list["training_runs"][0];
    assert_eq!(shown["training_run_id"], json!(run));
    assert_eq!(shown["last_checkpoint"]["twinkle_path"], json!(format!("twinkle://{run}/weights/step-1")));
    assert_eq!(shown["user_metadata"], json!({ "adapter_name": "math" }));
    let others = gateway.get("bob", "/twinkle/training_runs?all_users=true").await.body;
    assert_eq!(others["training_runs"], json!([]));

    let checkpoints = gateway.get("alice", &format!("/twinkle/training_runs/{run}/checkpoints")).await.body;
    let checkpoint = &checkpoints["checkpoints"][0];
    assert_eq!(checkpoint["checkpoint_id"], json!("weights/step-1"));
    assert_eq!(checkpoint["checkpoint_type"], json!("training"));
    assert!(checkpoint["size_bytes"].as_u64().unwrap() >= 7, "{checkpoint}");

    for below in ["", "/checkpoints"] {
        let foreign = gateway.get("bob", &format!("/twinkle/training_runs/{run}{below}")).await;
        assert_eq!(foreign.status, StatusCode::NOT_FOUND);
        assert_eq!(foreign.body["detail"], json!(format!("Training run {run} not found or access denied")));
    }
}

#[tokio::test]
async fn a_checkpoint_has_a_folder_and_details_for_its_owner_and_is_deleted_by_nobody_else() {
    let gateway = Gateway::new().await;
    let session = gateway.session("alice").await;
    let path = gateway.trained("alice", &session, "math", "step-1").await;
    let (run, place) = (path.run.as_str(), format!("/twinkle/checkpoint_path/{}/weights/step-1", path.run));

    let told = gateway.get("alice", &place).await.body;
    let folder = std::path::PathBuf::from(told["path"].as_str().unwrap());
    assert!(folder.starts_with(gateway.folder.path()) && folder.join("adapter_model.safetensors").is_file(), "{told}");
    let named = gateway.front.named_checkpoint(&TenantId::new("alice"), told["path"].as_str().unwrap()).await;
    assert_eq!(named.unwrap().path, path);
    let by_folder = gateway.front.named_checkpoint(&TenantId::new("bob"), told["path"].as_str().unwrap()).await;
    assert_eq!(by_folder.unwrap_err().code, twinkle_core::ErrorCode::NotFound);

    let info = |name: String| json!({ "twinkle_path": name });
    let weights = format!("twinkle://{run}/weights/step-1");
    let known = gateway.ask("alice", "POST", "/twinkle/weights_info", Some(info(weights.clone()))).await.body;
    assert_eq!((&known["training_run_id"], &known["model_owner"]), (&json!(run), &json!("alice")));
    let foreign = gateway.ask("bob", "POST", "/twinkle/weights_info", Some(info(weights.clone()))).await;
    assert_eq!(foreign.body["detail"], json!(format!("Weights at {weights} not found or access denied")));

    let id = format!("/twinkle/training_runs/{run}/checkpoints/weights/step-1");
    assert_eq!(gateway.get("bob", &place).await.status, StatusCode::NOT_FOUND);
    assert_eq!(gateway.ask("bob", "DELETE", &id, None).await.status, StatusCode::NOT_FOUND);
    let deleted = gateway.ask("alice", "DELETE", &id, None).await.body;
    assert_eq!(deleted["message"], json!("Checkpoint weights/step-1 deleted successfully"));
    let again = gateway.ask("alice", "DELETE", &id, None).await;
    assert_eq!(again.body["detail"], json!("Checkpoint weights/step-1 not found or access denied"));
    assert!(!folder.exists());
}

#[tokio::test]
async fn no_path_leads_out_of_a_tenants_folder() {
    let gateway = Gateway::new().await;
    for escape in ["..%2F..%2Fx/weights/a", "r/weights/..", "r/weights/a%2F..%2Fb", "r/..%2Fweights/a"] {
        let refused = gateway.get("alice", &format!("/twinkle/checkpoint_path/{escape}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{escape}");
        assert!(refused.body["detail"].as_str().unwrap().contains("path traversal not allowed"), "{escape}");
    }
    for name in ["/etc/passwd", "../..", "twinkle://../weights/x", "org/model"] {
        let wanted = json!({ "twinkle_path": name });
        let refused = gateway.ask("alice", "POST", "/twinkle/weights_info", Some(wanted)).await;
        assert!(refused.status.is_client_error(), "{name}: {}", refused.status);
    }
}

#[tokio::test]
async fn every_answer_of_a_replica_has_its_name() {
    let router = || Router::new().route("/there", axum::routing::get(|| async { "yes" }));
    let of = async |router: &Router, path: &str| {
        let response = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        response.headers()["x-twinkle-replica-id"].clone()
    };
    let replica = Replica::fresh();
    let (one, other, stranger) =
        (replica.clone().sign(router()), replica.sign(router()), Replica::fresh().sign(router()));
    assert_eq!(of(&one, "/there").await, of(&other, "/there").await);
    assert_eq!(of(&one, "/there").await, of(&one, "/absent").await);
    assert_ne!(of(&one, "/there").await, of(&stranger, "/there").await);
}

#[tokio::test]
async fn what_the_node_serves_and_holds_is_told() {
    let gateway = Gateway::new().await;
    let session = gateway.session("alice").await;
    gateway.trained("alice", &session, "math", "step-1").await;
    let models = gateway.get("alice", "/twinkle/get_server_capabilities").await.body;
    assert_eq!(models, json!({ "supported_models": [{ "model_name": "tiny/model" }] }));
    let capacity = gateway.get("alice", "/twinkle/capacity_info").await.body;
    assert_eq!(capacity, json!({ "max_loras": 8, "used_loras": 1, "free_loras": 7 }));
    let status = gateway.get("alice", "/twinkle/status").await.body;
    assert_eq!(status["resources"], json!({ "sessions": 1, "models": 1, "sampling_sessions": 0, "futures": 0 }));
    assert_eq!(status["cleanup"], json!({ "running": true, "expiration_timeout": 86400.0 }));
    let deep = gateway.get("alice", "/twinkle/healthz/deep").await;
    assert_eq!((deep.status, &deep.body["healthy"]), (StatusCode::OK, &json!(true)));
    let nowhere = gateway.get("alice", "/twinkle/nowhere").await;
    assert_eq!(nowhere.status, StatusCode::NOT_FOUND);
    assert!(nowhere.body["detail"].as_str().unwrap().contains("/twinkle/nowhere"), "{}", nowhere.body);
}

/// A handler that only tells whose request it is.
async fn caller(caller: Caller) -> Answer {
    ok(&json!({ "session": caller.session }))
}

async fn whose(gateway: &Gateway, tenant: &str, headers: &[(&'static str, &str)]) -> Said {
    let router = router_of([Route::post("/who", caller)]).with_state(gateway.front.clone());
    let mut request = Request::post("/who").body(Body::empty()).unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    request.extensions_mut().insert(TenantId::new(tenant));
    let (head, body) = router.oneshot(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Said { status: head.status, body: serde_json::from_slice(&bytes).unwrap() }
}

#[tokio::test]
async fn a_request_belongs_to_the_session_it_names() {
    let gateway = Gateway::new().await;
    let session = gateway.session("alice").await;
    let named = [("x-twinkle-session-id", session.as_str()), ("x-request-id", "20260101_120000-abcdef01")];
    assert_eq!(whose(&gateway, "alice", &named).await.body["session"], json!(session));
    let foreign = whose(&gateway, "bob", &named).await;
    let absent = whose(&gateway, "bob", &[("x-twinkle-session-id", "session_x")]).await;
    assert_eq!((foreign.status, absent.status), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    let text = |said: &Said| said.body["detail"].as_str().unwrap().to_owned();
    assert_eq!(text(&foreign).replace(session.as_str(), "session_x"), text(&absent));
    let finish = ServeRequest::FinishSession { session: session.clone(), end: None };
    gateway.front.serve(&TenantId::new("alice"), finish).await.unwrap();
    assert_eq!(whose(&gateway, "alice", &named).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_client_of_the_first_generation_has_the_session_of_its_process() {
    let gateway = Gateway::new().await;
    let process = [("x-ray-serve-request-id", "20260101_120000-abcdef01")];
    let first = whose(&gateway, "alice", &process).await.body["session"].clone();
    assert_eq!(whose(&gateway, "alice", &process).await.body["session"], first);
    assert_ne!(whose(&gateway, "bob", &process).await.body["session"], first);
    assert_eq!(gateway.front.context.store.open_records().await.unwrap().sessions, 2);
    let nameless = whose(&gateway, "alice", &[]).await;
    assert_eq!(nameless.status, StatusCode::BAD_REQUEST);
    assert!(nameless.body["detail"].as_str().unwrap().contains("X-Twinkle-Session-Id"), "{}", nameless.body);
}

#[tokio::test]
async fn any_request_of_a_session_keeps_it_alive() {
    let gateway = Gateway::new().await;
    let session = gateway.session("alice").await;
    let (store, alice) = (&gateway.front.context.store, TenantId::new("alice"));
    let before = store.session_last_seen(&alice, &session).await.unwrap();
    whose(&gateway, "alice", &[("x-twinkle-session-id", session.as_str())]).await;
    assert!(store.session_last_seen(&alice, &session).await.unwrap() > before);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_before_its_client_gives_up() {
    let began = tokio::time::Instant::now();
    let endless = std::future::pending::<twinkle_core::Result<()>>();
    let error = patiently("forward_backward", endless).await.unwrap_err();
    assert_eq!(error.code, twinkle_core::ErrorCode::TimedOut);
    assert!(began.elapsed() < std::time::Duration::from_mins(10));
}
