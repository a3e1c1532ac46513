//! How many calls a component works on at once, and how many may wait.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tower::{Layer, Service};

use crate::call::{Call, Reply};
use crate::error::{Error, ErrorCode, Result};

/// What a client is told to wait when the queue is full.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// `max_ongoing_requests` and `max_queued_requests` of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencyLimits {
    /// Calls inside the component at once, at least 1.
    pub ongoing: usize,
    /// Calls that may wait for their turn; further ones are refused.
    pub queued: usize,
}

/// Lets `ongoing` calls in, keeps `queued` waiting in order of arrival, refuses the rest.
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
        let ongoing = self.limits.ongoing.clamp(1, Semaphore::MAX_PERMITS / 2);
        let places = ongoing + self.limits.queued.min(Semaphore::MAX_PERMITS / 2);
        Concurrency { inner, places: Arc::new(Semaphore::new(places)), turns: Arc::new(Semaphore::new(ongoing)) }
    }
}

/// The service of [`ConcurrencyLayer`]; clones share the limits.
#[derive(Clone, Debug)]
pub struct Concurrency<S> {
    inner: S,
    /// One for every call that is inside or waiting.
    places: Arc<Semaphore>,
    /// One for every call that is inside.
    turns: Arc<Semaphore>,
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
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Box::pin(async {
                Err(Error::new(ErrorCode::Overloaded, "the queue is full").retry_after(RETRY_AFTER))
            });
        };
        // With a turn free the call enters at once, so that the order of calls is the order of work.
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            let answer = self.inner.call(call);
            return Box::pin(async move {
                let answer = answer.await;
                drop((turn, place));
                answer
            });
        }
        // The clone is fresh, the original was polled ready: the waiting call takes the ready one.
        let fresh = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, fresh);
        let turns = Arc::clone(&self.turns);
        Box::pin(async move {
            let Ok(turn) = turns.acquire_owned().await else {
                return Err(Error::new(ErrorCode::Draining, "the component is shutting down"));
            };
            let answer = ready.call(call).await;
            drop((turn, place));
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready_ok, task};
    use tower_test::mock;

    use super::*;
    use crate::call::{Operation, ServeOutcome, ServeRequest};
    use crate::ids::{SessionId, TenantId};

    fn call(session: &str) -> Call {
        let operation = Operation::Serve(ServeRequest::Heartbeat(SessionId::new(session)));
        Call { tenant: TenantId::new("alice"), operation }
    }

    /// A stack of this layer over a mock whose errors are the node's own.
    fn limited(
        limits: ConcurrencyLimits,
    ) -> (
        impl Service<Call, Response = Reply, Error = Error, Future = BoxFuture<'static, Result<Reply>>>,
        mock::Handle<Call, Reply>,
    ) {
        let (inner, handle) = mock::pair::<Call, Reply>();
        let inner = tower::ServiceExt::<Call>::map_err(inner, |error| Error::internal(error.to_string()));
        (ConcurrencyLayer::new(limits).layer(inner), handle)
    }

    #[tokio::test]
    async fn a_third_call_is_refused_when_one_works_and_one_waits() {
        let (mut service, mut backend) = limited(ConcurrencyLimits { ongoing: 1, queued: 1 });
        backend.allow(8);
        futures::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
        let mut works = task::spawn(service.call(call("works")));
        futures::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
        let mut waits = task::spawn(service.call(call("waits")));
        assert_pending!(works.poll());
        assert_pending!(waits.poll());

        futures::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
        let refused = service.call(call("refused")).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert!(refused.retry_after_ms.is_some());

        let (_, respond) = backend.next_request().await.unwrap();
        respond.send_response(Reply::Serve(ServeOutcome::Done));
        assert_ready_ok!(works.poll());
        assert!(waits.is_woken(), "the waiting call gets the turn");
        assert_pending!(waits.poll());
        let (second, _respond) = backend.next_request().await.unwrap();
        assert!(format!("{second:?}").contains("waits"));
    }

    #[tokio::test]
    async fn a_client_that_leaves_gives_its_place_back() {
        let (mut service, mut backend) = limited(ConcurrencyLimits { ongoing: 1, queued: 1 });
        backend.allow(8);
        for _ in 0..3 {
            futures::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
            let mut works = task::spawn(service.call(call("works")));
            futures::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
            let mut waits = task::spawn(service.call(call("waits")));
            assert_pending!(works.poll());
            assert_pending!(waits.poll());
        }
    }
}
