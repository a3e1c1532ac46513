//! What goes along with work to an engine's thread: the span of its log lines, its trace, and since when it waits.

use opentelemetry::ContextGuard;
use tokio::time::Instant;
use tracing::Span;
use tracing::span::EnteredSpan;

use super::labels::{Deployment, Task, TaskType};
use super::metrics::ENGINE_WAIT;
use super::spans;
use super::trace::{Origin, Stage};

/// Work that waits for an engine.
#[derive(Debug)]
pub struct Carried {
    span: Span,
    origin: Origin,
    queued: Stage,
    since: Instant,
}

impl Carried {
    /// The work of what runs here and now; it waits from here on.
    #[must_use]
    pub fn from_here() -> Self {
        Self {
            span: Span::current(),
            origin: Origin::current(),
            queued: spans::begin(spans::ENGINE_QUEUE),
            since: Instant::now(),
        }
    }

    /// The engine takes it up: from here on, log lines and spans of this thread belong to it.
    #[must_use]
    pub fn take_up(self, deployment: Deployment, task_type: TaskType) -> TakenUp {
        ENGINE_WAIT.record(self.since.elapsed(), Task { deployment, task_type });
        self.queued.end();
        TakenUp { _trace: self.origin.enter(), _log: self.span.entered() }
    }

    /// The engine takes it up together with other work: the trace to which its share of it belongs.
    #[must_use]
    pub fn join(self, deployment: Deployment, task_type: TaskType) -> Origin {
        ENGINE_WAIT.record(self.since.elapsed(), Task { deployment, task_type });
        self.queued.end();
        self.origin
    }
}

/// Work that an engine does; it ends when this is dropped.
pub struct TakenUp {
    _trace: ContextGuard,
    _log: EnteredSpan,
}
