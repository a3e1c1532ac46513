//! A node as a process: its runtime, its pid file, the signals that stop it.

use std::path::Path;
use std::time::Duration;

use tokio::runtime;
use tracing::{info, warn};
use twinkle_core::error::Error;

use super::signals::Signals;
use super::{LaunchError, TwinkleServer};
use crate::run_files::{PidFile, Ready, RunFiles};

/// Threads for calls that block on files; more wait, so that a burst cannot start hundreds.
const BLOCKING_THREADS: usize = 32;

/// How long a blocking call that hangs may keep the process.
const BLOCKED: Duration = Duration::from_secs(1);

/// Runs the node of a configuration file until SIGINT or SIGTERM; blocks.
///
/// ```no_run
/// fn main() -> Result<(), twinkle_server::LaunchError> {
///     twinkle_server::launch_server("node.yaml")
/// }
/// ```
pub fn launch_server(config_path: impl AsRef<Path>) -> Result<(), LaunchError> {
    TwinkleServer::from_config(config_path)?.run()
}

impl TwinkleServer {
    /// Runs the node on a runtime of its own until SIGINT or SIGTERM, then stops it; blocks.
    ///
    /// A node made from a file holds a pid file beside its state while it runs, which `twinkle-server stop` reads.
    /// Returns an error if it did not start. It stops within [`Self::stops_within`]; a second signal stops it at
    /// once. Either way nothing that was acknowledged is lost: unfinished operations continue after the next start.
    ///
    /// ```no_run
    /// use twinkle_server::{LaunchOptions, TwinkleServer};
    ///
    /// # fn main() -> Result<(), twinkle_server::LaunchError> {
    /// let server = TwinkleServer::from_config("node.yaml")?;
    /// server.with_options(LaunchOptions { insecure: true }).run()
    /// # }
    /// ```
    pub fn run(self) -> Result<(), LaunchError> {
        let files = self.path.as_ref().map(|path| RunFiles::of(&self.config, path)).transpose()?;
        // Held until the very end: who waits for the lock waits for the process.
        let pid_file = files.as_ref().map(PidFile::take).transpose()?;
        let runtime = runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("twinkle-server")
            .max_blocking_threads(BLOCKING_THREADS)
            .build()
            .map_err(|error| Error::internal(format!("the async runtime could not be started: {error}")))?;
        let outcome = runtime.block_on(self.run_until_stopped(pid_file));
        runtime.shutdown_timeout(BLOCKED);
        outcome.map(drop)
    }

    /// Gives the pid file back, so that it goes last.
    async fn run_until_stopped(self, mut pid_file: Option<PidFile>) -> Result<Option<PidFile>, LaunchError> {
        let mut signals = Signals::receive()?;
        let (stops_within, is_tls) = (self.stops_within(), self.config.http.tls.is_some());
        let server = tokio::select! {
            started = self.start() => started?,
            () = signals.next() => {
                info!("stopped before it was ready");
                return Ok(pid_file);
            }
        };
        if let Some(pid_file) = &mut pid_file {
            let scheme = if is_tls { "https" } else { "http" };
            pid_file.ready(&Ready { url: format!("{scheme}://{}", server.address()), stops_within })?;
        }
        signals.next().await;
        tokio::select! {
            () = server.shutdown() => {}
            // A second signal means: now.
            () = signals.next() => {
                warn!("stopped by a second signal: accepted operations continue after the next start");
            }
        }
        Ok(pid_file)
    }
}
