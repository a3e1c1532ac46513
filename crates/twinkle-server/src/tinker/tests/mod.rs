//! The front against recording components: what a request asks of them, and what is answered.

mod order;
mod polls;
mod reference;
mod refusals;
mod requests;
mod results;
mod weights;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};
use twinkle_core::call::{
    Call, CheckpointRecord, LoraSpec, Operation, Reply, RunCall, RunRecord, SampleOutcome, SampledSequence,
    SamplingSessionRecord, SamplingSource, ServeOutcome, ServeRequest, SessionRecord, StopReason,
};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{Component, ComponentKind, Health, Lifecycle};
use twinkle_core::config::TrainMode;
use twinkle_core::error::{Error, Result};
use twinkle_core::futures::{Futures, FuturesOptions};
use twinkle_core::ids::{CheckpointPath, RequestId, RunId, SamplingSessionId, SessionId, TenantId};
use twinkle_core::state::StateStore;

use super::router;
use crate::directory::{Directory, ServedModel};
use crate::downloads::{Downloads, SigningKey};
use crate::front::FrontContext;

const MODEL: &str = "tiny/model";
const RUN: &str = "s:train:0";
const CHECKPOINT: &str = "tinker://s:train:0/weights/final";

type Answer = Arc<dyn Fn(Call) -> Result<Reply> + Send + Sync>;

/// A component that notes every call and answers from a function.
#[derive(Clone)]
struct Recorder {
    kind: ComponentKind,
    calls: Arc<Mutex<Vec<Call>>>,
    answer: Answer,
}

impl Recorder {
    fn new(kind: ComponentKind, answer: impl Fn(Call) -> Result<Reply> + Send + Sync + 'static) -> Self {
        Self { kind, calls: Arc::default(), answer: Arc::new(answer) }
    }
}

impl Service<Call> for Recorder {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.calls.lock().push(call.clone());
        let answer = (self.answer)(call);
        Box::pin(async move { answer })
    }
}

