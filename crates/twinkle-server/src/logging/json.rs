//! One JSON object a line, flat, so that `jq 'select(.run == "…")'` finds what belongs together.
//!
//! The fields of the spans around a line come before its own, the inner ones winning. A span's field `id` takes the
//! span's name, so that the id of the span `request` is `request`.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// What every line has; a field of the same name gets an underscore.
const RESERVED: [&str; 4] = ["time", "level", "target", "message"];

/// Writes each event as one line of JSON.
pub(super) struct JsonLines;

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    level: &'static str,
    target: &'a str,
    message: String,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// The message and the other fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            let extensions = span.extensions();
            let Some(formatted) = extensions.get::<FormattedFields<N>>() else { continue };
            // The fields are what `JsonFields` wrote; a span without any has an empty text.
            let Ok(Value::Object(given)) = serde_json::from_str(&formatted.fields) else { continue };
            for (name, value) in given {
                let name = if name == "id" { span.name().to_owned() } else { name };
                fields.insert(&name, value);
            }
        }
        event.record(&mut fields);
        let metadata = event.metadata();
        let line = Line {
            time: format!("{:.6}", Timestamp::now()),
            level: metadata.level().as_str(),
            target: metadata.target(),
            message: fields.message,
            fields: fields.others,
        };
        let text = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

impl Fields {
    fn insert(&mut self, name: &str, value: Value) {
        let name = if RESERVED.contains(&name) { format!("{name}_") } else { name.to_owned() };
        self.others.insert(name, value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.insert(field.name(), Value::String(text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity: those become `null`.
        self.insert(field.name(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::fmt::format::JsonFields;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// The lines that `log` writes, each as JSON.
    fn lines(log: impl FnOnce()) -> Vec<Value> {
        let written = Written::default();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(written.clone())
            .with_ansi(false)
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let text = String::from_utf8(written.0.lock().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_carries_the_ids_of_the_spans_around_it() {
        let lines = lines(|| {
            let request = tracing::info_span!("request", id = "req-1", tenant = tracing::field::Empty);
            request.record("tenant", "t-alice");
            let _request = request.entered();
            let _operation = tracing::info_span!("operation", run = "s:train:0").entered();
            tracing::warn!(elapsed_s = 1.5, attempts = 3, "it took \"long\"\nvery long");
        });
        let [line] = lines.as_slice() else { panic!("{} lines", lines.len()) };
        assert_eq!(line["message"], "it took \"long\"\nvery long");
        assert_eq!(
            (&line["request"], &line["tenant"], &line["run"]),
            (&"req-1".into(), &"t-alice".into(), &"s:train:0".into())
        );
        assert_eq!((&line["elapsed_s"], &line["attempts"], &line["level"]), (&1.5.into(), &3.into(), &"WARN".into()));
        assert!(line["time"].as_str().unwrap().parse::<Timestamp>().is_ok());
    }

    #[test]
    fn a_field_does_not_hide_what_every_line_has() {
        let lines = lines(|| tracing::error!(level = "mine", time = f64::INFINITY, "bad"));
        assert_eq!((&lines[0]["level"], &lines[0]["level_"]), (&"ERROR".into(), &"mine".into()));
        assert_eq!(lines[0]["time_"], Value::Null);
    }
}
