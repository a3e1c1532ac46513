//! An accepted operation as the telemetry sees it: it waits for its turn, and then it is worked on.

use tokio::time::Instant;
use tracing::{Span, info_span};

use super::line::Line;
use crate::call::Position;
use crate::ids::RequestId;
use crate::telemetry::labels::{Deployment, TaskStatus, TaskType};
use crate::telemetry::spans::{self, Attribute};
use crate::telemetry::tasks;
use crate::telemetry::trace::{Origin, Stage};

/// An operation that waits for its turn. One that was read back after a restart belongs to no request any more.
#[derive(Debug, Default)]
pub(super) struct Passage {
    origin: Origin,
    turn: Stage,
}

impl Passage {
    /// The request that runs here and now has been accepted.
    pub(super) fn from_here() -> Self {
        Self { origin: Origin::current(), turn: spans::begin(spans::JOURNAL_TURN) }
    }
}

/// An operation that is worked on, from its turn to its stored result.
#[derive(Debug)]
pub(super) struct Execution {
    origin: Origin,
    /// For the log: lines below say which operation of which run they are about.
    pub(super) span: Span,
    task: TaskType,
    began: Instant,
}

impl Execution {
    /// The operation has its turn.
    pub(super) fn begin(
        line: &Line,
        request: &RequestId,
        position: Position,
        task: TaskType,
        waited: (Passage, Instant),
    ) -> Self {
        let (Passage { origin, turn }, arrived) = waited;
        turn.end();
        tasks::began(Deployment::Model, task, arrived.elapsed());
        let stage = spans::begin_in(&origin, spans::EXECUTE)
            .with(Attribute::Deployment, Deployment::Model.as_str())
            .with(Attribute::TaskType, task.0)
            .with(Attribute::Sequence, i64::try_from(position.after).unwrap_or(i64::MAX))
            .with_text(Attribute::RequestId, request)
            .with_text(Attribute::ModelId, &line.run)
            .with_text(Attribute::QueueKey, &line.run)
            .with_text(Attribute::TokenId, &line.tenant);
        let span = info_span!("operation", id = %request, tenant = %line.tenant, run = %line.run);
        Self { origin: stage.into_origin(), span, task, began: Instant::now() }
    }

    /// What begins below belongs to the operation.
    pub(super) fn origin(&self) -> Origin {
        self.origin.clone()
    }

    /// Its result is stored.
    pub(super) fn ended(self, status: TaskStatus) {
        tasks::ended(Deployment::Model, self.task, self.began.elapsed(), status);
        self.origin.end();
    }

    /// It comes again: the component lost it, or the node stops.
    pub(super) fn put_off(self) {
        self.origin.fail("put off");
        self.origin.end();
    }
}
