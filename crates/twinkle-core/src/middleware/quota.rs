//! How much one tenant may ask of a component: requests and input tokens per window, and tokens per request.
//!
//! The limits are generic cell rates (GCRA) per tenant: a tenant that was idle may send a whole window at once,
//! and then keeps the average. Nothing waits here; a tenant over its quota is told when to try again.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, Ready, ready};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use tower::{Layer, Service};

use crate::call::{Call, Reply};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::TenantId;

/// After how many admitted calls the memory of idle tenants is given back.
const SWEEP_EVERY: u32 = 1024;

/// `queue_config` of an application, as far as it limits tenants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuotaLimits {
    /// Requests a tenant may make per window; 0 turns the limit off.
    pub requests: f64,
    /// Input tokens a tenant may send per window; 0 turns the limit off.
    pub input_tokens: f64,
    /// The window; a whole window's worth may come at once.
    pub window: Duration,
    /// Input tokens of one request; 0 turns the limit off.
    pub max_input_tokens: usize,
}

type Limiter<C> = RateLimiter<TenantId, DefaultKeyedStateStore<TenantId>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// One rate for each tenant.
struct Rate<C: Clock> {
    limiter: Limiter<C>,
    burst: NonZeroU32,
    unit: &'static str,
}

impl<C: Clock> Rate<C> {
    /// `None` where the amount is 0, which turns the limit off.
    fn new(amount: f64, window: Duration, unit: &'static str, clock: C) -> Option<Self> {
        if amount <= 0.0 {
            return None;
        }
        let burst = NonZeroU32::new(amount.ceil() as u32).unwrap_or(NonZeroU32::MIN);
        let period = Duration::try_from_secs_f64(window.as_secs_f64() / amount).ok()?.max(Duration::from_nanos(1));
        let quota = Quota::with_period(period)?.allow_burst(burst);
        Some(Self { limiter: RateLimiter::new(quota, DefaultKeyedStateStore::default(), clock), burst, unit })
    }

    /// Takes `amount` from the tenant's quota. A request larger than a whole window costs a whole window.
    fn take(&self, tenant: &TenantId, amount: u32) -> Result<()> {
        let Some(amount) = NonZeroU32::new(amount) else { return Ok(()) };
        let Ok(Err(not_yet)) = self.limiter.check_key_n(tenant, amount.min(self.burst)) else { return Ok(()) };
        let wait = not_yet.wait_time_from(self.limiter.clock().now());
        let unit = self.unit;
        Err(Error::new(ErrorCode::QuotaExceeded, format!("over this tenant's quota of {unit}")).retry_after(wait))
    }

    /// Forgets tenants whose quota is full again.
    fn sweep(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

/// The limits with what each tenant has used of them.
struct TenantQuota<C: Clock> {
    requests: Option<Rate<C>>,
    tokens: Option<Rate<C>>,
    max_input_tokens: usize,
    admitted: AtomicU32,
}

impl<C: Clock + Clone> TenantQuota<C> {
    fn new(limits: QuotaLimits, clock: &C) -> Self {
        Self {
            requests: Rate::new(limits.requests, limits.window, "requests", clock.clone()),
            tokens: Rate::new(limits.input_tokens, limits.window, "input tokens", clock.clone()),
            max_input_tokens: limits.max_input_tokens,
            admitted: AtomicU32::new(0),
        }
    }

    fn admit(&self, call: &Call) -> Result<()> {
        let tokens = call.operation.input_tokens();
        if self.max_input_tokens > 0 && tokens > self.max_input_tokens {
            let limit = self.max_input_tokens;
            return Err(Error::new(
                ErrorCode::TooLarge,
                format!("a request of {tokens} input tokens is over this server's limit of {limit}"),
            )
            .hint("send fewer or shorter sequences per request; the operator sets `queue_config.max_input_tokens`"));
        }
        if let Some(requests) = &self.requests {
            requests.take(&call.tenant, 1)?;
        }
        if let Some(rate) = &self.tokens {
            rate.take(&call.tenant, u32::try_from(tokens).unwrap_or(u32::MAX))?;
        }
        if self.admitted.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.requests.iter().chain(&self.tokens).for_each(Rate::sweep);
        }
        Ok(())
    }
}

/// Refuses calls of a tenant over its quota.
#[derive(Clone)]
pub struct QuotaLayer<C: Clock = DefaultClock> {
    quota: Arc<TenantQuota<C>>,
}

impl QuotaLayer {
    /// A layer with these limits for each tenant.
    #[must_use]
    pub fn new(limits: QuotaLimits) -> Self {
        Self { quota: Arc::new(TenantQuota::new(limits, &DefaultClock::default())) }
    }
}

impl<S, C: Clock> Layer<S> for QuotaLayer<C> {
    type Service = QuotaService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        QuotaService { inner, quota: Arc::clone(&self.quota) }
    }
}

