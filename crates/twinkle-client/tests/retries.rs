//! How the client behaves towards a server that refuses, stalls and forgets. The server here is a script of answers; what a
//! real one does is tested in the whole-node tests.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};
use twinkle_client::{
    AdamParams, ConnectOptions, Datum, Error, LoraOptions, Loss, RetryPolicy, SamplingParams, ServiceClient,
    TensorData, TrainingClient,
};
use twinkle_core::call::{ForwardBackwardOutcome, Logprobs, SampleOutcome, SampledSequence, StopReason};
use twinkle_core::wire::tinker::{proto, sampling, training};

/// One scripted answer.
#[derive(Clone)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
}

/// What was asked, and what will be answered; an exhausted route repeats its last answer.
#[derive(Default)]
struct Script {
    answers: BTreeMap<&'static str, VecDeque<Answer>>,
    last: BTreeMap<String, Answer>,
    asked: Vec<(String, HeaderMap, Vec<u8>)>,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Script>>);

fn json_answer(status: u16, body: &Value) -> Answer {
    Answer { status, headers: vec![("content-type", "application/json")], body: body.to_string().into_bytes() }
}

fn proto_answer(message: &impl prost::Message) -> Answer {
    Answer { status: 200, headers: vec![("content-type", "application/x-protobuf")], body: message.encode_to_vec() }
}

fn accepted(request_id: &str) -> Answer {
    json_answer(200, &json!({ "request_id": request_id, "sample_sequence_ids": ["s"] }))
}

impl Server {
    /// A server that opens sessions and creates runs.
    fn new() -> Self {
        let server = Self::default();
        server
            .on("client/config", [json_answer(404, &json!({ "detail": "no such route" }))])
            .on("create_session", [json_answer(200, &json!({ "session_id": "s-1" }))])
            .on("create_model", [accepted("create")])
            .on("session_heartbeat", [json_answer(200, &json!({}))])
    }

    /// Scripts the answers of a route.
    fn on(self, route: &'static str, answers: impl IntoIterator<Item = Answer>) -> Self {
        self.0.lock().answers.entry(route).or_default().extend(answers);
        self
    }

    /// Bodies of the requests to a route so far.
    fn asked(&self, route: &str) -> Vec<Vec<u8>> {
        let script = self.0.lock();
        script.asked.iter().filter(|(asked, ..)| asked == route).map(|(_, _, body)| body.clone()).collect()
    }

    /// A header of the requests to a route so far.
    fn header(&self, route: &str, name: &str) -> Vec<String> {
        let script = self.0.lock();
        let of_route = script.asked.iter().filter(|(asked, ..)| asked == route);
        of_route.filter_map(|(_, headers, _)| Some(headers.get(name)?.to_str().ok()?.to_owned())).collect()
    }

    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}/prefix/")
    }

    async fn connect(&self) -> Result<ServiceClient, Error> {
        let retry = RetryPolicy {
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(4),
            give_up_after: Duration::from_millis(40),
            ..RetryPolicy::default()
        };
        let options =
            ConnectOptions { retry, heartbeat_interval: Duration::from_millis(5), ..ConnectOptions::default() };
        ServiceClient::connect_with(&self.start().await, "tml-test", options).await
    }

    async fn training(&self) -> TrainingClient {
        self.0
            .lock()
            .answers
            .entry("retrieve_future")
            .or_default()
            .push_front(json_answer(200, &json!({ "model_id": "s-1:train:0", "type": "create_model" })));
        let service = self.connect().await.unwrap();
        service.create_lora_training_client("tiny", LoraOptions::default()).await.unwrap()
    }
}

