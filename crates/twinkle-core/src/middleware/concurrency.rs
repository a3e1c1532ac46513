//! How many calls a component works on at once, how many may wait, for how long, and how long one may run.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tower::{Layer, Service};

use crate::call::{Call, Reply};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::TenantId;
use crate::middleware::places::{Arrival, Places, Room};
use crate::telemetry::labels::{Component, Deployment, TaskType};
use crate::telemetry::metrics::QUEUE_DEPTH;
use crate::telemetry::trace::Stage;
use crate::telemetry::{spans, tasks};

/// What a client is told to wait when it was turned away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// `max_ongoing_requests` and `max_queued_requests` of a deployment, and the time-outs of its `queue_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencyLimits {
    /// Calls inside the component at once, at least 1.
    pub ongoing: usize,
    /// Calls that may wait for their turn; further ones are refused. One tenant's may take half of these places.
    pub queued: usize,
    /// How long a call may wait for its turn; `None` for no limit.
    pub queue_timeout: Option<Duration>,
    /// How long a call may take inside the component before it is dropped, which stops its work; `None` for no
    /// limit. Never set for training: an accepted operation is executed to its end, or a replay could differ.
    pub execution_timeout: Option<Duration>,
}

impl ConcurrencyLimits {
    fn room(&self) -> Room {
        Room { working: self.ongoing.max(1), waiting: self.queued, waiting_per_tenant: self.queued.div_ceil(2) }
    }
}

/// Lets `ongoing` calls in, keeps `queued` waiting, fairly between tenants, and refuses the rest.
#[derive(Clone, Debug)]
pub struct ConcurrencyLayer {
    limits: ConcurrencyLimits,
}

impl ConcurrencyLayer {
    /// A layer with these limits.
    #[must_use]
    pub const fn new(limits: ConcurrencyLimits) -> Self {
        Self { limits }
    }
}

impl<S> Layer<S> for ConcurrencyLayer {
    type Service = Concurrency<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let queue = Queue { places: Mutex::new(Places::new(self.limits.room())) };
        Concurrency { inner, limits: self.limits, queue: Arc::new(queue) }
    }
}

/// The service of [`ConcurrencyLayer`]; clones share the places.
#[derive(Clone, Debug)]
pub struct Concurrency<S> {
    inner: S,
    limits: ConcurrencyLimits,
    queue: Arc<Queue>,
}

impl<S> Service<Call> for Concurrency<S>
where
    S: Service<Call, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let limits = self.limits;
        let entering = Entering::begin(&call);
        let waiting = match self.queue.enter(&call.tenant) {
            // With a turn free the call enters at once, so that the order of calls is the order of work.
            Ok(Entry::Turn(turn)) => {
                entering.entered();
                let answer = self.inner.call(call);
                return Box::pin(run(answer, turn, limits.execution_timeout));
            }
            Ok(Entry::Waiting(waiting)) => waiting,
            Err(refusal) => return Box::pin(async { Err(refusal) }),
        };
        // The clone is fresh, the original was polled ready: the waiting call takes the ready one.
        let fresh = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            let waits = QUEUE_DEPTH.hold(Component { deployment: entering.deployment });
            // Giving up drops the waiting place: nothing of the call has reached the component.
            let turn = match limits.queue_timeout {
                Some(limit) => timeout(limit, waiting.turn()).await.map_err(|_| waited_too_long(limit))??,
                None => waiting.turn().await?,
            };
            drop(waits);
            entering.entered();
            run(ready.call(call), turn, limits.execution_timeout).await
        })
    }
}

/// A call on its way into the component, for the telemetry. Training records its own wait, in its run's line.
struct Entering {
    deployment: Deployment,
    task: Option<TaskType>,
    since: Instant,
    stage: Stage,
}

impl Entering {
    fn begin(call: &Call) -> Self {
        let deployment = Deployment::of(&call.operation);
        let task = (deployment != Deployment::Model).then(|| TaskType(call.operation.name()));
        Self { deployment, task, since: Instant::now(), stage: spans::begin(spans::QUEUE) }
    }

    fn entered(self) {
        if let Some(task) = self.task {
            tasks::began(self.deployment, task, self.since.elapsed());
        }
        self.stage.end();
    }
}

/// Waits for the answer no longer than `limit`, and gives the turn back.
async fn run(answer: impl Future<Output = Result<Reply>>, turn: Turn, limit: Option<Duration>) -> Result<Reply> {
    let answer = match limit {
        Some(limit) => timeout(limit, answer).await.unwrap_or_else(|_| Err(ran_too_long(limit))),
        None => answer.await,
    };
    drop(turn);
    answer
}

