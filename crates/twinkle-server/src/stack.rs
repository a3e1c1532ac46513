//! What every call passes on its way to a component: one function, read from the outside in.

use std::time::Duration;

use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceBuilder};
use twinkle_core::component::{BoxComponent, ComponentKind};
use twinkle_core::config::{Application, QueueConfig};
use twinkle_core::middleware::concurrency::{ConcurrencyLayer, ConcurrencyLimits};
use twinkle_core::middleware::journal::Journal;
use twinkle_core::middleware::measure::MeasureLayer;
use twinkle_core::middleware::quota::{QuotaLayer, QuotaLimits};
use twinkle_core::middleware::rescue::RescueLayer;

/// Wraps `component` in everything a call passes. `journal` is there for a `model` component and calls it itself.
#[must_use]
pub fn component_stack(
    component: BoxComponent,
    journal: Option<Journal>,
    quota: Option<QuotaLimits>,
    concurrency: ConcurrencyLimits,
) -> BoxComponent {
    let kind = component.kind();
    component.wrapped(|component| {
        ServiceBuilder::new()
            // Outermost: whatever goes wrong below, also a panic, leaves as one kind of error and is logged once.
            .layer(RescueLayer::new(kind))
            // Before the queue, so that a tenant over its quota never takes a place in it.
            .option_layer(quota.map(QuotaLayer::new))
            // Before the journal: what is refused or waited too long here was never accepted, and may be sent again
            // under its number.
            .layer(ConcurrencyLayer::new(concurrency))
            // Innermost: nothing may change the order of operations between the journal and the component.
            .service(match journal {
                Some(journal) => BoxCloneSyncService::new(journal),
                // A component that answers at once is measured here; the journal measures what it executes.
                None => BoxCloneSyncService::new(MeasureLayer.layer(component)),
            })
    })
}

/// The tenant limits an application's `queue_config` asks for; `None` when it is switched off.
#[must_use]
pub fn quota_limits(config: &QueueConfig) -> Option<QuotaLimits> {
    let window = seconds(config.window_seconds).unwrap_or(Duration::from_secs(1));
    config.enabled.then(|| QuotaLimits {
        requests: config.rps_limit,
        input_tokens: config.tps_limit,
        window,
        max_input_tokens: usize::try_from(config.max_input_tokens).unwrap_or(usize::MAX),
        idle_memory: seconds(config.token_cleanup_multiplier * window.as_secs_f64()).unwrap_or_default(),
        sweep_every: seconds(config.token_cleanup_interval).unwrap_or_default(),
    })
}

/// How many calls an application takes at once and how long each may wait and run.
///
/// The time-outs hold whether or not `queue_config.enabled` is set: that switches what a tenant may send. 0 is no
/// limit. Training has no limit on its execution: an accepted operation is in the journal and is executed to its end,
/// so that a replay on a faster or slower machine ends in the same bits. Nor has a processor: what it does to a data set
/// goes on whether or not somebody waits, and may take minutes.
#[must_use]
pub fn concurrency_limits(application: &Application) -> ConcurrencyLimits {
    let (deployment, queue) = (&application.deployment, application.args.queue());
    let may_be_cut_off = !matches!(application.args.kind(), ComponentKind::Model | ComponentKind::Processor);
    ConcurrencyLimits {
        ongoing: deployment.max_ongoing_requests as usize,
        queued: deployment.max_queued_requests as usize,
        queue_timeout: seconds(queue.queue_timeout),
        execution_timeout: seconds(queue.execution_timeout).filter(|_| may_be_cut_off),
    }
}