async fn answer(State(server): State<Server>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let route = uri.path().strip_prefix("/prefix/api/v1/").unwrap_or(uri.path()).to_owned();
    let mut script = server.0.lock();
    script.asked.push((route.clone(), headers, body.to_vec()));
    let next = script.answers.get_mut(route.as_str()).and_then(VecDeque::pop_front);
    let Some(answer) = next.or_else(|| script.last.get(&route).cloned()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    script.last.insert(route, answer.clone());
    let mut response = (StatusCode::from_u16(answer.status).unwrap(), answer.body).into_response();
    for (name, value) in answer.headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

fn datum() -> Datum {
    let inputs = [("target_tokens", TensorData::ints(vec![2])), ("weights", TensorData::floats(vec![1.0]))];
    Datum { tokens: vec![1], loss_inputs: inputs.map(|(name, tensor)| (name.to_owned(), tensor)).into() }
}

fn outcome(loss: f64) -> ForwardBackwardOutcome {
    ForwardBackwardOutcome {
        logprobs: vec![Logprobs::flat(vec![-loss as f32])],
        metrics: BTreeMap::from([("loss:sum".to_owned(), loss)]),
        ..ForwardBackwardOutcome::default()
    }
}

fn sampled(token: u32) -> proto::SampleResponse {
    let sequence = SampledSequence::new(vec![token], vec![-0.5], StopReason::Stop);
    sampling::outcome_to_proto(&SampleOutcome { sequences: vec![sequence], ..SampleOutcome::default() })
}

#[tokio::test]
async fn busy_answers_are_tried_again_with_the_same_idempotency_key() {
    let server = Server::new().on(
        "optim_step",
        [
            json_answer(503, &json!({ "detail": "queue full" })),
            json_answer(429, &json!({ "detail": "slow down" })),
            accepted("step"),
        ],
    );
    let training = server.training().await;
    let server = server.on("retrieve_future", [json_answer(200, &json!({ "metrics": { "grad_norm": 2.0 } }))]);
    let metrics = training.optim_step(AdamParams::default()).await.unwrap().await.unwrap();
    assert_eq!(metrics["grad_norm"].to_bits(), 2.0_f64.to_bits());
    let keys = server.header("optim_step", "x-idempotency-key");
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let bodies = server.asked("optim_step");
    assert!(bodies.iter().all(|body| *body == bodies[0]), "a retry is the same request");
    assert_eq!(server.header("optim_step", "x-api-key"), ["tml-test"; 3]);
}

#[tokio::test]
async fn a_refusal_is_not_tried_again_and_the_next_operation_has_the_next_number() {
    let refused = json_answer(400, &json!({ "detail": "learning rate is NaN" }));
    let server = Server::new().on("optim_step", [refused, accepted("step")]);
    let training = server.training().await;
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert!(matches!(&error, Error::Rejected { status: 400, message } if message == "learning rate is NaN"), "{error}");
    assert!(error.is_users_fault());
    training.optim_step(AdamParams::default()).await.map(drop).unwrap();
    let numbers: Vec<Value> = server
        .asked("optim_step")
        .iter()
        .map(|body| serde_json::from_slice::<Value>(body).unwrap()["seq_id"].clone())
        .collect();
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test]
async fn a_server_that_stays_down_is_given_up_on() {
    let server = Server::new().on("optim_step", [json_answer(500, &json!({ "detail": "broken" }))]);
    let training = server.training().await;
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert!(matches!(error, Error::Rejected { status: 500, .. }), "{error}");
    assert!(server.asked("optim_step").len() > 3);
}

#[tokio::test]
async fn a_result_is_asked_for_until_it_is_there() {
    let server = Server::new().on("forward_backward", [accepted("loss")]);
    let training = server.training().await;
    let pending = json_answer(408, &json!({ "queue_state": "active" }));
    let again = json_answer(200, &json!({ "type": "try_again", "request_id": "loss", "queue_state": "active" }));
    let down = json_answer(502, &json!({}));
    let server =
        server.on("retrieve_future", [pending, again, down, proto_answer(&training::outcome_to_proto(&outcome(1.5)))]);
    let result = training.forward_backward(vec![datum()], Loss::cross_entropy()).await.unwrap().await.unwrap();
    assert_eq!(result, outcome(1.5));
    // Creation asked once, the loss four times.
    assert_eq!(server.asked("retrieve_future").len(), 5);
}

#[tokio::test]
async fn a_failed_operation_says_whose_fault_it_is() {
    let server = Server::new().on("forward_backward", [accepted("loss")]);
    let training = server.training().await;
    let _server =
        server.on("retrieve_future", [json_answer(200, &json!({ "error": "unknown loss", "category": "User" }))]);
    let error = training.forward(vec![datum()], Loss::named("nope")).await.unwrap().await.unwrap_err();
    assert!(matches!(&error, Error::Failed { category, .. } if category == "user"), "{error}");
    assert!(error.is_users_fault());
}

#[tokio::test]
async fn a_large_batch_goes_in_numbered_chunks_and_comes_back_as_one() {
    let server = Server::new().on("forward_backward", [accepted("one"), accepted("two")]);
    let training = server.training().await;
    let results = [outcome(1.0), outcome(2.0)].map(|outcome| proto_answer(&training::outcome_to_proto(&outcome)));
    let server = server.on("retrieve_future", results);
    let data = vec![datum(); 1025];
    let pending = training.forward_backward(data, Loss::cross_entropy()).await.unwrap();
    // The first chunk is sent last, so that the server has all when it begins.
    assert_eq!(pending.request_ids(), ["two", "one"]);
    let result = pending.await.unwrap();
    assert_eq!(result.metrics["loss:sum"].to_bits(), 3.0_f64.to_bits());
    assert_eq!(result.logprobs.len(), 2);
    let sent: Vec<(i32, usize)> = server
        .asked("forward_backward")
        .into_iter()
        .map(|body| <proto::ForwardBackwardRequest as prost::Message>::decode(body.as_slice()).unwrap())
        .map(|request| (request.seq_id, request.data.len()))
        .collect();
    assert_eq!(sent, [(2, 1), (1, 1024)]);
}

#[tokio::test]
async fn a_forgotten_sample_is_submitted_again_with_its_number() {
    let server = Server::new()
        .on("create_sampling_session", [json_answer(200, &json!({ "sampling_session_id": "s-1:sample:0" }))])
        .on("asample", [accepted("try-1"), accepted("try-2")])
        .on("retrieve_future", [json_answer(410, &json!({ "detail": "gone" })), proto_answer(&sampled(7))]);
    let service = server.connect().await.unwrap();
    let sampler = service.create_sampling_client("tiny").await.unwrap();
    let result = sampler.sample(vec![1, 2], 1, SamplingParams::greedy(4)).await.unwrap().await.unwrap();
    assert_eq!(result.sequences[0].tokens, [7]);
    let bodies = server.asked("asample");
    assert!(bodies.len() == 2 && bodies[0] == bodies[1]);
}

#[tokio::test]
async fn a_session_sends_signs_of_life_by_itself() {
    let server = Server::new();
    let _service = server.connect().await.unwrap();
    while server.asked("session_heartbeat").len() < 3 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn addresses_and_keys_that_cannot_work_are_refused_at_once() {
    for (url, key) in [("127.0.0.1:8000", "tml-x"), ("http://127.0.0.1:9", ""), ("http://127.0.0.1:9", "a\nb")] {
        let error = ServiceClient::connect(url, key).await.unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }
}
