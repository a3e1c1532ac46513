//! What every call passes on its way to a component: one function, read from the outside in.

use std::time::Duration;

use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;
use twinkle_core::component::BoxComponent;
use twinkle_core::config::QueueConfig;
use twinkle_core::middleware::concurrency::{ConcurrencyLayer, ConcurrencyLimits};
use twinkle_core::middleware::journal::Journal;
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
            // Before the journal: what is refused here was never accepted, and may be sent again under its number.
            .layer(ConcurrencyLayer::new(concurrency))
            // Innermost: nothing may change the order of operations between the journal and the component.
            .service(match journal {
                Some(journal) => BoxCloneSyncService::new(journal),
                None => component,
            })
    })
}

/// The tenant limits an application's `queue_config` asks for; `None` when it is switched off.
#[must_use]
pub fn quota_limits(config: &QueueConfig) -> Option<QuotaLimits> {
    config.enabled.then(|| QuotaLimits {
        requests: config.rps_limit,
        input_tokens: config.tps_limit,
        window: Duration::try_from_secs_f64(config.window_seconds).unwrap_or(Duration::from_secs(1)),
        max_input_tokens: usize::try_from(config.max_input_tokens).unwrap_or(usize::MAX),
    })
}
