//! A node that is up, and how it stops.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use twinkle_core::futures::Futures;
use twinkle_core::middleware::journal::Journal;
use twinkle_core::state::StateStore;

use super::folders::Folders;
use crate::routes::Mounted;

/// How long requests in progress may take to finish once the node stops accepting.
pub(super) const REQUEST_GRACE: Duration = Duration::from_secs(5);

/// An application with how long it may take to stop.
pub(super) struct Draining {
    pub(super) mounted: Mounted,
    pub(super) journal: Option<Journal>,
    pub(super) limit: Duration,
}

impl Draining {
    /// The journal first, so that nothing new reaches the component; then the component makes its state durable.
    async fn drain(&self) {
        let deadline = Instant::now() + self.limit;
        if let Some(journal) = &self.journal {
            journal.drain(self.limit).await;
        }
        self.mounted.component.drain(deadline.saturating_duration_since(Instant::now())).await;
    }
}

/// A node that answers requests until it is shut down.
pub struct RunningServer {
    pub(super) address: SocketAddr,
    pub(super) stop: CancellationToken,
    pub(super) listener: JoinHandle<()>,
    pub(super) applications: Vec<Draining>,
    pub(super) futures: Futures,
    pub(super) store: StateStore,
    pub(super) housekeeping: JoinSet<()>,
    pub(super) _folders: Folders,
}

impl RunningServer {
    /// Where it listens; with port 0 in the configuration, the port the system chose.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, lets requests in progress finish, then every component: within a bound, and durably.
    pub async fn shutdown(mut self) {
        let began = Instant::now();
        info!("stopping: no new requests are accepted");
        self.stop.cancel();
        if let Err(error) = self.listener.await {
            warn!(%error, "the listener ended with a panic");
        }
        // All at once: each has its own thread or none, and the slowest decides.
        futures::future::join_all(self.applications.iter().map(Draining::drain)).await;
        self.futures.drain(REQUEST_GRACE).await;
        self.housekeeping.shutdown().await;
        self.store.close().await;
        info!(elapsed_s = began.elapsed().as_secs_f64(), "stopped");
    }
}

impl std::fmt::Debug for RunningServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RunningServer").field("address", &self.address).finish_non_exhaustive()
    }
}
