//! `telemetry.debug`: spans and metrics on stderr instead of in a collector.

use std::io::Write as _;
use std::time::Duration;

use opentelemetry::trace::SpanId;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// Writes each span as a line of JSON.
#[derive(Debug)]
pub(super) struct ConsoleSpans;

impl SpanExporter for ConsoleSpans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        for span in batch {
            print(&line(&span));
        }
        Ok(())
    }
}

fn line(span: &SpanData) -> serde_json::Value {
    let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
    let attributes: serde_json::Map<_, _> = span
        .attributes
        .iter()
        .map(|attribute| (attribute.key.as_str().to_owned(), attribute.value.to_string().into()))
        .collect();
    let parent = (span.parent_span_id != SpanId::INVALID).then(|| span.parent_span_id.to_string());
    serde_json::json!({
        "span": span.name,
        "trace": span.span_context.trace_id().to_string(),
        "id": span.span_context.span_id().to_string(),
        "parent": parent,
        "milliseconds": took.as_secs_f64() * 1e3,
        "attributes": attributes,
    })
}

/// Writes the names of the metrics that would be exported, with their number of series.
#[derive(Debug)]
pub(super) struct ConsoleMetrics;

impl PushMetricExporter for ConsoleMetrics {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        for scope in metrics.scope_metrics() {
            for metric in scope.metrics() {
                print(&serde_json::json!({ "metric": metric.name(), "data": format!("{:?}", metric.data()) }));
            }
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

fn print(line: &serde_json::Value) {
    // A closed stderr is not worth an error.
    let _ = writeln!(std::io::stderr(), "{line}");
}