fn waited_too_long(limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    Error::new(ErrorCode::Overloaded, format!("no turn within {seconds} s")).retry_after(RETRY_AFTER)
}

fn ran_too_long(limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    Error::new(ErrorCode::TimedOut, format!("stopped after {seconds} s"))
        .hint("ask for less at once; the operator sets `queue_config.execution_timeout`")
}

// === impl Queue ===

/// The places of one component; a waiter is told on its channel that it has a turn.
#[derive(Debug)]
struct Queue {
    places: Mutex<Places<oneshot::Sender<()>>>,
}

enum Entry {
    Turn(Turn),
    Waiting(Waiting),
}

impl Queue {
    fn enter(self: &Arc<Self>, tenant: &TenantId) -> Result<Entry> {
        let (granted, grant) = oneshot::channel();
        let mut places = self.places.lock();
        let refusal = match places.arrive(tenant, granted) {
            Arrival::Works => return Ok(Entry::Turn(Turn(Arc::clone(self)))),
            Arrival::Waits(number) => {
                let queue = Some(Arc::clone(self));
                return Ok(Entry::Waiting(Waiting { queue, tenant: tenant.clone(), number, grant }));
            }
            Arrival::Full => "the queue is full",
            Arrival::ShareUsedUp => "this tenant's share of the queue is used up",
        };
        Err(Error::new(ErrorCode::Overloaded, refusal).retry_after(RETRY_AFTER))
    }

    /// Passes a turn on.
    fn finish(&self) {
        let next = self.places.lock().finish();
        if let Some(granted) = next {
            // If the waiter left since, its own drop passes the turn on.
            let _ = granted.send(());
        }
    }
}

