//! Polls: big results, reasons to wait, completions in bulk, cancelled samples.

use serde_json::json;
use twinkle_core::call::{ForwardBackwardOutcome, Logprobs, RunOutcome};
use twinkle_core::component::BoxComponent;
use twinkle_core::futures::{Outcome, Parties, StreamKey};

use super::*;

const SESSION: &str = "s:sample:0";

/// A training result of this many positions.
async fn finished(positions: usize) -> Fixture {
    let fixture = Fixture::new().await;
    let outcome =
        ForwardBackwardOutcome { logprobs: vec![Logprobs::flat(vec![-1.0; positions])], ..Default::default() };
    let request = RequestId::new("op-7");
    fixture.context.futures.register(&request, &alice()).unwrap();
    let outcome = Ok(Outcome::Run(RunOutcome::ForwardBackward(outcome)));
    fixture.context.futures.complete(&request, &alice(), outcome);
    fixture
}

#[tokio::test]
async fn a_client_that_wants_to_know_is_told_the_size_of_a_big_result_before_it_asks_for_it() {
    let asking = json!({ "request_id": "op-7", "allow_metadata_only": true }).to_string();
    let fixture = finished(100_000).await;
    let metadata = fixture.post("/retrieve_future", asking.clone()).await.ok();
    assert_eq!((&metadata["status"], &metadata["request_id"]), (&json!("complete_metadata"), &json!("op-7")));
    assert!(metadata["response_payload_size"].as_u64() >= Some(400_000), "{metadata}");
    for _ in 0..2 {
        let plain = json!({ "request_id": "op-7", "allow_metadata_only": false }).to_string();
        let result = fixture.post("/retrieve_future", plain).await.ok();
        assert!(result["loss_fn_outputs"].is_array(), "a client that has made room is never told the size again");
    }
    let small = finished(100).await.post("/retrieve_future", asking).await.ok();
    assert!(small["loss_fn_outputs"].is_array(), "a small result comes at once");
}

/// A sampler with a full engine.
#[derive(Clone)]
struct Busy;

impl Service<Call> for Busy {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Call) -> Self::Future {
        Box::pin(std::future::pending())
    }
}

impl Lifecycle for Busy {
    fn kind(&self) -> ComponentKind {
        ComponentKind::Sampler
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn status(&self) -> Value {
        json!({ "samples_waiting": 3 })
    }

    fn drain(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

impl Component for Busy {
    type Args = ();
    type Context = ();

    async fn build((): (), (): ()) -> Result<Self> {
        Err(Error::unsupported("it is made by hand"))
    }
}

fn parties(worker: Option<BoxComponent>) -> Parties {
    let stream = StreamKey { tenant: alice(), session: SamplingSessionId::new(SESSION), client: 0 };
    Parties { stream: Some(stream), worker }
}

#[tokio::test]
async fn a_poll_of_a_sample_says_when_the_engine_is_full() {
    let fixture = Fixture::new().await;
    let busy = parties(Some(Component::boxed(Busy)));
    let request = fixture.context.futures.spawn_for(&alice(), "sample", &busy, std::future::pending()).unwrap();
    tokio::time::pause();
    let answer = fixture.retrieve(request.as_str(), "application/json").await;
    assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(answer.json()["queue_state"], "paused_capacity");
    assert_eq!(answer.json()["queue_state_reason"], "3 samples wait for a place in the engine");
}

/// A poll for completions.
async fn completions(fixture: &Fixture, cursor: u64, more: Value) -> Response {
    let mut body = json!({ "target": { "sampling_session_id": SESSION }, "prev_cursor": cursor });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    fixture.post("/retrieve_futures", body.to_string()).await
}

#[tokio::test]
async fn a_poll_without_completions_is_held_for_as_long_as_it_says_and_no_longer_than_a_client_waits() {
    let fixture = Fixture::new().await;
    tokio::time::pause();
    for (timeout, shortest, longest) in
        [(json!(0), 0, 1), (json!(2.5), 2, 3), (json!(null), 20, 30), (json!(90), 20, 30)]
    {
        let before = tokio::time::Instant::now();
        let answer = completions(&fixture, 17, json!({ "timeout": timeout })).await.ok();
        assert_eq!(answer, json!({ "completions": [], "cursor": 17 }));
        let held = before.elapsed();
        assert!(held >= Duration::from_secs(shortest) && held <= Duration::from_secs(longest), "{timeout}: {held:?}");
    }
}

#[tokio::test]
async fn a_poll_that_makes_no_sense_is_refused_for_good() {
    let fixture = Fixture::new().await;
    completions(&fixture, 0, json!({ "timeout": -1 })).await.refused(StatusCode::BAD_REQUEST);
    completions(&fixture, 0, json!({ "timeout": 1e300 })).await.refused(StatusCode::BAD_REQUEST);
    let target = json!({ "type": "training_run", "sampling_session_id": SESSION });
    completions(&fixture, 0, json!({ "target": target })).await.refused(StatusCode::BAD_REQUEST);
    let target = json!({ "sampling_session_id": "nowhere" });
    completions(&fixture, 0, json!({ "target": target })).await.refused(StatusCode::NOT_FOUND);
    fixture.post("/cancel_future", "{}").await.refused(StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_stopping_node_lets_polls_for_completions_go_and_keeps_their_place() {
    let fixture = Fixture::new().await;
    fixture.context.stopping.cancel();
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let answer = completions(&fixture, 17, json!({})).await.ok();
    assert_eq!(answer, json!({ "completions": [], "cursor": 17 }));
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn cancelling_drops_the_work_and_is_answered_alike_for_whatever_is_named() {
    let fixture = Fixture::new().await;
    let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
    let work = async move {
        let _alive = alive;
        std::future::pending().await
    };
    let request = fixture.context.futures.spawn_for(&alice(), "sample", &parties(None), work).unwrap();
    for named in [request.as_str(), request.as_str(), "try-never", "op-never", ""] {
        let answer = fixture.post("/cancel_future", json!({ "request_id": named }).to_string()).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0), "{named}");
    }
    assert!(dropped.await.is_err(), "the work is gone");
    let late = fixture.retrieve(request.as_str(), "application/x-protobuf").await.ok();
    assert_eq!(late["category"], "user", "the SDK does not submit it again: {late}");
    let told = completions(&fixture, 0, json!({ "timeout": 0 })).await.ok();
    assert_eq!(told["completions"], json!([]), "its end was just fetched");
}
