//! What requests ask of the components.

use prost::Message;
use serde_json::json;
use twinkle_core::call::{
    AdamParams, CellLayout, CreateRun, ForwardOptions, LossSpec, RunOperation, SampleExtras, SamplerTarget,
    SamplingSource, ServeRequest, StartingPoint, Stop, TargetTokens,
};
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::ids::{CheckpointPath, RunId, SamplingSessionId};
use twinkle_core::wire::tinker::training::ForwardBackwardContent;

use super::*;

fn content() -> ForwardBackwardContent {
    let datum = Datum {
        tokens: vec![1, 2, 3],
        loss_inputs: BTreeMap::from([
            ("target_tokens".to_owned(), TensorData::ints(vec![2, 3, 4])),
            ("weights".to_owned(), TensorData::floats(vec![0.0, 1.0, 1.0])),
        ]),
    };
    let loss = LossSpec::named("cross_entropy");
    ForwardBackwardContent { data: vec![datum], loss, backward: true }
}

fn expected(backward: bool) -> RunOperation {
    let content = content();
    RunOperation::ForwardBackward {
        data: content.data,
        loss: content.loss,
        backward,
        options: ForwardOptions::default(),
    }
}

/// A training request as SDK 0.16.1 writes it: every default left out.
fn old_style(field: &str) -> String {
    json!({
        "model_id": RUN,
        "seq_id": 3,
        field: {
            "loss_fn": "cross_entropy",
            "data": [{
                "model_input": { "chunks": [{ "tokens": [1, 2] }, { "tokens": [3] }] },
                "loss_fn_inputs": {
                    "target_tokens": { "data": [2, 3, 4], "dtype": "int64" },
                    "weights": { "data": [0, 1, 1], "dtype": "float32", "shape": [3] },
                },
            }],
        },
    })
    .to_string()
}

#[tokio::test]
async fn start_up_needs_no_component() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.get("/healthz").await.ok(), json!({ "status": "ok" }));
    let config = fixture.post("/client/config", r#"{"sdk_version":"0.38.0"}"#).await.ok();
    assert_eq!(config["parallel_fwdbwd_chunks"], true);
    assert_eq!(config["sample_use_retrieve_futures"], true);
    assert!(fixture.post("/client/dynamic_config", "{}").await.ok()["refresh_interval_sec"].is_number());
    assert_eq!(fixture.post("/telemetry", "{not json").await.ok(), json!({ "status": "accepted" }));
    let models = fixture.get("/get_server_capabilities").await.ok();
    let model = &models["supported_models"][0];
    assert_eq!(model["model_name"], MODEL);
    assert_eq!((&model["max_context_length"], &model["trainable"]), (&json!(128), &json!(true)));
    assert!(fixture.server.calls.lock().is_empty());
}

