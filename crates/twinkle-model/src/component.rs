//! The `model` component: a handle that puts calls in line for the engine thread.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::PollSender;
use tower::Service;
use twinkle_core::call::{Call, Operation, Reply};
use twinkle_core::component::{Component, ComponentKind, Health, Lifecycle, misrouted};
use twinkle_core::{Error, ErrorCode, Result};

use crate::engine::{Command, Engine, EngineContext, EngineLimits, Work};

/// Operations that may wait between the journal and the engine; more wait in the journal.
const LINE_LENGTH: usize = 256;

/// What the launcher hands over besides the arguments.
pub type ModelContext = EngineContext;

/// A cloneable handle to one base model's training engine.
#[derive(Clone)]
pub struct ModelComponent {
    line: PollSender<Command>,
    state: Arc<SharedState>,
}

struct SharedState {
    thread: thread::JoinHandle<()>,
}

impl Component for ModelComponent {
    type Args = EngineLimits;
    type Context = ModelContext;

    async fn build(limits: EngineLimits, mut context: ModelContext) -> Result<Self> {
        context.limits = limits;
        let (sender, receiver) = tokio::sync::mpsc::channel(LINE_LENGTH);
        let engine = Engine::new(context, Handle::current());
        let thread = thread::Builder::new()
            .name("model-engine".to_owned())
            .spawn(move || engine.work(receiver))
            .map_err(|error| Error::internal(format!("the engine thread could not be started: {error}")))?;
        Ok(Self { line: PollSender::new(sender), state: Arc::new(SharedState { thread }) })
    }
}

impl Service<Call> for ModelComponent {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.line.poll_reserve(context).map_err(|_| stopped())
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let Call { tenant, operation } = call;
        let Operation::Run(call) = operation else {
            let error = misrouted(ComponentKind::Model, operation.name());
            return async move { Err(error) }.boxed();
        };
        let (answer, outcome) = oneshot::channel();
        // In line before this function returns: the order of calls is the order of work.
        if self.line.send_item(Command::Execute(Work { tenant, call, answer })).is_err() {
            return async { Err(stopped()) }.boxed();
        }
        async move { outcome.await.map_err(|_| stopped())?.map(Reply::Run) }.boxed()
    }
}

impl Lifecycle for ModelComponent {
    fn kind(&self) -> ComponentKind {
        ComponentKind::Model
    }

    fn health(&self) -> Health {
        if self.state.thread.is_finished() {
            return Health::Failed("the training engine has stopped".to_owned());
        }
        Health::Ready
    }

    fn drain(&self, limit: Duration) -> BoxFuture<'static, ()> {
        let mut line = self.line.clone();
        async move {
            let (done, drained) = oneshot::channel();
            let reserved = futures::future::poll_fn(|context| line.poll_reserve(context)).await;
            let deadline = Instant::now() + limit;
            if reserved.is_ok() && line.send_item(Command::Drain { deadline, done }).is_ok() {
                // A second limit covers writing the snapshots; an engine that hangs must not hang the node.
                let _ = tokio::time::timeout(limit + Duration::from_secs(20), drained).await;
            }
        }
        .boxed()
    }
}

/// What a call gets when the engine no longer takes work; the journal keeps what it accepted.
fn stopped() -> Error {
    Error::new(ErrorCode::Draining, "the training engine is stopping")
        .hint("accepted operations are kept and continue after the restart")
}
