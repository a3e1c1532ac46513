//! What is recorded about every operation that is answered at once: how long it took, how it ended, and its span.
//!
//! Training is not measured here: it is answered when it is accepted, and the journal records what follows.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::call::{Call, Operation, Reply, SamplingSource, ServeRequest};
use crate::error::{Error, Result};
use crate::telemetry::labels::{Deployment, TaskStatus, TaskType};
use crate::telemetry::spans::{self, Attribute, SpanName};
use crate::telemetry::tasks;
use crate::telemetry::trace::{Origin, Stage};

/// Measures what the component does; goes right around it.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeasureLayer;

impl<S> Layer<S> for MeasureLayer {
    type Service = Measure<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Measure { inner }
    }
}

/// The service of [`MeasureLayer`].
#[derive(Clone, Debug)]
pub struct Measure<S> {
    inner: S,
}

impl<S> Service<Call> for Measure<S>
where
    S: Service<Call, Response = Reply, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let measured = Measured::begin(&call);
        let place = measured.place.clone();
        let answer = {
            let _inside = place.enter();
            self.inner.call(call)
        };
        place.surround(async move { measured.end(answer.await) }).boxed()
    }
}

/// An operation that is worked on. When its future is dropped, it counts as failed.
struct Measured {
    deployment: Deployment,
    task_type: TaskType,
    began: Instant,
    place: Origin,
    has_span: bool,
    ended: bool,
}

impl Measured {
    fn begin(call: &Call) -> Self {
        let stage = stage_of(&call.operation);
        let has_span = stage.is_some();
        Self {
            deployment: Deployment::of(&call.operation),
            task_type: TaskType(call.operation.name()),
            began: Instant::now(),
            place: stage.map_or_else(Origin::current, Stage::into_origin),
            has_span,
            ended: false,
        }
    }

    fn end(mut self, answer: Result<Reply>) -> Result<Reply> {
        self.ended = true;
        tasks::ended(self.deployment, self.task_type, self.began.elapsed(), TaskStatus::of(&answer));
        if self.has_span {
            if let Err(error) = &answer {
                self.place.fail(error.message.clone());
            }
            self.place.end();
        }
        answer
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if !self.ended {
            // Dropped while it worked: its client left, or it ran longer than it may.
            tasks::ended(self.deployment, self.task_type, self.began.elapsed(), TaskStatus::Timeout);
        }
    }
}

/// The span of an operation; most questions to the records are too quick and too many to have one.
fn stage_of(operation: &Operation) -> Option<Stage> {
    let begin = |name: SpanName| spans::begin(name).with(Attribute::TaskType, operation.name());
    match operation {
        Operation::Sample(request) => {
            let stage = begin(spans::SAMPLE);
            Some(match &request.source {
                SamplingSource::Live(session) => stage.with_text(Attribute::SamplingSessionId, session),
                SamplingSource::Base | SamplingSource::Checkpoint(_) | SamplingSource::Shared { .. } => stage,
            })
        }
        Operation::Process(_) => Some(begin(spans::PROCESS)),
        Operation::Serve(ServeRequest::CreateSession { .. }) => Some(begin(spans::CREATE_SESSION)),
        Operation::Serve(ServeRequest::CreateSamplingSession { session, .. }) => {
            Some(begin(spans::CREATE_SAMPLING_SESSION).with_text(Attribute::SessionId, session))
        }
        Operation::Run(_) | Operation::Serve(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::ids::{SessionId, TenantId};

    #[tokio::test]
    async fn an_answer_passes_unchanged_whether_or_not_anybody_records() {
        let service = MeasureLayer.layer(service_fn(|_: Call| async { Err::<Reply, _>(Error::not_found("no")) }));
        let operation = Operation::Serve(ServeRequest::Heartbeat(SessionId::new("s")));
        let call = Call { tenant: TenantId::new("alice"), operation };
        assert_eq!(service.oneshot(call).await.unwrap_err(), Error::not_found("no"));
    }
}
