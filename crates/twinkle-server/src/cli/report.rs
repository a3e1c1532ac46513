//! How a subcommand tells a person what went wrong, and what it exits with.

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use twinkle_core::config::ServerConfig;
use twinkle_core::error::Error;

use super::ConfigArgs;
use crate::launcher::LaunchError;

/// Exit status of what could not be done.
const FAILURE: u8 = 1;

/// Exit status for a bad command line or configuration.
const USAGE: u8 = 2;

/// The outcome of a subcommand; the error has been told already.
pub(super) type Outcome = Result<(), ExitCode>;

/// Tells why something could not be done.
pub(super) fn failure(error: &dyn Display) -> ExitCode {
    complain(error, FAILURE)
}

/// Tells what is wrong with the command line or the configuration.
pub(super) fn misuse(error: &dyn Display) -> ExitCode {
    complain(error, USAGE)
}

/// Tells why something could not be done, with the hint on a line of its own.
pub(super) fn failed(error: Error) -> ExitCode {
    failure(&LaunchError::from(error))
}

/// Tells why a node did not start.
pub(super) fn launch_failure(error: &LaunchError) -> ExitCode {
    match error {
        LaunchError::Config(_) => misuse(error),
        LaunchError::Failed(_) => failure(error),
    }
}

/// An exit status with nothing more to tell.
pub(super) fn silent_failure(status: Option<i32>) -> ExitCode {
    let status = status.and_then(|status| u8::try_from(status).ok()).filter(|status| *status != 0);
    ExitCode::from(status.unwrap_or(FAILURE))
}

/// Says something to a person.
pub(super) fn say(text: &dyn Display) {
    // Nobody listens on a closed stderr.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes data.
pub(super) fn print(text: &str) {
    // A closed pipe (`| head`) is not worth an error.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

impl ConfigArgs {
    /// The file that was named.
    pub(super) fn path(&self) -> Result<&Path, ExitCode> {
        self.config.as_deref().ok_or_else(|| {
            misuse(
                &"no configuration given\nhint: name one with `--config FILE` or `TWINKLE_SERVER_CONFIG`; \
                  `twinkle-server --help` shows an example",
            )
        })
    }

    /// The configuration in the file that was named.
    pub(super) fn load(&self) -> Result<ServerConfig, ExitCode> {
        ServerConfig::load(self.path()?).map_err(|errors| misuse(&errors))
    }
}

fn complain(error: &dyn Display, status: u8) -> ExitCode {
    let text = error.to_string();
    // Some texts start with it already.
    let prefix = if text.starts_with("error:") { "" } else { "error: " };
    say(&format_args!("{prefix}{text}"));
    ExitCode::from(status)
}
