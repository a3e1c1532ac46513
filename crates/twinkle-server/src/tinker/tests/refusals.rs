//! How wrong requests are answered.

use std::io::Read;

use prost::Message;
use serde_json::json;
use twinkle_core::ErrorCode;
use twinkle_core::wire::tinker::proto;

use super::*;

#[tokio::test]
async fn a_missing_route_is_named() {
    let fixture = Fixture::new().await;
    let detail = fixture.post("/billing/usage", "{}").await.refused(StatusCode::NOT_FOUND);
    assert!(detail.contains("`POST /billing/usage`"), "{detail}");
    let detail = fixture.get("/create_session").await.refused(StatusCode::NOT_FOUND);
    assert!(detail.contains("`GET /create_session`"), "{detail}");
    let promote = "/training_runs/s:train:0/checkpoints/weights/final/promote";
    let detail = fixture.post(promote, "").await.refused(StatusCode::NOT_FOUND);
    assert!(detail.contains("promote"), "{detail}");
}

#[tokio::test]
async fn bodies_that_are_not_json_are_refused_with_a_length() {
    let fixture = Fixture::new().await;
    for body in ["", "{", "null"] {
        fixture.post("/create_session", body).await.refused(StatusCode::BAD_REQUEST);
    }
    for path in ["/create_model", "/optim_step", "/asample", "/retrieve_future", "/save_weights"] {
        for body in ["", "{", "[]", r#"{"model_id":1}"#] {
            fixture.post(path, body).await.refused(StatusCode::BAD_REQUEST);
        }
    }
}

#[tokio::test]
async fn models_that_cannot_be_made_are_refused_at_once() {
    let fixture = Fixture::new().await;
    let with = |changes: Value| {
        let mut body = json!({
            "session_id": "s", "model_seq_id": 0, "base_model": MODEL, "lora_config": { "rank": 8 },
            "optimizer_config": { "type": "adamw" },
        });
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        body.to_string()
    };
    let cases = [
        (json!({ "base_model": "tiny/modle" }), StatusCode::BAD_REQUEST, "did you mean `tiny/model`"),
        (json!({ "lora_config": null }), StatusCode::BAD_REQUEST, "full fine-tuning"),
        (json!({ "lora_config": { "rank": 0 } }), StatusCode::BAD_REQUEST, "rank 0"),
        (json!({ "lora_config": { "rank": 33 } }), StatusCode::BAD_REQUEST, "between 1 and 32"),
        (
            json!({ "lora_config": { "rank": 1, "train_attn": false, "train_mlp": false, "train_unembed": false } }),
            StatusCode::BAD_REQUEST,
            "trains nothing",
        ),
        (json!({ "optimizer_config": { "type": "dimuon", "version": 1 } }), StatusCode::BAD_REQUEST, "never published"),
        (json!({ "optimizer_config": { "type": "sgd" } }), StatusCode::BAD_REQUEST, "known optimizers: `adamw`"),
        (json!({ "session_id": "other" }), StatusCode::NOT_FOUND, "other"),
        (json!({ "session_id": "over" }), StatusCode::BAD_REQUEST, "finished"),
    ];
    for (changes, status, text) in cases {
        let detail = fixture.post("/create_model", with(changes)).await.refused(status);
        assert!(detail.contains(text), "{detail}");
    }
    assert!(fixture.operations().is_empty());
}

#[tokio::test]
async fn wrong_content_fails_the_future_and_not_the_request() {
    let fixture = Fixture::new().await;
    let forward_backward = |chunks: Value, targets: Value, config: Value| {
        json!({ "model_id": RUN, "seq_id": 1, "forward_backward_input": {
            "loss_fn": "cross_entropy", "loss_fn_config": config,
            "data": [{ "model_input": { "chunks": chunks }, "loss_fn_inputs": { "target_tokens": targets } }],
        } })
    };
    let text = json!([{ "tokens": [1] }]);
    let targets = json!({ "data": [2], "dtype": "int64" });
    let image = json!([{ "type": "image", "data": "AA==", "format": "png" }]);
    let cases = [
        ("/forward_backward", forward_backward(image, targets.clone(), json!(null)), "`image`"),
        ("/forward_backward", forward_backward(text, targets, json!({ "loss_id": "x" })), "`loss_id`"),
        ("/optim_step", json!({ "model_id": RUN, "seq_id": 1 }), "`adam_params`"),
        ("/optim_step", json!({ "model_id": RUN, "seq_id": 1, "optimizer_params": { "type": "dimuon" } }), "`dimuon`"),
        ("/save_weights", json!({ "model_id": RUN, "seq_id": 1, "path": "a/b" }), "`a/b`"),
        ("/save_weights", json!({ "model_id": RUN, "seq_id": 1, "path": "a", "ttl_seconds": 0 }), "`ttl_seconds`"),
        ("/save_weights_for_sampler", json!({ "model_id": RUN, "seq_id": 1, "kind": "frozen" }), "`frozen`"),
        (
            "/save_weights_for_sampler",
            json!({ "model_id": RUN, "seq_id": 1, "path": "a", "kind": "inflight" }),
            "`inflight` have no `path`",
        ),
        (
            "/load_weights",
            json!({ "model_id": RUN, "seq_id": 1, "path": "tinker://x/weights/y", "optimizer": true }),
            "not there",
        ),
    ];
    for (path, body, text) in cases {
        let request = fixture.post(path, body.to_string()).await.ok()["request_id"].as_str().unwrap().to_owned();
        let failed = fixture.retrieve(&request, "application/x-protobuf").await.ok();
        assert_eq!(failed["category"], "user", "{failed}");
        assert!(failed["error"].as_str().unwrap().contains(text), "{failed} lacks {text}");
    }
    assert!(fixture.operations().is_empty(), "a wrong operation reached the trainer");
}

