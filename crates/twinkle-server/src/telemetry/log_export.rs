//! Log lines for the collector: what an operator reads on stderr, with the trace it belongs to.

use std::fmt;
use std::sync::OnceLock;

use opentelemetry::logs::{AnyValue, LogRecord, Logger, LoggerProvider, Severity};
use opentelemetry_sdk::logs::{SdkLogger, SdkLoggerProvider};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

static LOGGER: OnceLock<SdkLogger> = OnceLock::new();

/// Sends log lines to `provider` from now on. Only the first call counts.
pub(super) fn install(provider: &SdkLoggerProvider) {
    LOGGER.get_or_init(|| provider.logger("twinkle-server"));
}

/// The part of the subscriber that sends our own lines of level `info` and above; silent until a collector is there.
pub(crate) fn exported_lines<S>() -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    ExportedLines.with_filter(filter_fn(is_exported).with_max_level_hint(LevelFilter::INFO))
}

/// Libraries are left out: what they send while they export would be exported again.
fn is_exported(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && *metadata.level() <= Level::INFO && metadata.target().starts_with("twinkle")
}

struct ExportedLines;

impl<S: Subscriber> Layer<S> for ExportedLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(logger) = LOGGER.get() else { return };
        let metadata = event.metadata();
        let mut record = logger.create_log_record();
        record.set_target(metadata.target());
        let (severity, text) = severity(*metadata.level());
        record.set_severity_number(severity);
        record.set_severity_text(text);
        event.record(&mut Fields(&mut record));
        logger.emit(record);
    }
}

fn severity(level: Level) -> (Severity, &'static str) {
    match level {
        Level::ERROR => (Severity::Error, "ERROR"),
        Level::WARN => (Severity::Warn, "WARN"),
        Level::INFO => (Severity::Info, "INFO"),
        Level::DEBUG => (Severity::Debug, "DEBUG"),
        Level::TRACE => (Severity::Trace, "TRACE"),
    }
}

/// Puts the message into the body and every other field into an attribute.
struct Fields<'a, R>(&'a mut R);

impl<R: LogRecord> Fields<'_, R> {
    fn insert(&mut self, field: &Field, value: AnyValue) {
        if field.name() == "message" {
            self.0.set_body(value);
        } else {
            self.0.add_attribute(field.name(), value);
        }
    }
}

impl<R: LogRecord> Visit for Fields<'_, R> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, AnyValue::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, AnyValue::from(value.to_owned()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, AnyValue::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, AnyValue::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, i64::try_from(value).map_or_else(|_| AnyValue::from(value.to_string()), AnyValue::from));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, AnyValue::from(value));
    }
}
