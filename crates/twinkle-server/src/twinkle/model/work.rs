//! Operations on a run: accepted durably, done in its order, awaited.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;
use twinkle_core::call::{Call, ForwardBackwardOutcome, Operation, Position, Reply, RunCall, RunOperation, RunOutcome};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::futures::{Outcome, Waited, unknown};
use twinkle_core::ids::{RequestId, RunId, TenantId};
use twinkle_core::telemetry::trace::Origin;

use crate::tinker::unexpected;
use crate::twinkle::{TwinkleFront, patiently};

/// How long the board is watched in one go.
const HOLD: Duration = Duration::from_mins(1);

/// The result of an operation, which the board keeps as well.
pub(super) struct Done(Arc<Result<Outcome>>);

impl Done {
    /// The result.
    pub(super) fn outcome(&self) -> Result<&RunOutcome> {
        match &*self.0 {
            Ok(Outcome::Run(outcome)) => Ok(outcome),
            Ok(_) => Err(Error::internal("a run answered with something else")),
            Err(error) => Err(error.clone()),
        }
    }

    /// Of a forward or a forward-backward.
    pub(super) fn forward(&self) -> Result<&ForwardBackwardOutcome> {
        match self.outcome()? {
            RunOutcome::ForwardBackward(outcome) => Ok(outcome),
            other => Err(unexpected("the model component", other)),
        }
    }
}

/// Does the work on a task of its own, as long as its client waits: one that hangs up must leave nothing half done.
pub(super) async fn to_the_end<T: Send + 'static>(
    what: &str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let working = tokio::spawn(Origin::current().surround(work).in_current_span());
    let done = async { working.await.map_err(|error| Error::internal(format!("the work failed: {error}")))? };
    patiently(what, done).await
}

impl TwinkleFront {
    /// Lets the run do something. It is durable before it begins, and in the order of the run's requests.
    pub(super) async fn perform(&self, tenant: &TenantId, run: &RunId, operation: RunOperation) -> Result<Done> {
        let trainer = self.context.directory.trainer(&self.model()?.name)?;
        let call = RunCall { run: run.clone(), sequence: None, position: Position::default(), operation };
        match trainer.ask(Call { tenant: tenant.clone(), operation: Operation::Run(call) }).await? {
            Reply::Accepted(request) => self.result(tenant, &request).await,
            other => Err(unexpected("the model component", &other)),
        }
    }

    async fn result(&self, tenant: &TenantId, request: &RequestId) -> Result<Done> {
        loop {
            let waited = tokio::select! {
                // A result that is there goes out, although the node stops.
                biased;
                waited = self.context.futures.wait(tenant, request, HOLD) => waited,
                () = self.context.stopping.cancelled() => return Err(stopping()),
            };
            match waited {
                Waited::Pending => {}
                Waited::Unknown => return Err(unknown(request)),
                Waited::Done(outcome) => {
                    self.context.futures.fetched(request);
                    return Ok(Done(outcome));
                }
            }
        }
    }
}

fn stopping() -> Error {
    Error::new(ErrorCode::Draining, "the server is stopping")
        .hint("what was accepted is kept and is done after the restart")
        .retry_after(Duration::from_secs(5))
}