/// The right to be inside the component.
struct Turn(Arc<Queue>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// A place in the queue.
struct Waiting {
    /// `None` once the turn was taken.
    queue: Option<Arc<Queue>>,
    tenant: TenantId,
    number: u64,
    grant: oneshot::Receiver<()>,
}

impl Waiting {
    async fn turn(mut self) -> Result<Turn> {
        // The sender is in the queue as long as this is, so the channel only ever brings the turn.
        let granted = (&mut self.grant).await;
        match (granted, self.queue.take()) {
            (Ok(()), Some(queue)) => Ok(Turn(queue)),
            _ => Err(Error::internal("a place in the queue was lost")),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(queue) = self.queue.take() else { return };
        let still_waiting = queue.places.lock().leave(&self.tenant, self.number);
        if !still_waiting {
            queue.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
    use tower_test::mock;

    use super::*;
    use crate::call::{Operation, ServeOutcome, ServeRequest};
    use crate::ids::SessionId;

    type Answer = task::Spawn<BoxFuture<'static, Result<Reply>>>;

    const ONE: ConcurrencyLimits =
        ConcurrencyLimits { ongoing: 1, queued: 2, queue_timeout: None, execution_timeout: None };

    /// The layer over a mock whose errors are the node's own.
    struct Limited<S> {
        service: Concurrency<S>,
        backend: mock::Handle<Call, Reply>,
    }

    fn limited(
        limits: ConcurrencyLimits,
    ) -> Limited<impl Service<Call, Response = Reply, Error = Error, Future: Send> + Clone + Send + 'static> {
        let (inner, mut backend) = mock::pair::<Call, Reply>();
        let inner = tower::ServiceExt::<Call>::map_err(inner, |error| Error::internal(error.to_string()));
        backend.allow(100);
        Limited { service: ConcurrencyLayer::new(limits).layer(inner), backend }
    }

    impl<S> Limited<S>
    where
        S: Service<Call, Response = Reply, Error = Error> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        async fn call(&mut self, tenant: &str, session: &str) -> Answer {
            futures::future::poll_fn(|context| self.service.poll_ready(context)).await.unwrap();
            let operation = Operation::Serve(ServeRequest::Heartbeat(SessionId::new(session)));
            task::spawn(self.service.call(Call { tenant: TenantId::new(tenant), operation }))
        }

        async fn pending(&mut self, tenant: &str, session: &str) -> Answer {
            let mut answer = self.call(tenant, session).await;
            assert_pending!(answer.poll());
            answer
        }

        /// Answers the next call that reached the component, and says which it was.
        async fn answer_next(&mut self) -> String {
            let (call, respond) = self.backend.next_request().await.unwrap();
            respond.send_response(Reply::Serve(ServeOutcome::Done));
            format!("{:?}", call.operation)
        }

        fn occupied(&self) -> (usize, usize) {
            let places = self.service.queue.places.lock();
            (places.working(), places.waiting())
        }
    }

    #[tokio::test]
    async fn a_call_is_refused_when_the_queue_is_full_and_a_free_turn_goes_to_the_next() {
        let mut limited = limited(ConcurrencyLimits { queued: 1, ..ONE });
        let mut works = limited.pending("alice", "works").await;
        let mut waits = limited.pending("bob", "waits").await;
        let refused = assert_ready!(limited.call("carol", "refused").await.poll()).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert!(refused.retry_after_ms.is_some());

        assert!(limited.answer_next().await.contains("works"));
        assert_ready_ok!(works.poll());
        assert!(waits.is_woken(), "the waiting call gets the turn");
        assert_pending!(waits.poll());
        assert!(limited.answer_next().await.contains("waits"));
        assert_ready_ok!(waits.poll());
        assert_eq!(limited.occupied(), (0, 0));
    }

    #[tokio::test]
    async fn one_tenant_gets_half_of_the_queue() {
        let mut limited = limited(ONE);
        let _works = limited.pending("alice", "works").await;
        let _waits = limited.pending("alice", "waits").await;
        let refused = assert_ready!(limited.call("alice", "refused").await.poll()).unwrap_err();
        assert_eq!(refused.message, "this tenant's share of the queue is used up");
        let _other = limited.pending("bob", "waits").await;
    }

    #[tokio::test]
    async fn a_client_that_leaves_gives_its_place_back() {
        let mut limited = limited(ONE);
        for _ in 0..3 {
            let works = limited.pending("alice", "works").await;
            let waits = limited.pending("alice", "waits").await;
            assert_eq!(limited.occupied(), (1, 1));
            drop(waits);
            assert_eq!(limited.occupied(), (1, 0));
            drop(works);
            assert_eq!(limited.occupied(), (0, 0));
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_just_as_it_gets_its_turn_passes_it_on() {
        let mut limited = limited(ONE);
        let works = limited.pending("alice", "works").await;
        let leaves = limited.pending("bob", "leaves").await;
        let mut waits = limited.pending("carol", "waits").await;
        drop(works);
        assert!(!waits.is_woken());
        drop(leaves);
        assert!(waits.is_woken());
        assert_pending!(waits.poll());
        assert_eq!(limited.occupied(), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waits_too_long_is_told_to_come_back_and_leaves_no_trace() {
        let mut limited = limited(ConcurrencyLimits { queue_timeout: Some(Duration::from_mins(5)), ..ONE });
        let mut works = limited.pending("alice", "works").await;
        let mut waits = limited.pending("bob", "waits").await;
        advance(Duration::from_secs(299)).await;
        assert_pending!(waits.poll());
        advance(Duration::from_secs(1)).await;
        let error = assert_ready!(waits.poll()).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::Overloaded, "no turn within 300 s"));
        assert_eq!(error.retry_after_ms, Some(1_000));
        assert_eq!(limited.occupied(), (1, 0), "its place is free");

        assert!(limited.answer_next().await.contains("works"));
        assert_ready_ok!(works.poll());
        let mut again = limited.pending("bob", "again").await;
        assert!(limited.answer_next().await.contains("again"), "what timed out never reached the component");
        assert_ready_ok!(again.poll());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_runs_too_long_is_dropped_and_its_turn_is_free() {
        let mut limited = limited(ConcurrencyLimits { execution_timeout: Some(Duration::from_mins(2)), ..ONE });
        let mut slow = limited.pending("alice", "slow").await;
        let mut waits = limited.pending("bob", "waits").await;
        let (_, respond) = limited.backend.next_request().await.unwrap();
        advance(Duration::from_secs(119)).await;
        assert_pending!(slow.poll());
        advance(Duration::from_secs(1)).await;
        let error = assert_ready!(slow.poll()).unwrap_err();
        assert_eq!(error.code, ErrorCode::TimedOut);
        assert!(error.retry_after_ms.is_none(), "the same again would take as long");
        // Too late: nobody holds the component's future any more.
        respond.send_response(Reply::Serve(ServeOutcome::Done));
        assert_pending!(waits.poll());
        assert!(limited.answer_next().await.contains("waits"), "its time begins with its turn");
        assert_ready_ok!(waits.poll());
    }
}
