//! Numbers of refused requests, with a real journal: what comes later must not wait for them.

use serde_json::json;
use twinkle_core::call::{ForwardBackwardOutcome, RunOperation, RunOutcome};
use twinkle_core::middleware::journal::Journal;
use twinkle_core::wire::tinker::proto;

use super::*;

/// A model component that does nothing, successfully.
fn train(call: Call) -> Reply {
    let Operation::Run(call) = call.operation else { panic!("the trainer was sent {:?}", call.operation) };
    Reply::Run(match call.operation {
        RunOperation::Create(_) => RunOutcome::Created { run: call.run },
        RunOperation::OptimStep(_) => RunOutcome::OptimStep { metrics: BTreeMap::new() },
        _ => RunOutcome::ForwardBackward(ForwardBackwardOutcome::default()),
    })
}

/// A front whose trainer is behind a journal, with the run `s:train:0` in it.
async fn journaled() -> Fixture {
    let mut fixture = Fixture::with(|call| Ok(train(call)), |_| Ok(Reply::Sample(sample_outcome()))).await;
    let store = StateStore::open_in_memory().await.unwrap();
    let session = SessionRecord {
        id: SessionId::new("s"),
        tenant: alice(),
        tags: Vec::new(),
        user_metadata: BTreeMap::new(),
        sdk_version: None,
        finished: false,
        created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        project_id: None,
        display_name: None,
        client_end: None,
    };
    store.create_session(&session).await.unwrap();
    let futures = Futures::new(store.clone(), FuturesOptions::default());
    let journal = Journal::new(store, futures.clone(), Component::boxed(fixture.trainer.clone()));
    let mut model = fixture.context.directory.model(MODEL).unwrap().clone();
    model.trainer = Some(Component::boxed(fixture.trainer.clone()).wrapped(|_| journal.clone()));
    model.journal = Some(journal);
    fixture.context.directory = Directory::new(vec![model]);
    fixture.context.futures = futures;
    fixture.router = router(fixture.context.clone(), &[]);
    let create = json!({ "session_id": "s", "model_seq_id": 0, "base_model": MODEL, "lora_config": { "rank": 8 } });
    let created = fixture.post("/create_model", create.to_string()).await.ok();
    let created = fixture.retrieve(created["request_id"].as_str().unwrap(), "application/json").await.ok();
    assert_eq!(created["model_id"], RUN);
    fixture
}

impl Fixture {
    /// Submits the optimizer step with this number and waits for its result.
    async fn step(&self, number: u64) -> Value {
        let step = json!({ "model_id": RUN, "seq_id": number, "adam_params": {} });
        let accepted = self.post("/optim_step", step.to_string()).await.ok();
        self.retrieve(accepted["request_id"].as_str().unwrap(), "application/json").await.ok()
    }
}

#[tokio::test]
async fn a_refused_number_holds_nobody_up() {
    let fixture = journaled().await;
    let step =
        |number: u64, params: &str| format!(r#"{{"adam_params":{params},"model_id":"{RUN}","seq_id":{number}}}"#);
    fixture.post("/optim_step", step(1, r#"{"learning_rate":NaN}"#)).await.refused(StatusCode::BAD_REQUEST);
    assert_eq!(fixture.step(2).await, json!({ "metrics": {} }));
    fixture.post("/optim_step", step(3, r#"{"learning_rate":"fast"}"#)).await.refused(StatusCode::BAD_REQUEST);
    assert_eq!(fixture.step(4).await, json!({ "metrics": {} }));
    let failed =
        fixture.post("/save_weights", json!({ "model_id": RUN, "seq_id": 5, "path": ".." }).to_string()).await.ok();
    let failed = fixture.retrieve(failed["request_id"].as_str().unwrap(), "application/json").await.ok();
    assert_eq!(failed["category"], "user");
    assert_eq!(fixture.step(6).await, json!({ "metrics": {} }));
    let mut broken = prost::Message::encode_to_vec(&proto::ForwardBackwardRequest {
        model_id: RUN.into(),
        seq_id: 7,
        ..proto::ForwardBackwardRequest::default()
    });
    broken.extend_from_slice(b"\x1a\x7f\x00");
    fixture.post_protobuf("/forward_backward", broken).await.refused(StatusCode::BAD_REQUEST);
    assert_eq!(fixture.step(8).await, json!({ "metrics": {} }));
}

#[tokio::test]
async fn another_tenants_refusals_change_nothing() {
    let fixture = journaled().await;
    let body = format!(r#"{{"adam_params":{{"eps":"x"}},"model_id":"{RUN}","seq_id":1}}"#);
    let foreign = r#"{"adam_params":{"eps":"x"},"model_id":"x:train:0","seq_id":1}"#;
    fixture.post("/optim_step", foreign).await.refused(StatusCode::BAD_REQUEST);
    fixture.post("/optim_step", body).await.refused(StatusCode::BAD_REQUEST);
    assert_eq!(fixture.step(2).await, json!({ "metrics": {} }));
}

#[tokio::test]
async fn a_request_sent_twice_is_one_request() {
    let fixture = journaled().await;
    let step = json!({ "model_id": RUN, "seq_id": 1, "adam_params": { "learning_rate": 0.5 } }).to_string();
    let first = fixture.post("/optim_step", step.clone()).await.ok();
    assert_eq!(fixture.post("/optim_step", step).await.ok(), first);
    let other = json!({ "model_id": RUN, "seq_id": 1, "adam_params": { "learning_rate": 0.25 } }).to_string();
    fixture.post("/optim_step", other).await.refused(StatusCode::BAD_REQUEST);
    assert_eq!(fixture.step(2).await, json!({ "metrics": {} }));
}