#[tokio::test]
async fn sessions_open_live_and_end() {
    let fixture = Fixture::new().await;
    let body = json!({
        "tags": ["a"], "user_metadata": { "n": 1, "t": "x" }, "sdk_version": "0.38.0", "project_id": null, "display_name": "d",
    });
    let created = fixture.post("/create_session", body.to_string()).await.ok();
    assert_eq!((&created["type"], &created["session_id"]), (&json!("create_session"), &json!("s")));
    let [ServeRequest::CreateSession { id: None, tags, user_metadata, sdk_version, project_id: None, display_name }] =
        &asked(&fixture.server)[..]
    else {
        panic!("not one session");
    };
    assert_eq!(display_name.as_deref(), Some("d"));
    assert_eq!((&tags[..], sdk_version.as_deref()), (&["a".to_owned()][..], Some("0.38.0")));
    assert_eq!((user_metadata["n"].as_str(), user_metadata["t"].as_str()), ("1", "x"));

    let beat = fixture.post("/session_heartbeat", r#"{"session_id":"s"}"#).await.ok();
    assert_eq!(beat, json!({ "type": "session_heartbeat" }));
    fixture.post("/session_heartbeat", r#"{"session_id":"over"}"#).await.refused(StatusCode::GONE);
    fixture.post("/session_heartbeat", r#"{"session_id":"other"}"#).await.refused(StatusCode::NOT_FOUND);
    let finished = fixture.post("/sessions/s/finish", r#"{"reason":{"type":"success"},"detail":null}"#).await;
    assert_eq!(finished.status, StatusCode::NO_CONTENT);
    let calls = fixture.operations();
    let [unload] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!((&unload.run, unload.sequence), (&RunId::new(RUN), None));
    assert_eq!(unload.operation, RunOperation::Unload, "a finished session keeps no run in memory");
}

#[tokio::test]
async fn a_session_that_is_asked_for_again_under_its_key_is_one_session() {
    let fixture = Fixture::new().await;
    for (key, body) in [("k", "{}"), ("k", "{}"), ("other", "{}"), ("", "{}"), ("k", r#"{"session_id":"mine"}"#)] {
        let request = Request::post("/create_session").header("x-idempotency-key", key);
        fixture.send(request.body(body.to_owned().into()).unwrap()).await.ok();
    }
    let name = |request: &ServeRequest| match request {
        ServeRequest::CreateSession { id, .. } => id.clone(),
        other => panic!("{other:?}"),
    };
    let asked: Vec<_> = asked(&fixture.server).iter().map(name).collect();
    let [Some(first), Some(again), Some(other), None, Some(chosen)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert_eq!(chosen.as_str(), "mine");
    let long = Request::post("/create_session").header("x-idempotency-key", "k".repeat(256));
    fixture.send(long.body("{}".to_owned().into()).unwrap()).await.refused(StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_model_is_made_with_the_protocols_defaults() {
    let fixture = Fixture::new().await;
    let body = r#"{"session_id":"s","model_seq_id":4,"base_model":"tiny/model","lora_config":{"rank":8}}"#;
    let answer = fixture.post("/create_model", body).await.ok();
    assert_eq!(answer, json!({ "request_id": "op-1", "model_id": "s:train:4" }));
    fixture.post("/create_model", body).await.ok();
    let calls = fixture.operations();
    assert_eq!((&calls[0].run, calls[0].sequence), (&RunId::new("s:train:4"), Some(0)));
    assert_eq!(calls[0].operation, calls[1].operation, "sent twice, it must be the same operation");
    let RunOperation::Create(CreateRun { base_model, lora, from: None, .. }) = &calls[0].operation else {
        panic!("{calls:?}");
    };
    assert_eq!(base_model, MODEL);
    assert_eq!((lora.rank, lora.train_attn, lora.train_mlp, lora.train_unembed), (8, true, true, true));
    assert_eq!(lora.alpha.to_bits(), 32.0_f64.to_bits());
}

#[tokio::test]
async fn a_model_is_made_by_loading_a_checkpoint() {
    let fixture = Fixture::new().await;
    let body = json!({ "session_id": "s", "model_seq_id": 1, "path": CHECKPOINT, "optimizer": true });
    let answer = fixture.post("/load_weights", body.to_string()).await.ok();
    assert_eq!(answer["model_id"], "s:train:1");
    let path = CheckpointPath::parse(CHECKPOINT).unwrap();
    let from = Some(StartingPoint { path: path.clone(), with_optimizer: true, owner: None });
    let create = CreateRun {
        session: None,
        accumulation_steps: None,
        base_model: MODEL.into(),
        lora: lora(),
        from,
        user_metadata: BTreeMap::new(),
    };
    let legacy = json!({ "model_id": RUN, "path": CHECKPOINT, "optimizer": false, "seq_id": 1 });
    fixture.post("/load_weights", legacy.to_string()).await.ok();
    let calls = fixture.operations();
    assert_eq!(calls[0].operation, RunOperation::Create(create));
    assert_eq!(calls[1].operation, RunOperation::LoadState { path, with_optimizer: false, owner: None });
    assert_eq!((&calls[1].run, calls[1].sequence), (&RunId::new(RUN), Some(1)));
}

#[tokio::test]
async fn a_model_tells_its_base_and_where_its_tokenizer_lies() {
    let info = Fixture::new().await.post("/get_info", json!({ "model_id": RUN }).to_string()).await.ok();
    assert_eq!(info["model_data"]["model_name"], MODEL);
    assert_eq!((&info["is_lora"], &info["lora_rank"]), (&json!(true), &json!(8)));
    let tokenizer = info["model_data"]["tokenizer_id"].as_str().unwrap();
    assert!(tokenizer.starts_with('/') && tokenizer.ends_with("models/tiny"), "{tokenizer}");
}

#[tokio::test]
async fn json_and_protobuf_ask_for_the_same() {
    let fixture = Fixture::new().await;
    let answer = fixture.post("/forward_backward", old_style("forward_backward_input")).await.ok();
    assert_eq!(answer, json!({ "request_id": "op-1", "model_id": RUN }));
    fixture.post("/forward", old_style("forward_input")).await.ok();
    let request = content().to_proto(RUN, 3);
    fixture.post_protobuf("/forward_backward", request.encode_to_vec()).await.ok();
    let packed = zstd::encode_all(&request.encode_to_vec()[..], 3).unwrap();
    let packed = Request::post("/forward_backward")
        .header("content-type", "application/x-protobuf")
        .header("content-encoding", "zstd")
        .body(Body::from(packed))
        .unwrap();
    fixture.send(packed).await.ok();
    let calls = fixture.operations();
    let operations: Vec<_> = calls.iter().map(|call| call.operation.clone()).collect();
    assert_eq!(operations, [expected(true), expected(false), expected(true), expected(true)]);
    assert!(calls.iter().all(|call| call.sequence == Some(3) && call.run == RunId::new(RUN)));
}

#[tokio::test]
async fn an_optimizer_step_fills_in_what_is_left_out() {
    let fixture = Fixture::new().await;
    let steps = [
        json!({ "model_id": RUN, "seq_id": 1, "adam_params": { "learning_rate": 0.5 } }),
        json!({ "model_id": RUN, "seq_id": 2, "optimizer_params": { "type": "adamw", "learning_rate": 0.5 } }),
        json!({ "model_id": RUN, "seq_id": 0, "adam_params": {} }),
    ];
    for step in &steps {
        fixture.post("/optim_step", step.to_string()).await.ok();
    }
    let wanted = RunOperation::OptimStep(AdamParams { learning_rate: 0.5, ..AdamParams::default() });
    let calls = fixture.operations();
    assert_eq!((&calls[0].operation, &calls[1].operation), (&wanted, &wanted));
    assert_eq!(calls[2].operation, RunOperation::OptimStep(AdamParams::default()));
    assert_eq!(calls[2].sequence, None, "number 0 means unnumbered");
}

#[tokio::test]
async fn weights_are_saved_under_a_name_or_into_a_sampling_session() {
    let fixture = Fixture::new().await;
    let named = json!({ "model_id": RUN, "path": "final", "seq_id": 4, "ttl_seconds": 3600, "overwrite": true });
    fixture.post("/save_weights", named.to_string()).await.ok();
    let named = json!({ "model_id": RUN, "path": "final", "seq_id": 5, "kind": "snapshot" });
    fixture.post("/save_weights_for_sampler", named.to_string()).await.ok();
    let live = json!({ "model_id": RUN, "sampling_session_seq_id": 2, "seq_id": 6 });
    fixture.post("/save_weights_for_sampler", live.to_string()).await.ok();
    let calls = fixture.operations();
    let RunOperation::SaveState { path, ttl_seconds: Some(3600), overwrite: true, .. } = &calls[0].operation else {
        panic!("{calls:?}");
    };
    assert_eq!(path.to_string(), CHECKPOINT);
    let target = |index: usize| match &calls[index].operation {
        RunOperation::SaveForSampler { target, .. } => target.clone(),
        other => panic!("{other:?}"),
    };
    let path = CheckpointPath::parse("tinker://s:train:0/sampler_weights/final").unwrap();
    assert_eq!(target(1), SamplerTarget::Checkpoint(path));
    let session = SamplingSessionId::new("s:sample:2");
    assert_eq!(target(2), SamplerTarget::Live(session.clone()));
    let opened = asked(&fixture.server).into_iter().any(|request| {
        matches!(request, ServeRequest::CreateSamplingSession { source: SamplingSource::Live(id), number: 2, .. } if id == session)
    });
    assert!(opened, "the sampling session was not opened");
}

#[tokio::test]
async fn inflight_sampling_sessions_of_a_model_share_its_weights() {
    let fixture = Fixture::new().await;
    for number in [2, 3] {
        let live =
            json!({ "model_id": RUN, "sampling_session_seq_id": number, "seq_id": 4 + number, "kind": "inflight" });
        fixture.post("/save_weights_for_sampler", live.to_string()).await.ok();
    }
    let weights = SamplingSessionId::new("s:sample:inflight-0");
    for (call, number) in fixture.operations().into_iter().zip([2, 3]) {
        let RunOperation::SaveForSampler { target, .. } = call.operation else { panic!("{call:?}") };
        let session = SamplingSessionId::new(format!("s:sample:{number}"));
        assert_eq!(target, SamplerTarget::Inflight { session, weights: weights.clone() });
    }
    let on_them = asked(&fixture.server).into_iter().filter(|request| {
        matches!(request, ServeRequest::CreateSamplingSession { source: SamplingSource::Live(id), .. } if *id == weights)
    });
    assert_eq!(on_them.count(), 2);
}

#[tokio::test]
async fn checkpoints_tell_how_to_make_a_model_for_them() {
    let info = Fixture::new().await.post("/weights_info", json!({ "tinker_path": CHECKPOINT }).to_string()).await.ok();
    assert_eq!((&info["base_model"], &info["lora_rank"]), (&json!(MODEL), &json!(8)));
    assert_eq!((&info["train_attn"], &info["train_unembed"]), (&json!(true), &json!(false)));
}

#[tokio::test]
async fn a_sample_is_drawn_once_however_often_it_is_sent() {
    let fixture = Fixture::new().await;
    let body = json!({
        "sampling_session_id": "s:sample:0", "seq_id": 7, "num_samples": 2, "prompt": { "chunks": [{ "tokens": [1, 2] }] },
        "sampling_params": { "max_tokens": 5, "stop": ["x"], "temperature": 0 }, "prompt_logprobs": true,
    });
    let first = fixture.post("/asample", body.to_string()).await.ok();
    let again = fixture.post("/asample", body.to_string()).await.ok();
    assert_eq!(first, again);
    let ids = first["sample_sequence_ids"].as_array().unwrap();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
    let calls = fixture.sampler.calls.lock();
    assert_eq!(calls.len(), 1);
    let Operation::Sample(request) = &calls[0].operation else { panic!("{calls:?}") };
    assert_eq!(
        (request.source.clone(), &request.prompt[..], request.num_samples),
        (SamplingSource::Base, &[1, 2][..], 2)
    );
    assert_eq!((request.params.max_tokens, &request.params.stop), (Some(5), &Stop::Strings(vec!["x".into()])));
    assert!(request.prompt_logprobs);
}

#[tokio::test]
async fn what_a_sample_is_asked_for_beside_its_tokens_reaches_the_sampler() {
    let fixture = Fixture::new().await;
    let body = json!({
        "sampling_session_id": "s:sample:0", "seq_id": 8, "prompt": { "chunks": [{ "tokens": [1, 2] }] },
        "prompt_logprobs": true, "topk_prompt_logprobs": 3, "topk_sample_logprobs": 4, "prompt_alt_tokens_k": 5,
        "prompt_logprobs_last_n": 1, "record_stability_info": false,
        "target_prompt_logprobs": { "data": [7, -1], "dtype": "int64", "shape": [1, 2] },
    });
    fixture.post("/asample", body.to_string()).await.ok();
    let calls = fixture.sampler.calls.lock();
    let Operation::Sample(request) = &calls[0].operation else { panic!("{calls:?}") };
    let layout = CellLayout { rows: 1, columns: 2, sparse: None };
    let expected = SampleExtras {
        prompt_logprobs_last_n: Some(1),
        topk_prompt_logprobs: 3,
        topk_sample_logprobs: 4,
        target_prompt_logprobs: Some(TargetTokens { layout, cells: vec![Some(7), None] }),
        prompt_alt_tokens_k: 5,
    };
    assert_eq!(request.extras, expected);
}

#[tokio::test]
async fn sampling_sessions_take_a_base_model_or_a_checkpoint() {
    let fixture = Fixture::new().await;
    let base = json!({ "session_id": "s", "sampling_session_seq_id": 1, "base_model": MODEL });
    let created = fixture.post("/create_sampling_session", base.to_string()).await.ok();
    assert_eq!(created, json!({ "type": "create_sampling_session", "sampling_session_id": "s:sample:1" }));
    let saved = json!({ "session_id": "s", "sampling_session_seq_id": 2, "model_path": CHECKPOINT });
    fixture.post("/create_sampling_session", saved.to_string()).await.ok();
    let sampler = fixture.get("/samplers/s:sample:0").await.ok();
    assert_eq!(sampler, json!({ "sampler_id": "s:sample:0", "base_model": MODEL, "model_path": null }));
}

#[tokio::test]
async fn runs_and_checkpoints_are_listed_and_deleted() {
    let fixture = Fixture::new().await;
    let runs = fixture.get("/training_runs?limit=5&offset=20&access_scope=owned").await.ok();
    assert_eq!(runs["cursor"], json!({ "offset": 20, "limit": 5, "total_count": 21 }));
    let run = fixture.get("/training_runs/s:train:0").await.ok();
    assert_eq!(run, runs["training_runs"][0]);
    assert_eq!(run["user_metadata"], json!({ "renderer": "role_colon" }));
    assert_eq!(run["last_checkpoint"]["tinker_path"], CHECKPOINT);
    assert_eq!(run["last_sampler_checkpoint"], json!(null));
    let listed = fixture.get("/training_runs/s:train:0/checkpoints").await.ok();
    assert_eq!(listed["checkpoints"][0]["checkpoint_id"], "weights/final");
    assert_eq!(listed["checkpoints"][0]["checkpoint_type"], "training");
    assert_eq!(listed["checkpoints"][0]["time"], "2026-01-02T03:04:05Z");
    assert_eq!(fixture.get("/checkpoints?limit=100&offset=0").await.ok()["cursor"]["total_count"], 1);
    let delete = |path: &str| fixture.send(Request::delete(path).body(Body::empty()).unwrap());
    assert_eq!(delete("/training_runs/s:train:0/checkpoints/weights/final").await.status, StatusCode::NO_CONTENT);
    assert_eq!(delete("/training_runs/s%3Atrain%3A0/checkpoints/weights%2Ffinal").await.status, StatusCode::NO_CONTENT);
    delete("/training_runs/s:train:0/checkpoints/weights/other").await.refused(StatusCode::NOT_FOUND);
    delete("/training_runs/s:train:0/checkpoints/final").await.refused(StatusCode::BAD_REQUEST);
}
