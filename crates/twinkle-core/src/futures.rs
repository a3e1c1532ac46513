//! Answers that are not there yet: the board where clients wait for results of accepted operations.
//!
//! Results of training operations also live in the [`StateStore`], so that they outlive a restart
//! and this board's memory. Results of sampling live only here: after a restart the client is told
//! that they are gone and asks again.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use crate::call::{RunOutcome, SampleOutcome};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{RequestId, TenantId};
use crate::state::{OperationState, StateStore};

/// The result of an accepted operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of a training operation.
    Run(RunOutcome),
    /// Of a sampling request.
    Sample(SampleOutcome),
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
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct PendingTable {
    by_request: HashMap<RequestId, Pending>,
    per_tenant: HashMap<TenantId, usize>,
}

type Shared = Arc<Result<Outcome>>;

#[derive(Debug)]
struct Pending {
    tenant: TenantId,
    result: watch::Sender<Option<Shared>>,
    task: Option<AbortHandle>,
}

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
        let board =
            Board { store, options, pending: Mutex::new(PendingTable::default()), finished, tasks: TaskTracker::new() };
        Self { board: Arc::new(board) }
    }

    /// Announces an operation whose result will come. Refuses when the tenant has too many of them.
    pub fn register(&self, request: &RequestId, tenant: &TenantId) -> Result<()> {
        let limit = self.board.options.pending_per_tenant;
        let mut pending = self.board.pending.lock();
        if pending.per_tenant.get(tenant).copied().unwrap_or_default() >= limit {
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
        if let Some(waiters) = pending.remove(request) {
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
        let request = RequestId::ephemeral();
        self.register(&request, tenant)?;
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
        }
        Ok(request)
    }

    /// Stops a spawned operation nobody wants any more. Says whether there was one.
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

// === impl PendingTable ===

impl PendingTable {
    fn add(&mut self, request: &RequestId, tenant: &TenantId) {
        if self.by_request.contains_key(request) {
            return;
        }
        let (result, _) = watch::channel(None);
        self.by_request.insert(request.clone(), Pending { tenant: tenant.clone(), result, task: None });
        *self.per_tenant.entry(tenant.clone()).or_default() += 1;
    }

    fn remove(&mut self, request: &RequestId) -> Option<Pending> {
        let entry = self.by_request.remove(request)?;
        if let Some(count) = self.per_tenant.get_mut(&entry.tenant) {
            *count -= 1;
            if *count == 0 {
                self.per_tenant.remove(&entry.tenant);
            }
        }
        Some(entry)
    }
}

/// About how many bytes a result holds.
fn weight(result: &Result<Outcome>) -> u32 {
    const ENTRY: usize = 256;
    let payload = match result {
        Ok(Outcome::Run(RunOutcome::ForwardBackward(outcome))) => {
            outcome.logprobs.iter().map(|datum| 24 + 4 * datum.0.len()).sum()
        }
        Ok(Outcome::Run(_)) => 0,
        Ok(Outcome::Sample(outcome)) => {
            let sequences: usize = outcome.sequences.iter().map(|sequence| 64 + 8 * sequence.tokens.len()).sum();
            sequences + 8 * outcome.prompt_logprobs.as_ref().map_or(0, Vec::len)
        }
        Err(error) => error.message.len(),
    };
    u32::try_from(ENTRY + payload).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RunId;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(30);

    fn alice() -> TenantId {
        TenantId::new("alice")
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is compared with results")]
    fn unloaded() -> Result<Outcome> {
        Ok(Outcome::Run(RunOutcome::Unloaded { run: RunId::new("r") }))
    }

    async fn board(options: FuturesOptions) -> Futures {
        Futures::new(StateStore::open_in_memory().await.unwrap(), options)
    }

    #[tokio::test]
    async fn a_waiter_is_woken_by_the_result_and_later_callers_find_it() {
        let futures = board(FuturesOptions::default()).await;
        let request = RequestId::journaled();
        futures.register(&request, &alice()).unwrap();
        let waiter = tokio::spawn({
            let (futures, request) = (futures.clone(), request.clone());
            async move { futures.wait(&alice(), &request, LONG).await }
        });
        tokio::task::yield_now().await;
        futures.complete(&request, &alice(), unloaded());
        assert_eq!(waiter.await.unwrap(), Waited::Done(Arc::new(unloaded())));
        assert_eq!(futures.wait(&alice(), &request, SOON).await, Waited::Done(Arc::new(unloaded())));
        assert_eq!(futures.pending(), 0);
    }

    #[tokio::test]
    async fn no_result_within_the_limit_is_pending() {
        let futures = board(FuturesOptions::default()).await;
        let request = RequestId::ephemeral();
        futures.register(&request, &alice()).unwrap();
        assert_eq!(futures.wait(&alice(), &request, SOON).await, Waited::Pending);
    }

    #[tokio::test]
    async fn another_tenants_request_looks_like_no_request() {
        let futures = board(FuturesOptions::default()).await;
        let (pending, finished) = (RequestId::journaled(), RequestId::journaled());
        futures.register(&pending, &alice()).unwrap();
        futures.register(&finished, &alice()).unwrap();
        futures.complete(&finished, &alice(), unloaded());
        let mallory = TenantId::new("mallory");
        for request in [pending, finished, RequestId::journaled()] {
            assert_eq!(futures.wait(&mallory, &request, LONG).await, Waited::Unknown);
        }
    }

    #[tokio::test]
    async fn a_result_too_large_for_memory_still_reaches_its_waiter() {
        let futures = board(FuturesOptions { finished_bytes: 1, ..FuturesOptions::default() }).await;
        let request = RequestId::ephemeral();
        let alice = alice();
        futures.register(&request, &alice).unwrap();
        let waiting = futures.wait(&alice, &request, LONG);
        let completing = async {
            tokio::task::yield_now().await;
            futures.complete(&request, &alice, unloaded());
        };
        let (waited, ()) = tokio::join!(waiting, completing);
        assert_eq!(waited, Waited::Done(Arc::new(unloaded())));
    }

    #[tokio::test]
    async fn a_tenant_with_too_many_unfinished_operations_is_refused_and_others_are_not() {
        let futures = board(FuturesOptions { pending_per_tenant: 2, ..FuturesOptions::default() }).await;
        let first = RequestId::ephemeral();
        futures.register(&first, &alice()).unwrap();
        futures.register(&RequestId::ephemeral(), &alice()).unwrap();
        let refused = futures.register(&RequestId::ephemeral(), &alice()).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded);
        futures.register(&RequestId::ephemeral(), &TenantId::new("bob")).unwrap();
        futures.complete(&first, &alice(), unloaded());
        futures.register(&RequestId::ephemeral(), &alice()).unwrap();
    }

    #[tokio::test]
    async fn all_tenants_together_have_a_bound_too() {
        let futures = board(FuturesOptions { pending_in_all: 1, ..FuturesOptions::default() }).await;
        futures.register(&RequestId::ephemeral(), &alice()).unwrap();
        let refused = futures.register(&RequestId::ephemeral(), &TenantId::new("bob")).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded);
    }

    #[tokio::test]
    async fn a_panic_in_spawned_work_fails_only_its_own_future() {
        let futures = board(FuturesOptions::default()).await;
        let request = futures.spawn(&alice(), "sample", async { panic!("defect") }).unwrap();
        let Waited::Done(result) = futures.wait(&alice(), &request, LONG).await else { panic!("no result") };
        assert_eq!(result.as_ref().as_ref().unwrap_err().code, ErrorCode::Internal);
    }

    #[tokio::test]
    async fn cancelled_work_is_dropped_and_a_foreign_tenant_cannot_cancel_it() {
        let futures = board(FuturesOptions::default()).await;
        let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
        let request = futures
            .spawn(&alice(), "sample", async move {
                let _alive = alive;
                std::future::pending().await
            })
            .unwrap();
        assert!(!futures.cancel(&TenantId::new("mallory"), &request));
        assert!(futures.cancel(&alice(), &request));
        assert!(dropped.await.is_err());
        assert_eq!(futures.pending(), 0);
    }

    #[tokio::test]
    async fn an_unknown_sampling_request_is_gone_and_an_unknown_training_request_is_not_found() {
        assert_eq!(unknown(&RequestId::ephemeral()).code, ErrorCode::Gone);
        assert_eq!(unknown(&RequestId::journaled()).code, ErrorCode::NotFound);
    }
}
