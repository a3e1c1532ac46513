//! Answers that are not there yet: the board where clients wait for results of accepted operations.
//!
//! Results of training operations also live in the [`StateStore`], so that they outlive a restart
//! and this board's memory. Results of sampling live only here: after a restart the client is told
//! that they are gone and asks again.
//!
//! A client waits for one result ([`Futures::wait`]) or for whichever of its samples finishes next
//! ([`Futures::completions`], see `streams`).

mod completions;
mod pending;
mod streams;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::call::{RunOutcome, SampleOutcome};
use crate::component::BoxComponent;
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{CustomLossId, RequestId, TenantId};
use crate::state::{OperationState, StateStore};

use pending::PendingTable;
use streams::{Bounds, Streams};
pub use streams::{Completion, StreamKey};

/// The result of an accepted operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of a training operation.
    Run(RunOutcome),
    /// Of a sampling request.
    Sample(SampleOutcome),
    /// Of a loss that a client wrote: its name.
    CustomLoss(CustomLossId),
}

/// What waiting for a result brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Waited {
    /// No result within the limit; ask again.
    Pending,
    /// The result.
    Done(Arc<Result<Outcome>>),
    /// No such operation of this tenant; see [`unknown`].
    Unknown,
}

/// Bounds of the board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuturesOptions {
    /// Unfinished operations that one tenant may have at once.
    pub pending_per_tenant: usize,
    /// Unfinished operations of all tenants together.
    pub pending_in_all: usize,
    /// Bytes of finished results kept in memory.
    pub finished_bytes: u64,
    /// How long a finished result is kept in memory.
    pub finished_for: Duration,
}

impl Default for FuturesOptions {
    fn default() -> Self {
        Self {
            pending_per_tenant: 16_384,
            pending_in_all: 262_144,
            finished_bytes: 256 << 20,
            finished_for: Duration::from_hours(1),
        }
    }
}

/// Who has to do with spawned work, besides its tenant.
#[derive(Clone, Debug, Default)]
pub struct Parties {
    /// The client that waits for it in bulk.
    pub stream: Option<StreamKey>,
    /// The component that does it, whose status can tell why it waits.
    pub worker: Option<BoxComponent>,
}

/// A cheap handle on the board.
#[derive(Clone, Debug)]
pub struct Futures {
    board: Arc<Board>,
}

#[derive(Debug)]
struct Board {
    store: StateStore,
    options: FuturesOptions,
    pending: Mutex<PendingTable>,
    finished: Cache<RequestId, Finished>,
    streams: Mutex<Streams>,
    tasks: TaskTracker,
}

type Shared = Arc<Result<Outcome>>;

#[derive(Clone, Debug)]
struct Finished {
    tenant: TenantId,
    result: Shared,
}

enum Sight {
    Finished(Shared),
    Pending(watch::Receiver<Option<Shared>>),
    Foreign,
    Absent,
}

/// The error for a request id that is not on the board.
///
/// Sampling is simply submitted again ([`ErrorCode::Gone`]); a training operation is not there, or another tenant's.
#[must_use]
pub fn unknown(request: &RequestId) -> Error {
    if request.is_ephemeral() {
        return Error::new(ErrorCode::Gone, format!("the result of request `{request}` is gone"))
            .hint("submit it again");
    }
    Error::not_found(format!("request `{request}` does not exist"))
}

impl Futures {
    /// An empty board over the durable results in `store`.
    #[must_use]
    pub fn new(store: StateStore, options: FuturesOptions) -> Self {
        let finished = Cache::builder()
            .weigher(|_: &RequestId, entry: &Finished| weight(&entry.result))
            .max_capacity(options.finished_bytes)
            .time_to_live(options.finished_for)
            .build();
        let bounds = Bounds {
            per_tenant: 2 * options.pending_per_tenant,
            in_all: options.pending_in_all,
            age: u64::try_from(options.finished_for.as_micros()).unwrap_or(u64::MAX),
        };
        let board = Board {
            store,
            options,
            pending: Mutex::new(PendingTable::default()),
            finished,
            streams: Mutex::new(Streams::new(bounds)),
            tasks: TaskTracker::new(),
        };
        Self { board: Arc::new(board) }
    }