/// The service of [`QuotaLayer`]; clones share what tenants have used.
pub struct QuotaService<S, C: Clock = DefaultClock> {
    inner: S,
    quota: Arc<TenantQuota<C>>,
}

impl<S: Clone, C: Clock> Clone for QuotaService<S, C> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), quota: Arc::clone(&self.quota) }
    }
}

impl<S, C: Clock + Clone> Service<Call> for QuotaService<S, C>
where
    S: Service<Call, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Either<Ready<Result<Reply>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        match self.quota.admit(&call) {
            Ok(()) => Either::Right(self.inner.call(call)),
            Err(refusal) => Either::Left(ready(Err(refusal))),
        }
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;
    use crate::call::{Operation, SampleRequest, SamplingParams, SamplingSource, Stop};

    fn sample(tenant: &str, tokens: usize) -> Call {
        let params = SamplingParams {
            max_tokens: None,
            seed: None,
            stop: Stop::Never,
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
        };
        let request = SampleRequest {
            source: SamplingSource::Base,
            prompt: vec![0; tokens],
            num_samples: 1,
            params,
            prompt_logprobs: false,
        };
        Call { tenant: TenantId::new(tenant), operation: Operation::Sample(Box::new(request)) }
    }

    fn quota(rps: f64, tps: f64, largest: usize) -> (TenantQuota<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let limits =
            QuotaLimits { requests: rps, input_tokens: tps, window: Duration::from_secs(1), max_input_tokens: largest };
        (TenantQuota::new(limits, &clock), clock)
    }

    #[test]
    fn a_tenant_over_its_requests_is_told_when_to_come_back_and_others_are_not_affected() {
        let (quota, clock) = quota(2.0, 0.0, 0);
        assert_eq!(quota.admit(&sample("alice", 1)), Ok(()));
        assert_eq!(quota.admit(&sample("alice", 1)), Ok(()));
        let refusal = quota.admit(&sample("alice", 1)).unwrap_err();
        assert_eq!((refusal.code, refusal.retry_after_ms), (ErrorCode::QuotaExceeded, Some(500)));
        assert_eq!(quota.admit(&sample("bob", 1)), Ok(()));
        clock.advance(Duration::from_millis(500));
        assert_eq!(quota.admit(&sample("alice", 1)), Ok(()));
    }

    #[test]
    fn tokens_are_weighed_and_a_request_over_a_whole_window_still_passes_an_idle_tenant() {
        let (quota, clock) = quota(0.0, 100.0, 0);
        assert_eq!(quota.admit(&sample("alice", 250)), Ok(()));
        assert_eq!(quota.admit(&sample("alice", 1)).unwrap_err().code, ErrorCode::QuotaExceeded);
        clock.advance(Duration::from_secs(1));
        assert_eq!(quota.admit(&sample("alice", 100)), Ok(()));
    }

    #[test]
    fn a_request_over_the_largest_input_is_too_large_whatever_the_rate() {
        let (quota, _) = quota(0.0, 0.0, 10);
        assert_eq!(quota.admit(&sample("alice", 10)), Ok(()));
        assert_eq!(quota.admit(&sample("alice", 11)).unwrap_err().code, ErrorCode::TooLarge);
    }

    #[test]
    fn zero_turns_every_limit_off() {
        let (quota, _) = quota(0.0, 0.0, 0);
        for _ in 0..3_000 {
            assert_eq!(quota.admit(&sample("alice", 1_000_000)), Ok(()));
        }
    }

    #[tokio::test]
    async fn a_refused_call_never_reaches_the_component() {
        let (inner, mut backend) = tower_test::mock::pair::<Call, Reply>();
        let inner = tower::ServiceExt::<Call>::map_err(inner, |error| Error::internal(error.to_string()));
        let limits =
            QuotaLimits { requests: 0.0, input_tokens: 0.0, window: Duration::from_secs(1), max_input_tokens: 10 };
        let mut service = QuotaLayer::new(limits).layer(inner);
        backend.allow(1);
        futures::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
        assert_eq!(service.call(sample("alice", 11)).await.unwrap_err().code, ErrorCode::TooLarge);
        let admitted = service.call(sample("alice", 10));
        let (arrived, _respond) = backend.next_request().await.unwrap();
        assert_eq!(arrived.operation.input_tokens(), 10);
        drop(admitted);
    }

    #[test]
    fn a_tenant_that_is_idle_again_is_forgotten() {
        let (quota, clock) = quota(10.0, 0.0, 0);
        for number in 0..SWEEP_EVERY - 1 {
            assert_eq!(quota.admit(&sample(&number.to_string(), 1)), Ok(()));
        }
        let requests = quota.requests.as_ref().unwrap();
        assert_eq!(requests.limiter.len(), SWEEP_EVERY as usize - 1);
        clock.advance(Duration::from_secs(10));
        assert_eq!(quota.admit(&sample("last", 1)), Ok(()));
        assert!(requests.limiter.len() <= 1);
    }
}