/// A duration of the configuration; `None` for 0 and for more than a clock can hold.
fn seconds(number: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(number).ok().filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use futures::FutureExt;
    use futures::future::BoxFuture;
    use tokio::sync::Semaphore;
    use tower::Service;
    use twinkle_core::call::{Call, Operation, Reply, ServeOutcome, ServeRequest};
    use twinkle_core::component::{Component, ComponentKind, Health, Lifecycle};
    use twinkle_core::error::{Error, ErrorCode, Result};
    use twinkle_core::ids::{SessionId, TenantId};

    use super::*;

    /// Answers a heartbeat once its gate has a permit, and panics on anything else.
    #[derive(Clone)]
    struct Gated(Arc<Semaphore>);

    impl Service<Call> for Gated {
        type Response = Reply;
        type Error = Error;
        type Future = BoxFuture<'static, Result<Reply>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, call: Call) -> Self::Future {
            let gate = Arc::clone(&self.0);
            async move {
                let Operation::Serve(ServeRequest::Heartbeat(_)) = call.operation else { panic!("a defect") };
                let _passed = gate.acquire().await.map_err(|_| Error::internal("the gate is gone"))?;
                Ok(Reply::Serve(ServeOutcome::Done))
            }
            .boxed()
        }
    }

    impl Lifecycle for Gated {
        fn kind(&self) -> ComponentKind {
            ComponentKind::Server
        }

        fn health(&self) -> Health {
            Health::Ready
        }

        fn drain(&self, _: Duration) -> BoxFuture<'static, ()> {
            futures::future::ready(()).boxed()
        }
    }

    impl Component for Gated {
        type Args = ();
        type Context = Arc<Semaphore>;

        async fn build((): (), gate: Arc<Semaphore>) -> Result<Self> {
            Ok(Self(gate))
        }
    }

    /// One call at a time, none waiting, and two requests per hour for each tenant.
    async fn stack(gate: &Arc<Semaphore>) -> BoxComponent {
        let component = Gated::build((), Arc::clone(gate)).await.unwrap().boxed();
        let config = QueueConfig { rps_limit: 2.0, window_seconds: 3600.0, ..QueueConfig::default() };
        let concurrency = ConcurrencyLimits { ongoing: 1, queued: 0, queue_timeout: None, execution_timeout: None };
        component_stack(component, None, quota_limits(&config), concurrency)
    }

    fn call(tenant: &str, request: ServeRequest) -> Call {
        Call { tenant: TenantId::new(tenant), operation: Operation::Serve(request) }
    }

    fn heartbeat(tenant: &str) -> Call {
        call(tenant, ServeRequest::Heartbeat(SessionId::new("s")))
    }

    #[tokio::test]
    async fn a_tenant_over_its_quota_hears_so_even_when_the_queue_is_full() {
        let gate = Arc::new(Semaphore::new(0));
        let stack = stack(&gate).await;
        let mut working = Box::pin(stack.ask(heartbeat("alice")));
        assert!(working.as_mut().now_or_never().is_none());

        let full = stack.ask(heartbeat("alice")).await.unwrap_err();
        assert_eq!(full.code, ErrorCode::Overloaded);
        let over = stack.ask(heartbeat("alice")).await.unwrap_err();
        assert_eq!(over.code, ErrorCode::QuotaExceeded);
        assert!(over.retry_after_ms.is_some());

        gate.add_permits(1);
        assert!(matches!(working.await, Ok(Reply::Serve(ServeOutcome::Done))));
        stack.ask(heartbeat("bob")).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_tenant_uses_of_one_application_is_not_missing_in_another() {
        let gate = Arc::new(Semaphore::new(9));
        let (one, other) = (stack(&gate).await, stack(&gate).await);
        for _ in 0..2 {
            one.ask(heartbeat("alice")).await.unwrap();
        }
        assert_eq!(one.ask(heartbeat("alice")).await.unwrap_err().code, ErrorCode::QuotaExceeded);
        other.ask(heartbeat("alice")).await.unwrap();
    }

    #[test]
    fn zero_seconds_are_no_limit() {
        assert_eq!(seconds(0.0), None);
        assert_eq!(seconds(0.5), Some(Duration::from_millis(500)));
        assert_eq!(seconds(f64::INFINITY), None);
    }

    #[tokio::test]
    async fn a_panic_in_a_component_gives_its_place_back() {
        let gate = Arc::new(Semaphore::new(1));
        let stack = stack(&gate).await;
        let panicking = call("alice", ServeRequest::ListCheckpoints { run: None, limit: 1, offset: 0 });
        assert_eq!(stack.ask(panicking).await.unwrap_err().code, ErrorCode::Internal);
        stack.ask(heartbeat("alice")).await.unwrap();
    }
}
