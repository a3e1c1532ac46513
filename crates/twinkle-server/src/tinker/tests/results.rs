//! How results are retrieved.

use prost::Message;
use serde_json::json;
use twinkle_core::ErrorCode;
use twinkle_core::call::{ForwardBackwardOutcome, Logprobs, RunOutcome, SamplerTarget};
use twinkle_core::futures::Outcome;
use twinkle_core::wire::tinker::{proto, sampling, training};

use super::*;

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/x-protobuf";

/// A front on which this operation is already finished.
async fn finished(result: Result<Outcome>) -> (Fixture, &'static str) {
    let fixture = Fixture::new().await;
    let request = RequestId::new("op-7");
    fixture.context.futures.register(&request, &alice()).unwrap();
    fixture.context.futures.complete(&request, &alice(), result);
    (fixture, "op-7")
}

#[tokio::test]
async fn a_training_result_is_protobuf_for_those_who_take_it() {
    let outcome = ForwardBackwardOutcome {
        logprobs: vec![Logprobs::flat(vec![-1.0, -2.0])],
        metrics: BTreeMap::from([("loss:sum".to_owned(), 3.0)]),
        ..ForwardBackwardOutcome::default()
    };
    let (fixture, request) = finished(Ok(Outcome::Run(RunOutcome::ForwardBackward(outcome.clone())))).await;
    let answer = fixture.retrieve(request, "application/x-protobuf, application/json").await;
    assert_eq!((answer.status, answer.headers["content-type"].to_str().unwrap()), (StatusCode::OK, PROTOBUF));
    let output = proto::ForwardBackwardOutput::decode(answer.body).unwrap();
    assert_eq!(training::outcome_from_proto(&output).unwrap(), outcome);
    let answer = fixture.retrieve(request, JSON).await;
    assert_eq!(answer.headers["content-type"], JSON);
    let tensor = json!({ "data": [-1.0, -2.0], "dtype": "float32", "shape": [2] });
    assert_eq!(answer.ok()["loss_fn_outputs"], json!([{ "logprobs": tensor }]));
    assert_eq!(answer.ok()["metrics"], json!({ "loss:sum": 3.0 }));
}

#[tokio::test]
async fn a_sample_is_protobuf_for_those_who_take_it() {
    let (fixture, request) = finished(Ok(Outcome::Sample(sample_outcome()))).await;
    let answer = fixture.retrieve(request, PROTOBUF).await;
    let response = proto::SampleResponse::decode(answer.body).unwrap();
    assert_eq!(sampling::outcome_from_proto(&response).unwrap(), sample_outcome());
    let answer = fixture.retrieve(request, JSON).await.ok();
    let spans = json!([{ "length": 2, "adapter": null, "operation": null, "optimizer_steps": null }]);
    let sequence = json!({ "stop_reason": "stop", "tokens": [7, 2], "logprobs": [-0.5, -0.25], "weight_spans": spans });
    assert_eq!(answer["sequences"], json!([sequence]));
}

#[tokio::test]
async fn other_results_are_json_for_everyone() {
    let path = CheckpointPath::parse(CHECKPOINT).unwrap();
    let run = RunId::new(RUN);
    let live = SamplerTarget::Live(SamplingSessionId::new("s:sample:1"));
    let metrics = BTreeMap::from([("grad_norm".to_owned(), 0.5)]);
    let cases = [
        (RunOutcome::Created { run: run.clone() }, json!({ "model_id": RUN, "type": "create_model" })),
        (RunOutcome::OptimStep { metrics }, json!({ "metrics": { "grad_norm": 0.5 } })),
        (RunOutcome::Saved { path: path.clone() }, json!({ "path": CHECKPOINT, "type": "save_weights" })),
        (
            RunOutcome::SavedForSampler { target: live },
            json!({ "path": null, "sampling_session_id": "s:sample:1", "type": "save_weights_for_sampler" }),
        ),
        (
            RunOutcome::SavedForSampler { target: SamplerTarget::Checkpoint(path.clone()) },
            json!({ "path": CHECKPOINT, "type": "save_weights_for_sampler" }),
        ),
        (
            RunOutcome::Loaded { run: run.clone(), path, progress: None },
            json!({ "path": CHECKPOINT, "model_id": RUN, "type": "load_weights" }),
        ),
        (RunOutcome::Unloaded { run }, json!({ "model_id": RUN, "type": "unload_model" })),
    ];
    for (outcome, expected) in cases {
        let (fixture, request) = finished(Ok(Outcome::Run(outcome))).await;
        assert_eq!(fixture.retrieve(request, PROTOBUF).await.ok(), expected);
    }
}

#[tokio::test]
async fn a_model_made_by_loading_answers_a_load() {
    let (fixture, request) = finished(Ok(Outcome::Run(RunOutcome::Created { run: RunId::new(RUN) }))).await;
    let body = json!({ "request_id": request, "allow_metadata_only": true }).to_string();
    let asked =
        Request::post("/retrieve_future").header("x-tinker-request-type", "LoadWeights").body(body.into()).unwrap();
    let answer = fixture.send(asked).await.ok();
    assert_eq!(answer, json!({ "path": null, "model_id": RUN, "type": "load_weights" }));
}

#[tokio::test]
async fn failures_say_whose_fault_it_was() {
    for (code, category) in [
        (ErrorCode::InvalidArgument, "user"),
        (ErrorCode::Internal, "server"),
        (ErrorCode::ResourceExhausted, "server"),
    ] {
        let (fixture, request) = finished(Err(Error::new(code, "no room").hint("make some"))).await;
        let answer = fixture.retrieve(request, PROTOBUF).await;
        assert_eq!(answer.ok(), json!({ "error": "no room (hint: make some)", "category": category }));
    }
}

#[tokio::test]
async fn an_unfinished_request_is_held_and_then_answered_408() {
    let fixture = Fixture::new().await;
    let request = fixture.context.futures.spawn(&alice(), "sample", std::future::pending()).unwrap();
    // Only now: opening the store takes real time.
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let answer = fixture.retrieve(request.as_str(), PROTOBUF).await;
    assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(answer.json()["queue_state"], "active");
    let held = before.elapsed();
    assert!(held >= Duration::from_secs(20) && held < Duration::from_secs(45), "held for {held:?}");
}

#[tokio::test]
async fn a_stopping_node_lets_polls_go() {
    let fixture = Fixture::new().await;
    let request = fixture.context.futures.spawn(&alice(), "sample", std::future::pending()).unwrap();
    fixture.context.stopping.cancel();
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    assert_eq!(fixture.retrieve(request.as_str(), PROTOBUF).await.status, StatusCode::REQUEST_TIMEOUT);
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn lost_samples_are_sent_again_and_unknown_requests_are_not() {
    let fixture = Fixture::new().await;
    fixture.retrieve(RequestId::ephemeral().as_str(), PROTOBUF).await.refused(StatusCode::GONE);
    fixture.retrieve(RequestId::journaled().as_str(), PROTOBUF).await.refused(StatusCode::NOT_FOUND);
    let mut foreign = Request::post("/retrieve_future").body(Body::from(r#"{"request_id":"op-7"}"#)).unwrap();
    foreign.extensions_mut().insert(TenantId::new("bob"));
    let (owner, _) = finished(Ok(Outcome::Sample(sample_outcome()))).await;
    let answer = owner.router.clone().oneshot(foreign).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}
