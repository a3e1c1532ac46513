//! A server that is a script of answers.

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
    ConnectOptions, Datum, Error, LoraOptions, RetryPolicy, ServiceClient, TensorData, TrainingClient,
};
use twinkle_core::call::{ForwardBackwardOutcome, Logprobs, SampleOutcome, SampledSequence, StopReason};
use twinkle_core::wire::tinker::{proto, sampling};

/// One scripted answer.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: Vec<u8>,
}

/// What was asked, and what will be answered; an exhausted route repeats its last answer.
#[derive(Default)]
pub(crate) struct Script {
    answers: BTreeMap<&'static str, VecDeque<Answer>>,
    last: BTreeMap<String, Answer>,
    asked: Vec<(String, HeaderMap, Vec<u8>)>,
}

#[derive(Clone, Default)]
pub(crate) struct Server(Arc<Mutex<Script>>);

pub(crate) fn json_answer(status: u16, body: &Value) -> Answer {
    Answer { status, headers: vec![("content-type", "application/json")], body: body.to_string().into_bytes() }
}

pub(crate) fn proto_answer(message: &impl prost::Message) -> Answer {
    Answer { status: 200, headers: vec![("content-type", "application/x-protobuf")], body: message.encode_to_vec() }
}

pub(crate) fn accepted(request_id: &str) -> Answer {
    json_answer(200, &json!({ "request_id": request_id, "sample_sequence_ids": ["s"] }))
}

impl Server {
    /// A server that opens sessions and creates runs.
    pub(crate) fn new() -> Self {
        let server = Self::default();
        server
            .on("client/config", [json_answer(404, &json!({ "detail": "no such route" }))])
            .on("create_session", [json_answer(200, &json!({ "session_id": "s-1" }))])
            .on("create_model", [accepted("create")])
            .on("session_heartbeat", [json_answer(200, &json!({}))])
    }

    /// Scripts the answers of a route.
    pub(crate) fn on(self, route: &'static str, answers: impl IntoIterator<Item = Answer>) -> Self {
        self.0.lock().answers.entry(route).or_default().extend(answers);
        self
    }

    /// Bodies of the requests to a route so far.
    pub(crate) fn asked(&self, route: &str) -> Vec<Vec<u8>> {
        let script = self.0.lock();
        script.asked.iter().filter(|(asked, ..)| asked == route).map(|(_, _, body)| body.clone()).collect()
    }

    /// A header of the requests to a route so far.
    pub(crate) fn header(&self, route: &str, name: &str) -> Vec<String> {
        let script = self.0.lock();
        let of_route = script.asked.iter().filter(|(asked, ..)| asked == route);
        of_route.filter_map(|(_, headers, _)| Some(headers.get(name)?.to_str().ok()?.to_owned())).collect()
    }

    pub(crate) async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}/prefix/")
    }

    pub(crate) async fn connect(&self) -> Result<ServiceClient, Error> {
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

    pub(crate) async fn training(&self) -> TrainingClient {
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

pub(crate) fn datum() -> Datum {
    let inputs = [("target_tokens", TensorData::ints(vec![2])), ("weights", TensorData::floats(vec![1.0]))];
    Datum { tokens: vec![1], loss_inputs: inputs.map(|(name, tensor)| (name.to_owned(), tensor)).into() }
}

pub(crate) fn outcome(loss: f64) -> ForwardBackwardOutcome {
    ForwardBackwardOutcome {
        logprobs: vec![Logprobs::flat(vec![-loss as f32])],
        metrics: BTreeMap::from([("loss:sum".to_owned(), loss)]),
        ..ForwardBackwardOutcome::default()
    }
}

pub(crate) fn sampled(token: u32) -> proto::SampleResponse {
    let sequence = SampledSequence::new(vec![token], vec![-0.5], StopReason::Stop);
    sampling::outcome_to_proto(&SampleOutcome { sequences: vec![sequence], ..SampleOutcome::default() })
}
