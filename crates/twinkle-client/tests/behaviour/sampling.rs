//! Samples that are slowed down, forgotten, given up.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use twinkle_client::{Pending, SampleOutcome, SamplingParams};

use crate::script::{Answer, Server, accepted, json_answer, proto_answer, sampled};

/// A server with one sampling session.
fn server() -> Server {
    Server::new().on("create_sampling_session", [json_answer(200, &json!({ "sampling_session_id": "s-1:sample:0" }))])
}

async fn sample(server: &Server) -> Pending<SampleOutcome> {
    let service = server.connect().await.unwrap();
    let sampler = service.create_sampling_client("tiny").await.unwrap();
    sampler.sample(vec![1, 2], 1, SamplingParams::greedy(4)).await.unwrap()
}

#[tokio::test]
async fn a_forgotten_sample_is_submitted_again_with_its_number() {
    let server = server()
        .on("asample", [accepted("try-1"), accepted("try-2")])
        .on("retrieve_future", [json_answer(410, &json!({ "detail": "gone" })), proto_answer(&sampled(7))]);
    let result = sample(&server).await.await.unwrap();
    assert_eq!(result.sequences[0].tokens, [7]);
    let bodies = server.asked("asample");
    assert!(bodies.len() == 2 && bodies[0] == bodies[1]);
}

#[tokio::test]
async fn slow_down_is_obeyed_for_as_long_as_the_server_says_so() {
    let wish = "30";
    let busy = Answer { headers: vec![("retry-after-ms", wish)], ..json_answer(429, &json!({ "detail": "full" })) };
    // Far more often than other trouble would be borne.
    let answers = [busy.clone(), busy.clone(), busy.clone(), busy, accepted("sample")];
    let server = server().on("asample", answers).on("retrieve_future", [proto_answer(&sampled(7))]);
    let begun = Instant::now();
    assert_eq!(sample(&server).await.await.unwrap().sequences[0].tokens, [7]);
    assert!(begun.elapsed() >= Duration::from_millis(4 * 30));
    assert_eq!(server.asked("asample").len(), 5);
    assert_eq!(server.header("asample", "x-tinker-sampling-backpressure"), ["1"; 5]);
}

#[tokio::test]
async fn a_dropped_sample_is_cancelled_where_the_server_wants_to_know() {
    for wants in [true, false] {
        let server = server()
            .on("client/dynamic_config", [json_answer(200, &json!({ "sample_cancel_enabled": wants }))])
            .on("asample", [accepted("sample")])
            .on("retrieve_future", [json_answer(408, &json!({}))])
            .on("cancel_future", [json_answer(200, &json!({}))]);
        let service = server.connect().await.unwrap();
        let sampler = service.create_sampling_client("tiny").await.unwrap();
        let pending = sampler.sample(vec![1, 2], 1, SamplingParams::greedy(4)).await.unwrap();
        drop(pending);
        if wants {
            while server.asked("cancel_future").is_empty() {
                tokio::task::yield_now().await;
            }
        } else {
            // Said by the client itself, after whatever dropping may have caused.
            service.create_sampling_client("tiny").await.unwrap();
            assert!(server.asked("cancel_future").is_empty());
        }
    }
}

#[tokio::test]
async fn a_sample_that_is_done_is_not_cancelled() {
    let server = server()
        .on("client/dynamic_config", [json_answer(200, &json!({ "sample_cancel_enabled": true }))])
        .on("asample", [accepted("sample")])
        .on("retrieve_future", [proto_answer(&sampled(7))]);
    let pending = sample(&server).await;
    let _ = pending.await.unwrap();
    assert!(server.asked("cancel_future").is_empty());
}

#[tokio::test]
async fn only_as_many_samples_are_under_way_as_the_server_bears() {
    let server = Server::default()
        .on("client/config", [json_answer(200, &json!({ "sample_max_concurrent_requests": 1 }))])
        .on("create_session", [json_answer(200, &json!({ "session_id": "s-1" }))])
        .on("create_sampling_session", [json_answer(200, &json!({ "sampling_session_id": "s-1:sample:0" }))])
        .on("asample", [accepted("sample")])
        .on("retrieve_future", [proto_answer(&sampled(7))]);
    let service = server.connect().await.unwrap();
    let sampler = service.create_sampling_client("tiny").await.unwrap();
    // None is awaited before all are submitted: each makes room for the next by itself.
    let mut pending = Vec::new();
    for _ in 0..5 {
        pending.push(sampler.sample(vec![1], 1, SamplingParams::greedy(1)).await.unwrap());
    }
    for one in pending {
        assert_eq!(one.await.unwrap().sequences[0].tokens, [7]);
    }
}
