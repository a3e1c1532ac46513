//! The layer that makes training durable, ordered and repeatable.
//!
//! *Accept*: an operation is written to the [`StateStore`] with its place in the run's order before
//! its client hears [`Reply::Accepted`]; a repetition of it gets the first answer.
//! *Turn*: numbered operations reach the component in strict order, whatever the order of arrival.
//! *Finish*: a result is stored before it is announced on the [`Futures`] board.
//! *Rebuild*: after a restart of the server, or when the component's engine has lost the run, it is restored from its
//! snapshot and the journal's tail, the same operations in the same order, and so ends in the same bits. A failed
//! operation is left out, as it changed nothing.
//!
//! Everything about one run is one [`line::Line`]; [`accept`], [`advance`] and [`rebuild`] are the
//! three things that happen to it.

mod accept;
mod advance;
mod describe;
mod expire;
mod line;
mod rebuild;
#[cfg(test)]
mod tests;
mod watched;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tower::Service;
use tracing::Instrument;

use crate::call::{Call, Operation, Reply};
use crate::component::BoxComponent;
use crate::error::{Error, ErrorCode, Result};
use crate::futures::Futures;
use crate::ids::{RunId, TenantId};
use crate::state::{RunLimits, StateStore};
use crate::telemetry::spans::Attribute;
use crate::telemetry::trace::{self, Origin};

use line::Line;

/// Bounds and patience of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// The base model whose runs this journal keeps; `None`: all of them. A node with several models has a journal for
    /// each over one store, and each takes up only its own runs after a restart.
    pub base_model: Option<String>,
    /// How long later operations of an otherwise idle run wait for a number that does not arrive.
    pub gap_grace: Duration,
    /// Operations of one run that may wait for their turn.
    pub waiting_per_run: usize,
    /// Mebibytes of accepted, unfinished operations held in memory, all runs together.
    pub waiting_mebibytes: usize,
    /// How many open runs a tenant may have.
    pub run_limits: RunLimits,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            base_model: None,
            gap_grace: Duration::from_mins(1),
            waiting_per_run: 1024,
            waiting_mebibytes: 1024,
            run_limits: RunLimits::default(),
        }
    }
}

/// The journal around a training component; other operations pass through.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

/// What every task of the journal works with.
struct Shared {
    store: StateStore,
    futures: Futures,
    inner: BoxComponent,
    options: JournalOptions,
    /// Open runs that were touched since the start.
    lines: Mutex<HashMap<RunId, Arc<Line>>>,
    /// Room for payloads, in KiB.
    memory: Arc<Semaphore>,
    draining: AtomicBool,
    /// Operations inside the component, until their results are stored.
    working: TaskTracker,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Journal {
    /// The journal with its usual bounds.
    #[must_use]
    pub fn new(store: StateStore, futures: Futures, inner: BoxComponent) -> Self {
        Self::with_options(store, futures, inner, JournalOptions::default())
    }

    /// The journal with these bounds.
    #[must_use]
    pub fn with_options(store: StateStore, futures: Futures, inner: BoxComponent, options: JournalOptions) -> Self {
        let memory =
            Arc::new(Semaphore::new(options.waiting_mebibytes.saturating_mul(1024).min(Semaphore::MAX_PERMITS)));
        let shared = Shared {
            store,
            futures,
            inner,
            options,
            lines: Mutex::new(HashMap::new()),
            memory,
            draining: AtomicBool::new(false),
            working: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Notes that a request was refused after its number was known, so that later ones do not wait for it.
    pub async fn consume(&self, tenant: &TenantId, run: &RunId, sequence: u64) -> Result<()> {
        accept::consume(&self.shared, tenant, run, sequence).await
    }

    /// Rebuilds, one after the other, the runs that a stopped server left with unfinished operations.
    ///
    /// Calls are welcome meanwhile. A run that cannot be rebuilt is closed and its operations fail
    /// with the reason; the others go on. Other open runs are rebuilt when they are first touched.
    /// Returns how many runs were taken up again.
    pub async fn recover(&self) -> Result<usize> {
        rebuild::recover(&self.shared).await
    }

    /// Refuses new operations and waits up to `limit` for those inside the component.
    ///
    /// Operations that wait for their turn stay in the journal for the next start.
    pub async fn drain(&self, limit: Duration) {
        self.shared.draining.store(true, Ordering::SeqCst);
        self.shared.working.close();
        if tokio::time::timeout(limit, self.shared.working.wait()).await.is_err() {
            let unfinished = self.shared.working.len();
            tracing::warn!(
                unfinished,
                "operations did not finish in time; they are executed again after the next start"
            );
        }
    }
}

impl Service<Call> for Journal {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<()>> {
        // Full queues are answered per run, so that one run cannot hold up the others.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        match call.operation {
            Operation::Run(run_call) => Box::pin(async move {
                tracing::Span::current().record("run", run_call.run.as_str());
                trace::set(Attribute::ModelId, run_call.run.as_str().to_owned());
                let accepting = Origin::current().surround(accept::accept(shared, call.tenant, run_call));
                // On its own task: a client that hangs up must not leave an operation half accepted.
                let accepting = tokio::spawn(accepting.in_current_span());
                let request =
                    accepting.await.map_err(|error| Error::internal(format!("accepting failed: {error}")))??;
                Ok(Reply::Accepted(request))
            }),
            operation => Box::pin(async move { shared.inner.ask(Call { tenant: call.tenant, operation }).await }),
        }
    }
}

// === impl Shared ===

impl Shared {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    fn refuse_while_draining(&self) -> Result<()> {
        if self.is_draining() {
            return Err(
                Error::new(ErrorCode::Draining, "the server is shutting down").retry_after(Duration::from_secs(5))
            );
        }
        Ok(())
    }

    /// Forgets a run that is closed.
    fn forget(&self, run: &RunId) {
        self.lines.lock().remove(run);
    }
}
