//! How much one tenant may ask of a component: requests and input tokens per window, and tokens per request.
//!
//! The limits are generic cell rates (GCRA, by `governor`): a tenant that was idle may send a whole window at once,
//! and then keeps the average. Nothing waits here; a tenant over its quota is told when to try again, and a refused
//! call costs it nothing. A call larger than a whole window costs a whole window. Every application has a layer of
//! its own, so quotas are per tenant and application.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, Ready, ready};
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::call::{Call, Operation, Reply};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::TenantId;
use crate::telemetry::labels::{Component, Deployment};
use crate::telemetry::metrics::{RATE_LIMIT_REJECTIONS, RATE_LIMITER_TENANTS};
use crate::telemetry::spans;

/// Tenants remembered at once; further ones are turned away until some are forgotten.
const MOST_TENANTS: usize = 262_144;
/// Below this many tenants, only the clock makes a sweep.
const FEW_TENANTS: usize = 1024;
/// What a tenant is told when too many others are remembered.
const CROWDED_RETRY: Duration = Duration::from_secs(1);

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
    /// How long an idle tenant is remembered at least; never shorter than its quota takes to be full again.
    pub idle_memory: Duration,
    /// The time between two sweeps of idle tenants.
    pub sweep_every: Duration,
}

/// Refuses calls of a tenant over its quota.
#[derive(Clone, Debug)]
pub struct QuotaLayer {
    quota: Arc<TenantQuota>,
}

impl QuotaLayer {
    /// A layer with these limits for each tenant.
    #[must_use]
    pub fn new(limits: QuotaLimits) -> Self {
        Self { quota: Arc::new(TenantQuota::new(limits)) }
    }
}

impl<S> Layer<S> for QuotaLayer {
    type Service = QuotaService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        QuotaService { inner, quota: Arc::clone(&self.quota) }
    }
}

/// The service of [`QuotaLayer`]; clones share what tenants have used.
#[derive(Clone, Debug)]
pub struct QuotaService<S> {
    inner: S,
    quota: Arc<TenantQuota>,
}

impl<S> Service<Call> for QuotaService<S>
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
        let mut stage = spans::begin(spans::QUOTA);
        let admitted = self.quota.admit(&call);
        stage.note(&admitted);
        stage.end();
        match admitted {
            Ok(()) => Either::Right(self.inner.call(call)),
            Err(refusal) => {
                if refusal.code == ErrorCode::QuotaExceeded {
                    RATE_LIMIT_REJECTIONS.add(1, Component { deployment: Deployment::of(&call.operation) });
                }
                Either::Left(ready(Err(refusal)))
            }
        }
    }
}

// === impl TenantQuota ===

/// The limits with what each tenant has used of them.
#[derive(Debug)]
struct TenantQuota {
    requests: Option<Rate>,
    tokens: Option<Rate>,
    max_input_tokens: usize,
    /// How long it takes until a quota that is used up is full again.
    refill: Duration,
    idle_memory: Duration,
    sweep_every: Duration,
    tenants: Mutex<Tenants>,
}

#[derive(Debug)]
struct Tenants {
    used: HashMap<TenantId, Used>,
    next_sweep: Instant,
    /// So many tenants make a sweep before its time.
    crowd: usize,
}

/// What a tenant has used: where each rate stands.
#[derive(Clone, Copy, Debug)]
struct Used {
    requests: Option<Nanos>,
    tokens: Option<Nanos>,
    last: Instant,
}

impl TenantQuota {
    fn new(limits: QuotaLimits) -> Self {
        let requests = Rate::new(limits.requests, limits.window, "requests");
        let tokens = Rate::new(limits.input_tokens, limits.window, "input tokens");
        let refill = requests.iter().chain(&tokens).map(|rate| rate.refill).max().unwrap_or_default();
        let tenants =
            Tenants { used: HashMap::new(), next_sweep: Instant::now() + limits.sweep_every, crowd: FEW_TENANTS };
        Self {
            requests,
            tokens,
            max_input_tokens: limits.max_input_tokens,
            refill,
            idle_memory: limits.idle_memory.max(refill),
            sweep_every: limits.sweep_every,
            tenants: Mutex::new(tenants),
        }
    }

    /// Takes the call out of its tenant's quota: all of it or nothing.
    fn admit(&self, call: &Call) -> Result<()> {
        let tokens = call.operation.input_tokens();
        if self.max_input_tokens > 0 && tokens > self.max_input_tokens {
            return Err(too_large(tokens, self.max_input_tokens));
        }
        let is_about_objects = matches!(&call.operation, Operation::Process(request) if request.is_about_objects());
        if is_about_objects || (self.requests.is_none() && self.tokens.is_none()) {
            return Ok(());
        }
        let mut tenants = self.tenants.lock();
        let before = tenants.used.len();
        self.sweep(&mut tenants);
        let admitted = self.take(&mut tenants, call, tokens);
        let change = tenants.used.len() as i64 - before as i64;
        drop(tenants);
        if change != 0 {
            RATE_LIMITER_TENANTS.add(change, Component { deployment: Deployment::of(&call.operation) });
        }
        admitted
    }