impl Lifecycle for Recorder {
    fn kind(&self) -> ComponentKind {
        self.kind
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn drain(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

impl Component for Recorder {
    type Args = ();
    type Context = ();

    async fn build((): (), (): ()) -> Result<Self> {
        Err(Error::unsupported("a recorder is made by hand"))
    }
}

/// A front with recording components behind it.
struct Fixture {
    router: axum::Router,
    context: FrontContext,
    trainer: Recorder,
    sampler: Recorder,
    server: Recorder,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|_| Ok(Reply::Accepted(RequestId::new("op-1"))), |_| Ok(Reply::Sample(sample_outcome()))).await
    }

    async fn with(
        train: impl Fn(Call) -> Result<Reply> + Send + Sync + 'static,
        sample: impl Fn(Call) -> Result<Reply> + Send + Sync + 'static,
    ) -> Self {
        let trainer = Recorder::new(ComponentKind::Model, train);
        let sampler = Recorder::new(ComponentKind::Sampler, sample);
        let server = Recorder::new(ComponentKind::Server, serve);
        let model = ServedModel {
            name: MODEL.to_owned(),
            max_context: 128,
            vocabulary: 256,
            train_mode: TrainMode::Lora,
            max_rank: 32,
            max_loras: 8,
            default_alpha: 32.0,
            tokenizer: PathBuf::from("models/tiny"),
            trainer: Some(Component::boxed(trainer.clone())),
            journal: None,
            sampler: Some(Component::boxed(sampler.clone())),
        };
        let store = StateStore::open_in_memory().await.unwrap();
        let checkpoints = CheckpointStore::new(PathBuf::from("nowhere"));
        let context = FrontContext {
            server: Component::boxed(server.clone()),
            directory: Directory::new(vec![model]),
            futures: Futures::new(store.clone(), FuturesOptions::default()),
            settings: Arc::default(),
            store: store.clone(),
            checkpoints: checkpoints.clone(),
            downloads: Downloads::new(SigningKey::fresh(), store, checkpoints, false),
            templates: twinkle_processor::Templates::default(),
            stopping: CancellationToken::new(),
        };
        Self { router: router(context.clone(), &[]), context, trainer, sampler, server }
    }

    async fn send(&self, request: Request<Body>) -> Response {
        let mut request = request;
        request.extensions_mut().insert(alice());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        Response { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    async fn get(&self, path: &str) -> Response {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Response {
        self.send(Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()).await
    }

    async fn post_protobuf(&self, path: &str, body: impl Into<Body>) -> Response {
        self.send(Request::post(path).header("content-type", "application/x-protobuf").body(body.into()).unwrap()).await
    }

    /// Retrieves a result as a client does that takes these media types.
    async fn retrieve(&self, request: &str, accept: &str) -> Response {
        let body = serde_json::json!({ "request_id": request }).to_string();
        self.send(Request::post("/retrieve_future").header("accept", accept).body(body.into()).unwrap()).await
    }

    /// The operations the trainer was asked for.
    fn operations(&self) -> Vec<RunCall> {
        let calls = self.trainer.calls.lock();
        calls
            .iter()
            .map(|call| match &call.operation {
                Operation::Run(call) => call.clone(),
                other => panic!("the trainer was sent {other:?}"),
            })
            .collect()
    }
}

#[derive(Debug)]
struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Response {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The body of a success.
    #[track_caller]
    fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        self.json()
    }

    /// The text of a refusal, which must have this status, a body and its length.
    #[track_caller]
    fn refused(&self, status: StatusCode) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let length: usize = self.headers["content-length"].to_str().unwrap().parse().unwrap();
        assert_eq!(length, self.body.len());
        let detail = self.json()["detail"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned();
        assert!(!detail.is_empty());
        detail
    }
}

fn alice() -> TenantId {
    TenantId::new("alice")
}

fn lora() -> LoraSpec {
    LoraSpec { rank: 8, seed: 1, train_unembed: false, ..LoraSpec::default() }
}

fn sample_outcome() -> SampleOutcome {
    let sequence = SampledSequence::new(vec![7, 2], vec![-0.5, -0.25], StopReason::Stop);
    SampleOutcome { sequences: vec![sequence], ..SampleOutcome::default() }
}

fn checkpoint(name: &str) -> CheckpointRecord {
    CheckpointRecord {
        path: CheckpointPath::parse(name).unwrap(),
        tenant: alice(),
        base_model: MODEL.to_owned(),
        lora: lora(),
        size_bytes: 1234,
        user_metadata: BTreeMap::new(),
        created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        expires_at: None,
        public: false,
    }
}

/// A server component with one session, one run, one checkpoint and one sampling session.
fn serve(call: Call) -> Result<Reply> {
    let Operation::Serve(request) = call.operation else { panic!("the server was sent {:?}", call.operation) };
    let session = |id: SessionId, finished| SessionRecord {
        id,
        tenant: alice(),
        tags: Vec::new(),
        user_metadata: BTreeMap::new(),
        sdk_version: None,
        finished,
        created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        project_id: None,
        display_name: None,
        client_end: None,
    };
    let run = || RunRecord {
        id: RunId::new(RUN),
        tenant: alice(),
        session: SessionId::new("s"),
        base_model: MODEL.to_owned(),
        lora: lora(),
        user_metadata: BTreeMap::from([("renderer".to_owned(), "role_colon".to_owned())]),
        closed: false,
        created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        last_used_at: "2026-01-02T03:04:05Z".parse().unwrap(),
    };
    let sampling_session = |id: SamplingSessionId, source| SamplingSessionRecord {
        id,
        tenant: alice(),
        session: SessionId::new("s"),
        base_model: MODEL.to_owned(),
        source,
    };
    let outcome = match request {
        ServeRequest::CreateSession { .. } => ServeOutcome::Session(session(SessionId::new("s"), false)),
        ServeRequest::DescribeSession(id) if id.as_str() == "s" => ServeOutcome::Session(session(id, false)),
        ServeRequest::DescribeSession(id) if id.as_str() == "over" => ServeOutcome::Session(session(id, true)),
        ServeRequest::Heartbeat(id) if id.as_str() == "s" => ServeOutcome::Done,
        ServeRequest::Heartbeat(id) if id.as_str() == "over" => {
            return Err(Error::new(twinkle_core::ErrorCode::Gone, "session `over` is finished"));
        }
        ServeRequest::FinishSession { session, .. } if session.as_str() == "s" => ServeOutcome::Done,
        ServeRequest::DescribeRun(id) if id.as_str() == RUN => ServeOutcome::Run(run()),
        ServeRequest::ListRuns { .. } => ServeOutcome::Runs { runs: vec![run()], total: 21 },
        ServeRequest::ListCheckpoints { .. } | ServeRequest::LatestCheckpoints(_) => {
            ServeOutcome::Checkpoints { checkpoints: vec![checkpoint(CHECKPOINT)], total: 1 }
        }
        ServeRequest::DescribeCheckpoint(path) if path.to_string() == CHECKPOINT => {
            ServeOutcome::Checkpoint(checkpoint(CHECKPOINT))
        }
        ServeRequest::DeleteCheckpoint(path)
        | ServeRequest::KeepCheckpoint { path, .. }
        | ServeRequest::PublishCheckpoint { path, .. }
            if path.to_string() == CHECKPOINT =>
        {
            ServeOutcome::Done
        }
        ServeRequest::CopyCheckpoint(_) => ServeOutcome::Checkpoint(checkpoint("tinker://copy:train:0/weights/final")),
        ServeRequest::SearchSessions(_) => ServeOutcome::FoundSessions { sessions: Vec::new(), next: None },
        ServeRequest::CreateSamplingSession { session, number, source, .. } => {
            ServeOutcome::SamplingSession(sampling_session(SamplingSessionId::of_session(&session, number), source))
        }
        ServeRequest::DescribeSamplingSession(id) if id.as_str() == "s:sample:0" => {
            ServeOutcome::SamplingSession(sampling_session(id, SamplingSource::Base))
        }
        other => return Err(Error::not_found(format!("not there: {other:?}"))),
    };
    Ok(Reply::Serve(outcome))
}

/// The `server` component's calls, by what they ask.
fn asked(recorder: &Recorder) -> Vec<ServeRequest> {
    let calls = recorder.calls.lock();
    calls
        .iter()
        .filter_map(|call| match &call.operation {
            Operation::Serve(request) => Some(request.clone()),
            _ => None,
        })
        .collect()
}
