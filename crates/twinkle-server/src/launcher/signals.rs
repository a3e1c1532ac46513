//! What tells a node to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;
use twinkle_core::error::{Error, Result};

/// SIGINT and SIGTERM of this process, from when it was made: none is missed between two waits.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn receive() -> Result<Self> {
        let cannot = |error| Error::internal(format!("signals cannot be received: {error}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(cannot)?,
            terminate: signal(SignalKind::terminate()).map_err(cannot)?,
        })
    }

    /// Returns at the next of either.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => info!("received SIGINT"),
            _ = self.terminate.recv() => info!("received SIGTERM"),
        }
    }
}
