//! The `model` component: a handle that puts calls in line for the engine thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, PollSender};
use tower::Service;
use tracing::error;
use twinkle_core::call::{Call, Operation, Position, Reply, RunCall, RunOutcome};
use twinkle_core::component::{Component, ComponentKind, Health, Lifecycle, misrouted};
use twinkle_core::engine::pulse::{EngineStatus, Pulse};
use twinkle_core::engine::supervisor::{RestartPolicy, Supervision, supervise};
use twinkle_core::engine::suspects::{MOST_LOSSES, Suspects};
use twinkle_core::engine::ticket::{Answer, ticket};
use twinkle_core::ids::{RunId, TenantId};
use twinkle_core::telemetry::carried::Carried;
use twinkle_core::{Error, ErrorCode, Result};

use crate::backend::{Backend, Transformers};
use crate::engine::{Command, Engine, EngineContext, EngineLimits, Gauges, Work};
use crate::failure::{interrupted, poison};

/// Operations that may wait between the journal and the engine; more wait in the journal.
const LINE_LENGTH: usize = 256;

/// What the launcher hands over besides the arguments.
pub type ModelContext = EngineContext;

/// A cloneable handle to one base model's training engine.
#[derive(Clone)]
pub struct ModelComponent {
    line: PollSender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    gauges: Gauges,
    /// Operations at which the engine was lost.
    suspects: Suspects<(RunId, Position)>,
    /// Cancelled when the node stops: a lost engine is not started again.
    stopping: CancellationToken,
}

/// What this component tells about itself.
#[derive(Debug, Serialize)]
struct ModelStatus {
    #[serde(flatten)]
    engine: EngineStatus,
    runs_in_memory: usize,
}

impl ModelComponent {
    /// An engine over `backend`, started again as patiently as `policy` says.
    pub fn with_backend(context: ModelContext, backend: Arc<dyn Backend>, policy: RestartPolicy) -> Result<Self> {
        let (sender, receiver) = tokio::sync::mpsc::channel(LINE_LENGTH);
        let gauges = Gauges { pulse: Pulse::default(), runs_in_memory: Arc::new(AtomicUsize::new(0)) };
        let stopping = CancellationToken::new();
        let supervision =
            Supervision { name: "model-engine", pulse: gauges.pulse.clone(), stopping: stopping.clone(), policy };
        let shared = Shared { gauges: gauges.clone(), suspects: Suspects::default(), stopping };
        let runtime = Handle::current();
        supervise(supervision, receiver, move |incarnation, commands| {
            let (context, backend) = (context.clone(), Arc::clone(&backend));
            Engine::new(context, backend, gauges.clone(), runtime.clone(), incarnation).work(commands)
        })
        .map_err(|error| Error::internal(format!("the engine thread could not be started: {error}")))?;
        Ok(Self { line: PollSender::new(sender), shared: Arc::new(shared) })
    }
}

impl Component for ModelComponent {
    type Args = EngineLimits;
    type Context = ModelContext;

    async fn build(limits: EngineLimits, context: ModelContext) -> Result<Self> {
        let context = ModelContext { limits, ..context };
        Self::with_backend(context, Arc::new(Transformers), RestartPolicy::default())
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
        let asked = Asked::of(&tenant, &call);
        let (ticket, answer) = ticket(&self.shared.gauges.pulse);
        // In line before this function returns: the order of calls is the order of work.
        let is_suspect = self.shared.suspects.is_suspect(&asked.place);
        let work = Work { tenant, call, ticket, carried: Carried::from_here(), is_suspect };
        if self.line.send_item(Command::Execute(work)).is_err() {
            return async { Err(stopped()) }.boxed();
        }
        let shared = Arc::clone(&self.shared);
        async move { shared.outcome(asked, answer.await).map(Reply::Run) }.boxed()
    }
}

/// What is remembered of an operation while the engine has it.
struct Asked {
    tenant: TenantId,
    name: &'static str,
    place: (RunId, Position),
}

impl Asked {
    fn of(tenant: &TenantId, call: &RunCall) -> Self {
        Self { tenant: tenant.clone(), name: call.operation.name(), place: (call.run.clone(), call.position) }
    }
}

impl Shared {
    /// What the engine answered, or what its loss means for this operation.
    fn outcome(
        &self,
        asked: Asked,
        answer: Result<Answer<RunOutcome>, oneshot::error::RecvError>,
    ) -> Result<RunOutcome> {
        let begun = match answer {
            Ok(Answer::Given(outcome)) => {
                self.suspects.acquit(&asked.place);
                return outcome;
            }
            Ok(Answer::Lost { begun }) => begun,
            Err(_) => false,
        };
        if self.stopping.is_cancelled() {
            return Err(stopped());
        }
        let Asked { tenant, name, place } = asked;
        let (run, position) = place.clone();
        if begun && self.suspects.accuse(place) {
            error!(%tenant, %run, ?position, operation = name, "a poison operation is given up");
            return Err(poison(name, MOST_LOSSES));
        }
        Err(interrupted())
    }
}

impl Lifecycle for ModelComponent {
    fn kind(&self) -> ComponentKind {
        ComponentKind::Model
    }

    fn health(&self) -> Health {
        self.shared.gauges.pulse.health()
    }

    fn status(&self) -> serde_json::Value {
        let Gauges { pulse, runs_in_memory } = &self.shared.gauges;
        let status = ModelStatus { engine: pulse.status(), runs_in_memory: runs_in_memory.load(Ordering::Relaxed) };
        serde_json::to_value(status).unwrap_or_default()
    }

    fn drain(&self, limit: Duration) -> BoxFuture<'static, ()> {
        let (mut line, shared) = (self.line.clone(), Arc::clone(&self.shared));
        async move {
            shared.gauges.pulse.draining();
            shared.stopping.cancel();
            let (done, drained) = oneshot::channel();
            let deadline = Instant::now() + limit;
            // A second limit covers writing the snapshots; an engine that hangs must not hang the node.
            let finish = async {
                let reserved = futures::future::poll_fn(|context| line.poll_reserve(context)).await;
                if reserved.is_ok() && line.send_item(Command::Drain { deadline, done }).is_ok() {
                    // An engine that was lost has nothing to write.
                    let _ = drained.await;
                }
            };
            let _ = tokio::time::timeout(limit + Duration::from_secs(20), finish).await;
        }
        .boxed()
    }
}

/// What a call gets when the engine no longer takes work; the journal keeps what it accepted.
fn stopped() -> Error {
    Error::new(ErrorCode::Draining, "the training engine is stopping")
        .hint("accepted operations are kept and continue after the restart")
}