    /// Announces an operation whose result will come. Refuses when the tenant has too many of them.
    pub fn register(&self, request: &RequestId, tenant: &TenantId) -> Result<()> {
        let limit = self.board.options.pending_per_tenant;
        let mut pending = self.board.pending.lock();
        if pending.of_tenant(tenant) >= limit {
            return Err(Error::new(ErrorCode::Overloaded, format!("{limit} operations of this key are unfinished"))
                .hint("wait for some of them")
                .retry_after(Duration::from_secs(1)));
        }
        let in_all = self.board.options.pending_in_all;
        if pending.by_request.len() >= in_all {
            return Err(Error::new(
                ErrorCode::Overloaded,
                format!("{in_all} operations are unfinished on this server"),
            )
            .retry_after(Duration::from_secs(1)));
        }
        pending.add(request, tenant);
        Ok(())
    }

    /// Announces an operation that was accepted earlier, whatever the tenant's number of them.
    pub fn adopt(&self, request: &RequestId, tenant: &TenantId) {
        let mut pending = self.board.pending.lock();
        // Once finished it must not become pending again: nobody would complete it.
        if !self.board.finished.contains_key(request) {
            pending.add(request, tenant);
        }
    }

    /// Takes an announcement back: the operation was not accepted after all.
    pub fn withdraw(&self, request: &RequestId) {
        self.board.pending.lock().remove(request);
    }

    /// Publishes a result and wakes everyone who waits for it. The first result of a request stays.
    pub fn complete(&self, request: &RequestId, tenant: &TenantId, result: Result<Outcome>) {
        let result = Arc::new(result);
        let entry = Finished { tenant: tenant.clone(), result: Arc::clone(&result) };
        let mut pending = self.board.pending.lock();
        if self.board.finished.contains_key(request) {
            return;
        }
        self.board.finished.insert(request.clone(), entry);
        let waiters = pending.remove(request);
        drop(pending);
        self.board.announce(request, &result);
        if let Some(waiters) = waiters {
            waiters.result.send_replace(Some(result));
        }
    }

    /// Waits up to `limit` for the tenant's result.
    pub async fn wait(&self, tenant: &TenantId, request: &RequestId, limit: Duration) -> Waited {
        let deadline = tokio::time::Instant::now() + limit;
        let receiver = match self.look(tenant, request) {
            Sight::Finished(result) => return Waited::Done(result),
            Sight::Foreign => return Waited::Unknown,
            Sight::Pending(receiver) => receiver,
            Sight::Absent if request.is_ephemeral() => return Waited::Unknown,
            Sight::Absent => match self.recall(tenant, request, deadline).await {
                Ok(receiver) => receiver,
                Err(answer) => return answer,
            },
        };
        self.await_result(receiver, tenant, request, deadline).await
    }

    /// Runs `work` on its own task; its result is retrieved under the returned, ephemeral id.
    pub fn spawn<F>(&self, tenant: &TenantId, name: &'static str, work: F) -> Result<RequestId>
    where
        F: Future<Output = Result<Outcome>> + Send + 'static,
    {
        self.spawn_for(tenant, name, &Parties::default(), work)
    }

    /// The same for work whose client waits in bulk, or whose component can tell why it waits.
    pub fn spawn_for<F>(&self, tenant: &TenantId, name: &'static str, parties: &Parties, work: F) -> Result<RequestId>
    where
        F: Future<Output = Result<Outcome>> + Send + 'static,
    {
        let request = RequestId::ephemeral();
        self.register(&request, tenant)?;
        if let Some(stream) = &parties.stream {
            self.board.streams.lock().expect(&request, stream.clone());
        }
        let futures = self.clone();
        let (id, owner) = (request.clone(), tenant.clone());
        let task = self.board.tasks.spawn(async move {
            let result = AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(request = %id, name, "a spawned operation panicked");
                Err(Error::internal(format!("`{name}` failed unexpectedly")))
            });
            futures.complete(&id, &owner, result);
        });
        if let Some(entry) = self.board.pending.lock().by_request.get_mut(&request) {
            entry.task = Some(task.abort_handle());
            entry.worker.clone_from(&parties.worker);
        }
        Ok(request)
    }

    /// Stops a spawned operation nobody wants any more, by dropping its work. Says whether there was one.
    #[must_use]
    pub fn cancel(&self, tenant: &TenantId, request: &RequestId) -> bool {
        let task = {
            let pending = self.board.pending.lock();
            pending.by_request.get(request).filter(|entry| entry.tenant == *tenant).and_then(|entry| entry.task.clone())
        };
        let Some(task) = task else { return false };
        task.abort();
        self.complete(request, tenant, Err(Error::new(ErrorCode::Gone, format!("request `{request}` was cancelled"))));
        true
    }

