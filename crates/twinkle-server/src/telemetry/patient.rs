//! An exporter whose failures are counted and warned about now and then, and otherwise ignored.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;
use twinkle_core::telemetry::labels::{Exported, Signal};
use twinkle_core::telemetry::metrics::EXPORT_FAILURES;

/// The time between two warnings about the same kind of data.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// An exporter that reports its failures in moderation.
#[derive(Debug)]
pub(super) struct Patient<E> {
    inner: E,
    failures: Failures,
}

#[derive(Debug)]
struct Failures {
    signal: Signal,
    /// Since the last warning.
    silent: AtomicU64,
    last_warning: Mutex<Option<Instant>>,
}

impl<E> Patient<E> {
    pub(super) fn new(inner: E, signal: Signal) -> Self {
        Self { inner, failures: Failures { signal, silent: AtomicU64::new(0), last_warning: Mutex::new(None) } }
    }
}

impl Failures {
    /// Counts a failure; whoever exports has nothing better to do than to go on.
    fn note(&self, outcome: OTelSdkResult) {
        let Err(error) = outcome else { return };
        EXPORT_FAILURES.add(1, Exported { signal: self.signal });
        let failures = self.silent.fetch_add(1, Ordering::Relaxed) + 1;
        if self.is_due(Instant::now()) {
            self.silent.store(0, Ordering::Relaxed);
            warn!(signal = self.signal.as_str(), failures, %error, "telemetry could not be exported; serving goes on");
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut last = self.last_warning.lock();
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= WARN_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}

impl<E: SpanExporter> SpanExporter for Patient<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.failures.note(self.inner.export(batch).await);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Patient<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.failures.note(self.inner.export(metrics).await);
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.inner.temporality()
    }
}

impl<E: LogExporter> LogExporter for Patient<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.failures.note(self.inner.export(batch).await);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_failures_make_one_warning_a_minute() {
        let failures = Patient::new((), Signal::Traces).failures;
        let start = Instant::now();
        let warned = (0..180).filter(|second| failures.is_due(start + Duration::from_secs(*second))).count();
        assert_eq!(warned, 3);
    }
}
