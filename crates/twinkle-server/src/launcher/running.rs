//! A node that is up, and how it stops.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use twinkle_core::config::Deployment;
use twinkle_core::futures::Futures;
use twinkle_core::middleware::journal::Journal;
use twinkle_core::state::StateStore;

use super::folders::Folders;
use crate::native::NodeHealth;
use crate::routes::Mounted;
use crate::telemetry::Telemetry;

/// How long requests in progress may take to finish once the node stops accepting.
pub(super) const REQUEST_GRACE: Duration = Duration::from_secs(5);

/// What stopping may take beyond the slowest application's own limit: twenty seconds for snapshots, and
/// [`REQUEST_GRACE`] for requests in progress and again for answers that are being stored.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(30);

/// How long an application may take to finish its work.
pub(super) fn drain_limit(deployment: &Deployment) -> Duration {
    Duration::try_from_secs_f64(deployment.graceful_shutdown_timeout_s).unwrap_or(Duration::from_secs(20))
}

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
    pub(super) health: NodeHealth,
    pub(super) stops_within: Duration,
    pub(super) telemetry: Telemetry,
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

    /// Stops the node within [`TwinkleServer::stops_within`](super::TwinkleServer::stops_within), durably.
    ///
    /// Readiness goes first. Then every component finishes or parks its work, while results can still be fetched and
    /// new work is refused. Then the listener closes, and last the store.
    pub async fn shutdown(self) {
        let began = Instant::now();
        let stops_within = self.stops_within;
        info!(stops_within_s = stops_within.as_secs_f64(), "stopping: no new work is accepted");
        self.health.begin_draining();
        let telemetry = self.telemetry.clone();
        // Not a limit that anybody should meet: every step has its own.
        if tokio::time::timeout(stops_within, self.stop_everything()).await.is_err() {
            warn!("stopped with work in hand: accepted operations continue after the next start");
        }
        info!(elapsed_s = began.elapsed().as_secs_f64(), "stopped");
        telemetry.flush().await;
    }

    async fn stop_everything(mut self) {
        // All at once: each has its own thread or none, and the slowest decides.
        futures::future::join_all(self.applications.iter().map(Draining::drain)).await;
        self.stop.cancel();
        if let Err(error) = self.listener.await {
            warn!(%error, "the listener ended with a panic");
        }
        self.futures.drain(REQUEST_GRACE).await;
        self.housekeeping.shutdown().await;
        self.store.close().await;
    }
}

impl std::fmt::Debug for RunningServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RunningServer").field("address", &self.address).finish_non_exhaustive()
    }
}