    fn take(&self, tenants: &mut Tenants, call: &Call, tokens: usize) -> Result<()> {
        let known = tenants.used.get(&call.tenant).copied();
        if known.is_none() && tenants.used.len() >= MOST_TENANTS {
            return Err(Error::new(ErrorCode::Overloaded, "too many tenants at once").retry_after(CROWDED_RETRY));
        }
        let (requests, tokens_used) = known.map_or((None, None), |used| (used.requests, used.tokens));
        let after = (
            take(self.requests.as_ref(), requests, 1),
            take(self.tokens.as_ref(), tokens_used, u32::try_from(tokens).unwrap_or(u32::MAX)),
        );
        match after {
            (Ok(requests), Ok(tokens)) => {
                tenants.used.insert(call.tenant.clone(), Used { requests, tokens, last: Instant::now() });
                Ok(())
            }
            // The longer wait, so that whoever keeps it is let in.
            (Err(one), Err(other)) => Err(if one.retry_after_ms >= other.retry_after_ms { one } else { other }),
            (Err(refusal), Ok(_)) | (Ok(_), Err(refusal)) => Err(refusal),
        }
    }

    /// Forgets tenants that were idle for long. When many come at once, everyone whose quota is full again goes.
    fn sweep(&self, tenants: &mut Tenants) {
        let now = Instant::now();
        let crowded = tenants.used.len() >= tenants.crowd;
        if now < tenants.next_sweep && !crowded {
            return;
        }
        let memory = if crowded { self.refill } else { self.idle_memory };
        tenants.used.retain(|_, used| now.duration_since(used.last) < memory);
        tenants.used.shrink_to(FEW_TENANTS.max(2 * tenants.used.len()));
        tenants.crowd = FEW_TENANTS.max(2 * tenants.used.len()).min(MOST_TENANTS);
        tenants.next_sweep = now + self.sweep_every;
    }
}

fn too_large(tokens: usize, limit: usize) -> Error {
    Error::new(
        ErrorCode::TooLarge,
        format!("a request of {tokens} input tokens is over this server's limit of {limit}"),
    )
    .hint("send fewer or shorter sequences per request; the operator sets `queue_config.max_input_tokens`")
}

/// Where the rate stands after `amount`, or why it has no room for it now.
fn take(rate: Option<&Rate>, used: Option<Nanos>, amount: u32) -> Result<Option<Nanos>> {
    match (rate, NonZeroU32::new(amount)) {
        (Some(rate), Some(amount)) => rate.take(used, amount),
        _ => Ok(used),
    }
}

// === impl Rate ===

/// One rate: governor's arithmetic over a register, in which a tenant's standing is put before each use.
struct Rate {
    limiter: RateLimiter<NotKeyed, Register, TokioClock, NoOpMiddleware<Nanos>>,
    register: Register,
    /// A whole window's worth.
    burst: NonZeroU32,
    refill: Duration,
    unit: &'static str,
}

impl Rate {
    /// `None` where the amount is 0, which turns the limit off.
    fn new(amount: f64, window: Duration, unit: &'static str) -> Option<Self> {
        if amount <= 0.0 {
            return None;
        }
        let burst = NonZeroU32::new(amount.ceil() as u32).unwrap_or(NonZeroU32::MIN);
        // Rounded up: the limit is never exceeded.
        let period = Duration::from_nanos(((window.as_nanos() as f64 / amount).ceil() as u64).max(1));
        let quota = Quota::with_period(period)?.allow_burst(burst);
        let register = Register::default();
        let limiter = RateLimiter::new(quota, register.clone(), TokioClock { origin: Instant::now() });
        Some(Self { limiter, register, burst, refill: period.saturating_mul(burst.get()), unit })
    }

    /// Called under the lock of the tenants, so the register is one caller's at a time.
    fn take(&self, used: Option<Nanos>, amount: NonZeroU32) -> Result<Option<Nanos>> {
        *self.register.0.lock() = used;
        // Within the burst there is always capacity, so the outer result is never an error.
        if let Ok(Err(not_yet)) = self.limiter.check_n(amount.min(self.burst)) {
            let wait = not_yet.wait_time_from(self.limiter.clock().now());
            let unit = self.unit;
            return Err(
                Error::new(ErrorCode::QuotaExceeded, format!("over this tenant's quota of {unit}")).retry_after(wait)
            );
        }
        Ok(*self.register.0.lock())
    }
}

