//! One trait for all four import paths.
//!
//! A component is a [`tower::Service`] from [`Call`] to [`Reply`] with a life cycle. Because it is
//! a plain service, every middleware of the node fits around every component, and a replica on
//! another machine can stand in for a local one.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::call::{Call, Reply};
use crate::error::{Error, Result};

/// What `import_path` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentKind {
    /// Sessions, runs and checkpoints; the protocol fronts hang on it.
    Server,
    /// Training.
    Model,
    /// Sampling.
    Sampler,
    /// Text work.
    Processor,
}

impl fmt::Display for ComponentKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Server => "server",
            Self::Model => "model",
            Self::Sampler => "sampler",
            Self::Processor => "processor",
        })
    }
}

/// Whether a component can work right now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It answers.
    Ready,
    /// It stopped taking work and finishes what it has.
    Draining,
    /// Its engine failed, for this reason, and starts again; what was accepted waits meanwhile.
    Recovering(String),
    /// It cannot work, for this reason.
    Failed(String),
}

/// The parts of a component that are not answering calls.
pub trait Lifecycle: Send + Sync + 'static {
    /// What kind it is.
    fn kind(&self) -> ComponentKind;

    /// Whether it can work right now. Never waits.
    fn health(&self) -> Health;

    /// What it is doing right now, as JSON for people and dashboards; `null` when there is nothing to tell. Never waits.
    fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Stops taking work, finishes or parks what it has, and makes its state durable.
    fn drain(&self, limit: Duration) -> BoxFuture<'static, ()>;
}

/// A component: a cloneable handle that answers calls and has a life cycle.
///
/// `call` must put the work in line before it returns the future: the order of calls is the order of work.
pub trait Component:
    Service<Call, Response = Reply, Error = Error, Future = BoxFuture<'static, Result<Reply>>> + Lifecycle + Clone + Sized
{
    /// Its `args` in the YAML.
    type Args;
    /// What the launcher hands it besides its arguments.
    type Context;

    /// Builds it; returns when it can answer.
    fn build(args: Self::Args, context: Self::Context) -> impl Future<Output = Result<Self>> + Send;

    /// Forgets the type, keeping the behaviour.
    fn boxed(self) -> BoxComponent {
        BoxComponent { lifecycle: Arc::new(self.clone()), service: BoxCloneSyncService::new(self) }
    }
}

/// A component of any kind, or a component inside its stack of layers.
#[derive(Clone)]
pub struct BoxComponent {
    service: BoxCloneSyncService<Call, Reply, Error>,
    lifecycle: Arc<dyn Lifecycle>,
}

impl BoxComponent {
    /// The same life cycle with `wrap` around the service: how a stack is put on.
    #[must_use]
    pub fn wrapped<S>(self, wrap: impl FnOnce(BoxCloneSyncService<Call, Reply, Error>) -> S) -> Self
    where
        S: Service<Call, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self { service: BoxCloneSyncService::new(wrap(self.service)), lifecycle: self.lifecycle }
    }

    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> ComponentKind {
        self.lifecycle.kind()
    }

    /// Whether it can work right now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.lifecycle.health()
    }

    /// What it is doing right now, as JSON.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        self.lifecycle.status()
    }

    /// Stops taking work, finishes or parks what it has.
    #[must_use]
    pub fn drain(&self, limit: Duration) -> BoxFuture<'static, ()> {
        self.lifecycle.drain(limit)
    }

    /// Waits until it is ready and asks.
    pub async fn ask(&self, call: Call) -> Result<Reply> {
        self.service.clone().oneshot(call).await
    }
}

impl Service<Call> for BoxComponent {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.service.call(call)
    }
}

impl fmt::Debug for BoxComponent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BoxComponent").field("kind", &self.kind()).finish_non_exhaustive()
    }
}

/// The answer of a component that was sent an operation of another kind: a defect of the launcher.
#[must_use]
pub fn misrouted(kind: ComponentKind, operation: &'static str) -> Error {
    Error::internal(format!("operation `{operation}` was routed to a `{kind}` component"))
}
