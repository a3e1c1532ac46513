//! A node that is up, and how it stops.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::folders::Folders;
use crate::routes::Mounted;

/// How long requests in progress may take to finish once the node stops accepting.
pub(super) const REQUEST_GRACE: Duration = Duration::from_secs(5);

/// An application with how long it may take to stop.
pub(super) struct Draining {
    pub(super) mounted: Mounted,
    pub(super) limit: Duration,
}

/// A node that answers requests until it is shut down.
pub struct RunningServer {
    pub(super) address: SocketAddr,
    pub(super) stop: CancellationToken,
    pub(super) listener: JoinHandle<()>,
    pub(super) applications: Vec<Draining>,
    pub(super) _folders: Folders,
}

impl RunningServer {
    /// Where it listens; with port 0 in the configuration, the port the system chose.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, lets requests in progress finish, then every component: within a bound, and durably.
    pub async fn shutdown(self) {
        let began = Instant::now();
        info!("stopping: no new requests are accepted");
        self.stop.cancel();
        if let Err(error) = self.listener.await {
            warn!(%error, "the listener ended with a panic");
        }
        // All at once: each has its own thread or none, and the slowest decides.
        let drains = self.applications.iter().map(|Draining { mounted, limit }| mounted.component.drain(*limit));
        futures::future::join_all(drains).await;
        info!(elapsed_s = began.elapsed().as_secs_f64(), "stopped");
    }
}

impl std::fmt::Debug for RunningServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RunningServer").field("address", &self.address).finish_non_exhaustive()
    }
}
