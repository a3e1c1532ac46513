//! Log lines on stderr: stdout is for data.

mod filter;
mod json;

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt};

pub use filter::LogFilter;

/// What a log line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people, in colour on a terminal.
    #[default]
    Text,
    /// One JSON object a line: `time`, `level`, `target`, `message`, the ids `request`, `tenant` and `run` where they
    /// are known, and the line's own fields.
    Json,
}

/// Starts logging on stderr; an error if this process logs already.
pub fn start(filter: &LogFilter, format: LogFormat) -> Result<(), TryInitError> {
    // What the exporters say about themselves, `telemetry` says in moderation.
    let exporters = filter_fn(|metadata| !metadata.target().starts_with("opentelemetry"));
    let lines = lines(format).with_filter(filter.to_filter().and(exporters));
    tracing_subscriber::registry().with(lines).with(crate::telemetry::exported_lines()).try_init()
}

fn lines(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            let in_colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(in_colour).boxed()
        }
        LogFormat::Json => lines.with_ansi(false).fmt_fields(JsonFields::new()).event_format(json::JsonLines).boxed(),
    }
}
