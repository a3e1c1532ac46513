//! The exporters of this process. They are made once, with the first node that starts in it.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{SdkTracerProvider, TracerProviderBuilder};
use tracing::{info, warn};
use twinkle_core::error::{Error, Result};
use twinkle_core::telemetry::labels::{Component, Deployment, Signal, Whole};
use twinkle_core::telemetry::metrics::{CONNECTIONS, QUEUE_DEPTH, RATE_LIMIT_REJECTIONS};
use twinkle_core::telemetry::{metric, trace};

use super::console::{ConsoleMetrics, ConsoleSpans};
use super::log_export;
use super::patient::Patient;
use super::settings::{Destination, Settings};

/// How long one export may take.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);

/// How long a stopping node waits until the collector has everything.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

static PIPELINE: OnceLock<Pipeline> = OnceLock::new();

/// The providers of this process; they live as long as it does.
struct Pipeline {
    registry: prometheus::Registry,
    meters: SdkMeterProvider,
    tracers: Option<SdkTracerProvider>,
    loggers: Option<SdkLoggerProvider>,
}

/// A handle on the exporters of this process.
#[derive(Clone)]
pub struct Telemetry {
    pipeline: &'static Pipeline,
}

impl Telemetry {
    /// Starts recording, and exporting to where `settings` say. Never waits for a collector.
    ///
    /// A process has one pipeline: a second node in it uses that of the first.
    pub fn start(settings: &Settings) -> Result<Self> {
        let pipeline = if let Some(pipeline) = PIPELINE.get() {
            pipeline
        } else {
            let built = Pipeline::build(settings)?;
            PIPELINE.get_or_init(|| built)
        };
        let meters = pipeline.meters.clone();
        metric::install(|scope| meters.meter(scope.name()));
        show_zeros();
        if let Some(tracers) = &pipeline.tracers {
            global::set_tracer_provider(tracers.clone());
            trace::install();
        }
        if let Some(loggers) = &pipeline.loggers {
            log_export::install(loggers);
        }
        Ok(Self { pipeline })
    }

    /// That of this process, once a node has started in it.
    pub(super) fn running() -> Option<Self> {
        PIPELINE.get().map(|pipeline| Self { pipeline })
    }

    /// What Prometheus fetches.
    pub(super) fn registry(&self) -> &prometheus::Registry {
        &self.pipeline.registry
    }

    /// Sends what is left, for at most [`FLUSH_LIMIT`]; the pipeline goes on.
    pub async fn flush(&self) {
        let pipeline = self.pipeline;
        if pipeline.tracers.is_none() {
            return;
        }
        let flush = tokio::task::spawn_blocking(move || {
            let failed = [
                pipeline.tracers.as_ref().and_then(|tracers| tracers.force_flush().err()),
                pipeline.loggers.as_ref().and_then(|loggers| loggers.force_flush().err()),
                pipeline.meters.force_flush().err(),
            ];
            failed.into_iter().flatten().for_each(|error| tracing::debug!(%error, "telemetry was not flushed"));
        });
        if tokio::time::timeout(FLUSH_LIMIT, flush).await.is_err() {
            warn!(limit_s = FLUSH_LIMIT.as_secs(), "the collector did not take everything in time");
        }
    }
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Pipeline {
    fn build(settings: &Settings) -> Result<Self> {
        let resource = resource(settings);
        let registry = prometheus::Registry::new();
        let prometheus = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            // The table's names are whole: they have their units and `total` in them.
            .without_units()
            .without_counter_suffixes()
            .scope_info_enabled(false)
            .build()
            .map_err(|error| cannot(&error))?;
        let meters = SdkMeterProvider::builder().with_resource(resource.clone()).with_reader(prometheus);
        let tracers = SdkTracerProvider::builder().with_resource(resource.clone());
        match &settings.destination {
            Destination::Nowhere => Ok(Self { registry, meters: meters.build(), tracers: None, loggers: None }),
            Destination::Console => {
                let reader = PeriodicReader::builder(ConsoleMetrics).with_interval(settings.interval).build();
                let tracers = with_bounded_queue(tracers, ConsoleSpans, settings);
                info!("telemetry is written to stderr");
                Ok(Self { registry, meters: meters.with_reader(reader).build(), tracers: Some(tracers), loggers: None })
            }
            Destination::Collector(endpoint) => {
                // The connection is made when there is something to send, and again when it broke.
                let metrics = MetricExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_LIMIT);
                let metrics = Patient::new(metrics.build().map_err(|error| cannot(&error))?, Signal::Metrics);
                let spans = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_LIMIT);
                let spans = Patient::new(spans.build().map_err(|error| cannot(&error))?, Signal::Traces);
                let logs = LogExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_LIMIT);
                let logs = Patient::new(logs.build().map_err(|error| cannot(&error))?, Signal::Logs);
                let reader = PeriodicReader::builder(metrics).with_interval(settings.interval).build();
                info!(%endpoint, "telemetry is sent to a collector");
                Ok(Self {
                    registry,
                    meters: meters.with_reader(reader).build(),
                    tracers: Some(with_bounded_queue(tracers, spans, settings)),
                    loggers: Some(
                        SdkLoggerProvider::builder().with_resource(resource).with_batch_exporter(logs).build(),
                    ),
                })
            }
        }
    }
}

/// Spans wait in a queue of 2,048 (`OTEL_BSP_MAX_QUEUE_SIZE`); what does not fit is dropped and counted by the SDK.
fn with_bounded_queue(
    tracers: TracerProviderBuilder,
    exporter: impl opentelemetry_sdk::trace::SpanExporter + 'static,
    settings: &Settings,
) -> SdkTracerProvider {
    use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor};
    let mut batch = BatchConfigBuilder::default();
    // Spans leave at least as often as metrics; the environment may ask for another delay.
    if std::env::var_os("OTEL_BSP_SCHEDULE_DELAY").is_none() {
        batch = batch.with_scheduled_delay(settings.interval.min(Duration::from_secs(5)));
    }
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch.build()).build();
    tracers.with_span_processor(processor).build()
}

/// What may never happen is shown as having happened never: a dashboard can tell that from a missing metric.
fn show_zeros() {
    for deployment in [Deployment::Gateway, Deployment::Model, Deployment::Sampler, Deployment::Processor] {
        RATE_LIMIT_REJECTIONS.add(0, Component { deployment });
        QUEUE_DEPTH.add(0, Component { deployment });
    }
    CONNECTIONS.add(0, Whole);
}

/// Who tells all this. `OTEL_RESOURCE_ATTRIBUTES` is read, too; the YAML's attributes win.
fn resource(settings: &Settings) -> Resource {
    let attributes = settings
        .resource_attributes
        .iter()
        .map(|(key, value)| opentelemetry::KeyValue::new(key.clone(), value.clone()));
    Resource::builder()
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_service_name(settings.service_name.clone())
        .with_attributes(attributes)
        .build()
}

fn cannot(error: &dyn std::fmt::Display) -> Error {
    Error::internal(format!("telemetry could not be set up: {error}"))
}
