//! What nobody records by itself: how many sessions, runs and unfinished operations there are.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;
use twinkle_core::ErrorCode;
use twinkle_core::futures::Futures;
use twinkle_core::state::StateStore;
use twinkle_core::telemetry::labels::Whole;
use twinkle_core::telemetry::metrics::{FUTURES, MODELS, SAMPLING_SESSIONS, SESSIONS};

/// What is counted.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    /// The records.
    pub(crate) store: StateStore,
    /// The unfinished operations.
    pub(crate) futures: Futures,
}

/// Counts again and again, until the store closes.
pub(crate) async fn count_periodically(counted: Counted, every: Duration) {
    let mut ticks = interval(every.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        FUTURES.set(counted.futures.pending() as u64, Whole);
        match counted.store.open_records().await {
            Ok(open) => {
                SESSIONS.set(open.sessions, Whole);
                MODELS.set(open.runs, Whole);
                SAMPLING_SESSIONS.set(open.sampling_sessions, Whole);
            }
            Err(error) if error.code == ErrorCode::Draining => return,
            Err(error) => debug!(%error, "the open records could not be counted"),
        }
    }
}