impl std::fmt::Debug for Rate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Rate").field("burst", &self.burst).field("unit", &self.unit).finish_non_exhaustive()
    }
}

/// The standing that governor reads and writes.
#[derive(Clone, Debug, Default)]
struct Register(Arc<Mutex<Option<Nanos>>>);

impl StateStore for Register {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, change: F) -> std::result::Result<T, E>
    where
        F: Fn(Option<Nanos>) -> std::result::Result<(T, Nanos), E>,
    {
        let mut standing = self.0.lock();
        let (answer, next) = change(*standing)?;
        *standing = Some(next);
        Ok(answer)
    }
}

/// The runtime's clock, which tests can pause.
#[derive(Clone, Copy, Debug)]
struct TokioClock {
    origin: Instant,
}

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.origin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

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
        let request = SampleRequest::new(SamplingSource::Base, vec![0; tokens], params);
        Call { tenant: TenantId::new(tenant), operation: Operation::Sample(Box::new(request)) }
    }

    fn limits(requests: f64, input_tokens: f64, max_input_tokens: usize) -> QuotaLimits {
        QuotaLimits {
            requests,
            input_tokens,
            window: Duration::from_secs(1),
            max_input_tokens,
            idle_memory: Duration::from_secs(10),
            sweep_every: Duration::from_mins(1),
        }
    }

    fn quota(requests: f64, input_tokens: f64, max_input_tokens: usize) -> TenantQuota {
        TenantQuota::new(limits(requests, input_tokens, max_input_tokens))
    }

    /// How long a refused call is told to wait.
    fn wait(refusal: Result<()>) -> Duration {
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::QuotaExceeded);
        Duration::from_millis(refusal.retry_after_ms.expect("a quota says when to come back"))
    }

    /// Runs a property on a clock of its own that stands still until it is moved.
    fn on_a_paused_clock<T>(property: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime")
            .block_on(property)
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_over_its_requests_is_told_when_to_come_back_and_others_are_not_affected() {
        let quota = quota(2.0, 0.0, 0);
        assert_eq!(quota.admit(&sample("alice", 1)), Ok(()));
        assert_eq!(quota.admit(&sample("alice", 1)), Ok(()));
        assert_eq!(wait(quota.admit(&sample("alice", 1))), Duration::from_millis(500));
        assert_eq!(quota.admit(&sample("bob", 1)), Ok(()));
        advance(Duration::from_millis(500)).await;
        assert_eq!(quota.admit(&sample("alice", 1)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_larger_than_a_whole_window_costs_a_whole_window() {
        let quota = quota(0.0, 100.0, 0);
        assert_eq!(quota.admit(&sample("alice", 250)), Ok(()));
        assert_eq!(wait(quota.admit(&sample("alice", 1))), Duration::from_millis(10));
        assert_eq!(wait(quota.admit(&sample("alice", 999))), Duration::from_secs(1));
        advance(Duration::from_secs(1)).await;
        assert_eq!(quota.admit(&sample("alice", 100)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_refused_for_its_tokens_costs_no_request() {
        let quota = quota(2.0, 10.0, 0);
        assert_eq!(quota.admit(&sample("alice", 10)), Ok(()));
        for _ in 0..5 {
            assert_eq!(wait(quota.admit(&sample("alice", 1))), Duration::from_millis(100));
        }
        advance(Duration::from_millis(100)).await;
        assert_eq!(quota.admit(&sample("alice", 1)), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_over_the_largest_input_is_too_large_whatever_the_rate() {
        let quota = quota(0.0, 0.0, 10);
        assert_eq!(quota.admit(&sample("alice", 10)), Ok(()));
        assert_eq!(quota.admit(&sample("alice", 11)).unwrap_err().code, ErrorCode::TooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn zero_turns_every_limit_off_and_remembers_nobody() {
        let quota = quota(0.0, 0.0, 0);
        for _ in 0..3_000 {
            assert_eq!(quota.admit(&sample("alice", 1_000_000)), Ok(()));
        }
        assert_eq!(quota.tenants.lock().used.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_call_never_reaches_the_component() {
        let (inner, mut backend) = tower_test::mock::pair::<Call, Reply>();
        let inner = tower::ServiceExt::<Call>::map_err(inner, |error| Error::internal(error.to_string()));
        let mut service = QuotaLayer::new(limits(0.0, 0.0, 10)).layer(inner);
        backend.allow(1);
        futures::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
        assert_eq!(service.call(sample("alice", 11)).await.unwrap_err().code, ErrorCode::TooLarge);
        let admitted = service.call(sample("alice", 10));
        let (arrived, _respond) = backend.next_request().await.unwrap();
        assert_eq!(arrived.operation.input_tokens(), 10);
        drop(admitted);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_tenant_is_forgotten_at_the_next_sweep_and_not_before() {
        let quota = quota(10.0, 0.0, 0);
        for number in 0..100 {
            assert_eq!(quota.admit(&sample(&number.to_string(), 1)), Ok(()));
        }
        advance(Duration::from_secs(59)).await;
        assert_eq!(quota.admit(&sample("recent", 1)), Ok(()));
        assert_eq!(quota.tenants.lock().used.len(), 101);
        advance(Duration::from_secs(1)).await;
        assert_eq!(quota.admit(&sample("last", 1)), Ok(()));
        assert_eq!(quota.tenants.lock().used.len(), 2, "`recent` was active within the idle memory");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_tenants_is_thinned_out_before_the_sweep_is_due() {
        let quota = quota(10.0, 0.0, 0);
        for number in 0..FEW_TENANTS {
            assert_eq!(quota.admit(&sample(&number.to_string(), 1)), Ok(()));
        }
        advance(Duration::from_secs(1)).await;
        assert_eq!(quota.admit(&sample("one more", 1)), Ok(()));
        assert_eq!(quota.tenants.lock().used.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn being_forgotten_never_gives_more_than_the_quota() {
        let slow = QuotaLimits { idle_memory: Duration::ZERO, sweep_every: Duration::ZERO, ..limits(0.1, 0.0, 0) };
        let quota = TenantQuota::new(slow);
        assert_eq!(quota.admit(&sample("alice", 1)), Ok(()));
        advance(Duration::from_secs(5)).await;
        assert_eq!(wait(quota.admit(&sample("alice", 1))), Duration::from_secs(5));
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_its_burst_and_its_share(
            requests in 1_u32..40,
            window_ms in 100_u64..5_000,
            pauses in prop::collection::vec(0_u64..200, 1..300),
        ) {
            let admitted = on_a_paused_clock(async {
                let window = Duration::from_millis(window_ms);
                let quota = TenantQuota::new(QuotaLimits { window, ..limits(requests.into(), 0.0, 0) });
                let began = Instant::now();
                let mut admitted = Vec::new();
                for pause in pauses {
                    advance(Duration::from_millis(pause)).await;
                    if quota.admit(&sample("alice", 1)).is_ok() {
                        admitted.push(began.elapsed());
                    }
                }
                admitted
            });
            let window = Duration::from_millis(window_ms);
            for (index, from) in admitted.iter().enumerate() {
                let within = admitted[index..].iter().filter(|at| **at < *from + window).count();
                prop_assert!(within <= 2 * requests as usize, "{within} within one window of {requests}");
            }
            if let (Some(first), Some(last)) = (admitted.first(), admitted.last()) {
                let share = last.saturating_sub(*first).as_secs_f64() / window.as_secs_f64() * f64::from(requests);
                prop_assert!(admitted.len() as f64 <= f64::from(requests) + share + 1e-6);
            }
        }

        #[test]
        fn a_tenant_that_keeps_the_rate_is_never_refused(
            requests in 1_u32..200, window_ms in 1_u64..10_000, count in 1_usize..400, late in 0_u64..1_000_000,
        ) {
            let refused = on_a_paused_clock(async {
                let window = Duration::from_millis(window_ms);
                let quota = TenantQuota::new(QuotaLimits { window, ..limits(requests.into(), 0.0, 0) });
                // The paused clock moves in whole milliseconds.
                let apart = Duration::from_millis(window_ms.div_ceil(requests.into()) + late / 900_000);
                let mut refused = 0;
                for _ in 0..count {
                    refused += usize::from(quota.admit(&sample("alice", 1)).is_err());
                    advance(apart).await;
                }
                refused
            });
            prop_assert_eq!(refused, 0);
        }

        #[test]
        fn whoever_waits_as_long_as_told_is_let_in_and_no_sooner(
            requests in 1_u32..50,
            tokens in 1_u32..5_000,
            window_ms in 1_u64..10_000,
            sizes in prop::collection::vec(0_usize..8_000, 1..100),
        ) {
            on_a_paused_clock(async {
                let window = Duration::from_millis(window_ms);
                let limits = QuotaLimits { window, ..limits(requests.into(), tokens.into(), 0) };
                let quota = TenantQuota::new(limits);
                for size in sizes {
                    let call = sample("alice", size);
                    let Err(refusal) = quota.admit(&call) else { continue };
                    let wait = refusal.retry_after_ms.expect("a wait");
                    assert!(wait > 0);
                    advance(Duration::from_millis(wait - 1)).await;
                    // A rest below a millisecond may be left, no more.
                    if let Err(refusal) = quota.admit(&call) {
                        assert_eq!(refusal.retry_after_ms, Some(1));
                        advance(Duration::from_millis(1)).await;
                        quota.admit(&call).expect("it waited as long as it was told");
                    } else {
                        panic!("it was told to wait a millisecond too long");
                    }
                }
            });
        }
    }
}
