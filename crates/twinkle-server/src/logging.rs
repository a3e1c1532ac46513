//! Log lines on stderr: stdout is for data.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How much is logged. `RUST_LOG`, when set, wins and can name single modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Everything, also every request.
    Trace,
    /// Every request and decision.
    Debug,
    /// What an operator wants to read.
    #[default]
    Info,
    /// What may need attention.
    #[value(alias = "warn")]
    Warning,
    /// What went wrong.
    Error,
}

impl LogLevel {
    const fn directive(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            // Libraries at debug would drown our own lines.
            Self::Debug => {
                "info,twinkle=debug,twinkle_core=debug,twinkle_nn=debug,twinkle_model=debug,twinkle_sampler=debug,twinkle_processor=debug,twinkle_server=debug"
            }
            Self::Info => "info",
            Self::Warning => "warn",
            Self::Error => "error",
        }
    }
}

/// Starts logging; later calls change nothing.
pub fn start(level: LogLevel) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level.directive()));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .try_init();
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}