#[tokio::test]
async fn samples_that_are_not_served_fail_by_name() {
    let fixture = Fixture::new().await;
    let cases = [
        json!({ "target_prompt_logprobs": { "data": [1], "dtype": "int64" } }),
        json!({ "prompt": { "chunks": [{ "type": "image", "data": "AA==", "format": "png" }] } }),
        json!({ "record_stability_info": true }),
        json!({ "num_samples": 0 }),
        json!({ "prompt": { "chunks": [] } }),
        json!({ "sampling_params": { "top_p": 0 } }),
    ];
    for (number, changes) in cases.iter().enumerate() {
        let mut body = json!({
            "sampling_session_id": "s:sample:0", "seq_id": number, "prompt": { "chunks": [{ "tokens": [1] }] },
            "topk_prompt_logprobs": 0, "topk_sample_logprobs": 0, "prompt_alt_tokens_k": 0,
        });
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let answer = fixture.post("/asample", body.to_string()).await.ok();
        assert!(answer["sample_sequence_ids"].is_array(), "the SDK asserts that it is there: {answer}");
        let failed = fixture.retrieve(answer["request_id"].as_str().unwrap(), "application/x-protobuf").await.ok();
        assert_eq!(failed["category"], "user", "{changes}: {failed}");
    }
    assert!(fixture.sampler.calls.lock().is_empty());
    let foreign = json!({ "sampling_session_id": "s:sample:9", "prompt": { "chunks": [{ "tokens": [1] }] } });
    fixture.post("/asample", foreign.to_string()).await.refused(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_full_sampler_pushes_back_with_429() {
    let overloaded =
        |_| Err(Error::new(ErrorCode::Overloaded, "the queue is full").retry_after(Duration::from_secs(1)));
    let fixture = Fixture::with(overloaded, overloaded).await;
    let body = json!({ "sampling_session_id": "s:sample:0", "seq_id": 1, "prompt": { "chunks": [{ "tokens": [1] }] } });
    let answer = fixture.post("/asample", body.to_string()).await;
    answer.refused(StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers["retry-after"], "1");
    let step = json!({ "model_id": RUN, "seq_id": 1, "adam_params": {} });
    fixture.post("/optim_step", step.to_string()).await.refused(StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn protobuf_that_is_broken_or_far_too_large_is_refused() {
    let fixture = Fixture::new().await;
    let request =
        proto::ForwardBackwardRequest { model_id: RUN.into(), seq_id: 2, ..proto::ForwardBackwardRequest::default() };
    let mut broken = request.encode_to_vec();
    broken.extend_from_slice(b"\x1a\x7f\x00");
    fixture.post_protobuf("/forward_backward", broken).await.refused(StatusCode::BAD_REQUEST);
    let many = proto::ForwardBackwardRequest { data: vec![proto::Datum::default(); 1 << 16], ..request };
    let detail =
        fixture.post_protobuf("/forward_backward", many.encode_to_vec()).await.refused(StatusCode::BAD_REQUEST);
    assert!(detail.contains("datums"), "{detail}");
    assert!(fixture.operations().is_empty());
}

#[tokio::test]
async fn compressed_bodies_are_bounded() {
    let fixture = Fixture::new().await;
    let packed = |encoding: &'static str, body: Vec<u8>| {
        let request = Request::post("/forward_backward")
            .header("content-type", "application/x-protobuf")
            .header("content-encoding", encoding);
        fixture.send(request.body(body.into()).unwrap())
    };
    let bomb = zstd::encode_all(std::io::repeat(0).take(crate::node::MAX_DECOMPRESSED_BYTES as u64 + 1), 3).unwrap();
    assert!(bomb.len() < 100_000);
    packed("zstd", bomb).await.refused(StatusCode::PAYLOAD_TOO_LARGE);
    packed("zstd", b"not a frame".to_vec()).await.refused(StatusCode::BAD_REQUEST);
    let mut two = zstd::encode_all(&b"x"[..], 3).unwrap();
    two.extend_from_slice(b"tail");
    packed("zstd", two).await.refused(StatusCode::BAD_REQUEST);
    packed("gzip", vec![0x1f, 0x8b]).await.refused(StatusCode::BAD_REQUEST);
    packed("identity", vec![0; crate::node::MAX_BODY_BYTES as usize + 1]).await.refused(StatusCode::PAYLOAD_TOO_LARGE);
}
