//! What a node does now and then: it ends what is over, forgets old records and removes files nobody needs.
//!
//! Every look takes a bounded number of things; what is left over is found again by the next one.

mod checkpoints;
mod endings;
mod leftovers;

use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;
use twinkle_core::config::{ApplicationArgs, ServerArgs, ServerConfig};
use twinkle_core::error::{ErrorCode, Result};
use twinkle_core::state::Retention;

pub(super) use checkpoints::remove_leftovers;
pub(super) use endings::TrainedModel;
use endings::{EndingRuns, SilentSessions};
use leftovers::{LiveAdapters, Snapshots};

use super::applications::NodeState;

/// The shortest and the longest time between two looks at sessions and runs.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// Starts the node's housekeeping; it ends when the returned set is dropped.
pub(super) fn start(state: &NodeState, config: &ServerConfig, models: Vec<TrainedModel>) -> JoinSet<()> {
    let args = server_args(config);
    let silence = endings::limit(args.expiration_timeout);
    let every = pause(&args, silence, &models);
    let mut tasks = JoinSet::new();
    tasks.spawn(state.store.clone().sweep_periodically(retention(silence)));
    tasks.spawn(checkpoints::delete_periodically(state.store.clone(), state.checkpoints.clone()));
    let household = Household {
        sessions: SilentSessions::new(state.store.clone(), silence, Instant::now()),
        runs: models.into_iter().map(|model| EndingRuns::new(state.store.clone(), model, silence)).collect(),
        adapters: LiveAdapters::new(state.store.clone(), state.published.clone()),
        snapshots: Snapshots::new(state.store.clone(), state.snapshots.clone()),
    };
    tasks.spawn(household.keep(every));
    tasks
}

/// Everything that ends, and the files it leaves.
struct Household {
    sessions: SilentSessions,
    runs: Vec<EndingRuns>,
    adapters: LiveAdapters,
    snapshots: Snapshots,
}

impl Household {
    async fn keep(mut self, every: Duration) {
        let mut ticks = ticks(every);
        loop {
            ticks.tick().await;
            if self.look(Timestamp::now()).await {
                return;
            }
        }
    }

    /// One look at everything. Says whether the node is stopping.
    async fn look(&mut self, now: Timestamp) -> bool {
        // Sessions first: their runs are then due.
        let mut stopping = is_over(self.sessions.look(now).await, "silent sessions could not be finished");
        for runs in &mut self.runs {
            stopping |= is_over(runs.look(now).await, "runs could not be ended");
        }
        stopping |= is_over(self.adapters.look(now).await, "live adapters could not be removed");
        stopping | is_over(self.snapshots.look().await, "snapshots could not be removed")
    }
}

/// Says whether the node is stopping; another failure is one of this look only.
fn is_over(outcome: Result<()>, what: &str) -> bool {
    match outcome {
        Ok(()) => false,
        Err(error) if error.code == ErrorCode::Draining => true,
        Err(error) => {
            warn!(%error, "{what}");
            false
        }
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The settings of the first `server` application.
pub(super) fn server_args(config: &ServerConfig) -> ServerArgs {
    let found = config.applications.iter().find_map(|application| match &application.args {
        ApplicationArgs::Server(args) => Some(args.clone()),
        _ => None,
    });
    found.unwrap_or_default()
}

/// A session that was over for as long as it may be silent is forgotten, unless it has runs on record.
fn retention(silence: Option<Duration>) -> Retention {
    let standard = Retention::default();
    Retention { idle_sessions: silence.map_or(standard.idle_sessions, |silence| silence * 2), ..standard }
}

/// `cleanup_interval`, or shorter: often enough that nothing outlives its time by more than a quarter.
fn pause(args: &ServerArgs, silence: Option<Duration>, models: &[TrainedModel]) -> Duration {
    let of_models = models.iter().flat_map(|model| [model.idle, model.lifetime]);
    let shortest = of_models.chain([silence]).flatten().min().map_or(LONGEST_PAUSE, |shortest| shortest / 4);
    let wanted = endings::limit(args.cleanup_interval).unwrap_or(SHORTEST_PAUSE);
    wanted.min(shortest).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests;