    /// The component that works on the tenant's unfinished operation, if it can tell why it waits.
    #[must_use]
    pub fn worker(&self, tenant: &TenantId, request: &RequestId) -> Option<BoxComponent> {
        let pending = self.board.pending.lock();
        pending.by_request.get(request).filter(|entry| entry.tenant == *tenant)?.worker.clone()
    }

    /// How many operations are unfinished.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.board.pending.lock().by_request.len()
    }

    /// Waits up to `limit` for spawned operations to end. The caller lets no new ones begin.
    pub async fn drain(&self, limit: Duration) {
        self.board.tasks.close();
        if tokio::time::timeout(limit, self.board.tasks.wait()).await.is_err() {
            tracing::warn!(unfinished = self.board.tasks.len(), "spawned operations did not end in time");
        }
    }

    fn look(&self, tenant: &TenantId, request: &RequestId) -> Sight {
        let pending = self.board.pending.lock();
        if let Some(entry) = self.board.finished.get(request) {
            return if entry.tenant == *tenant { Sight::Finished(entry.result) } else { Sight::Foreign };
        }
        match pending.by_request.get(request) {
            Some(entry) if entry.tenant == *tenant => Sight::Pending(entry.result.subscribe()),
            Some(_) => Sight::Foreign,
            None => Sight::Absent,
        }
    }

    /// Asks the store about an operation the board does not know: it was accepted before a restart, or long ago.
    async fn recall(
        &self,
        tenant: &TenantId,
        request: &RequestId,
        deadline: tokio::time::Instant,
    ) -> Result<watch::Receiver<Option<Shared>>, Waited> {
        match self.board.store.operation_result(tenant, request).await {
            Ok(None | Some(OperationState::Expired)) => Err(Waited::Unknown),
            Ok(Some(OperationState::Finished(result))) => {
                let result = result.map(Outcome::Run);
                self.complete(request, tenant, result.clone());
                Err(Waited::Done(Arc::new(result)))
            }
            Ok(Some(OperationState::Pending)) => {
                self.adopt(request, tenant);
                match self.look(tenant, request) {
                    Sight::Pending(receiver) => Ok(receiver),
                    Sight::Finished(result) => Err(Waited::Done(result)),
                    Sight::Foreign | Sight::Absent => Err(Waited::Unknown),
                }
            }
            Err(error) => {
                // An answer now would end the client's wait for good; let it ask again at its own pace.
                tracing::warn!(%request, %error, "a result could not be looked up");
                tokio::time::sleep_until(deadline).await;
                Err(Waited::Pending)
            }
        }
    }

    async fn await_result(
        &self,
        mut receiver: watch::Receiver<Option<Shared>>,
        tenant: &TenantId,
        request: &RequestId,
        deadline: tokio::time::Instant,
    ) -> Waited {
        // The guard that `wait_for` gives must not be held across the look-up below.
        let result = async { receiver.wait_for(Option::is_some).await.map(|result| result.clone()) };
        match tokio::time::timeout_at(deadline, result).await {
            Ok(Ok(result)) => result.map_or(Waited::Pending, Waited::Done),
            // The announcement was taken back.
            Ok(Err(_)) => Waited::Unknown,
            Err(_) if request.is_ephemeral() => Waited::Pending,
            Err(_) => self.recheck(tenant, request).await,
        }
    }

    /// A result may have been stored and evicted between the look-up and the adoption; then nobody will announce it.
    async fn recheck(&self, tenant: &TenantId, request: &RequestId) -> Waited {
        match self.board.store.operation_result(tenant, request).await {
            Ok(Some(OperationState::Finished(result))) => {
                let result = result.map(Outcome::Run);
                self.complete(request, tenant, result.clone());
                Waited::Done(Arc::new(result))
            }
            _ => Waited::Pending,
        }
    }
}

impl Outcome {
    /// About how many bytes it takes, in memory or as protobuf.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Run(RunOutcome::ForwardBackward(outcome)) => {
                outcome.logprobs.iter().map(|datum| 24 + 4 * datum.values.len()).sum()
            }
            Self::Run(_) | Self::CustomLoss(_) => 0,
            Self::Sample(outcome) => 4 * outcome.numbers(),
        }
    }
}

/// About how many bytes a result holds in memory.
fn weight(result: &Result<Outcome>) -> u32 {
    const ENTRY: usize = 256;
    let payload = match result {
        Ok(outcome) => outcome.bytes(),
        Err(error) => error.message.len(),
    };
    u32::try_from(ENTRY + payload).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
