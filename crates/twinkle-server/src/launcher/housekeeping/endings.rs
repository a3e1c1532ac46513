//! Sessions that fell silent and runs whose time is over. Nothing is lost with them: a run ends with a checkpoint.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tracing::{info, warn};
use twinkle_core::call::Ending;
use twinkle_core::config::AdapterConfig;
use twinkle_core::error::{ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RequestId, RunId, TenantId};
use twinkle_core::middleware::journal::Journal;
use twinkle_core::state::{DueRun, EndOfRuns, OperationState, RunPage, StateStore};

/// Sessions finished in one look.
const SESSIONS: u32 = 1_000;
/// Runs ended in one look, each of which may have to be rebuilt first.
const RUNS: u32 = 64;
/// Runs moved to disk for one question to the store.
const PAGE: u32 = 256;
/// How long clients have after the start of a node to show that they are still there.
const SIGN_OF_LIFE: Duration = Duration::from_mins(2);
/// A finished session's client unloads its runs itself, right away; only those that are left after this are ended, or
/// after the silence that ends a session, if that is shorter.
const AFTER_FINISH: Duration = Duration::from_mins(1);
/// A run of full age that was used more recently is in use: it ends at its next pause, or when `LATEST` is over too.
const QUIET: Duration = Duration::from_mins(1);
/// How much longer a run may live that is never quiet.
const LATEST: Duration = Duration::from_mins(30);

/// A limit of the configuration in seconds; 0 is none.
pub(super) fn limit(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok().filter(|limit| !limit.is_zero())
}

/// A base model's runs and how long they live.
#[derive(Clone, Debug)]
pub(crate) struct TrainedModel {
    /// The base model's public name.
    pub(super) base_model: String,
    /// What its runs are ended through.
    pub(super) journal: Journal,
    /// `adapter_timeout`: a run that was silent for so long goes to disk.
    pub(super) idle: Option<Duration>,
    /// `adapter_max_lifetime`: a run of this age ends.
    pub(super) lifetime: Option<Duration>,
}

impl TrainedModel {
    /// The runs of `base_model` under the limits of its application.
    pub(crate) fn new(base_model: String, journal: Journal, adapter: &AdapterConfig) -> Self {
        let (idle, lifetime) = (limit(adapter.adapter_timeout), limit(adapter.adapter_max_lifetime));
        Self { base_model, journal, idle, lifetime }
    }
}

// === impl SilentSessions ===

/// Sessions whose clients are gone.
pub(super) struct SilentSessions {
    store: StateStore,
    silence: Option<Duration>,
    started: Instant,
}

impl SilentSessions {
    /// Finishes sessions after so much silence (`expiration_timeout`) on a node that runs since `started`.
    pub(super) fn new(store: StateStore, silence: Option<Duration>, started: Instant) -> Self {
        Self { store, silence, started }
    }

    pub(super) async fn look(&self, now: Timestamp) -> Result<()> {
        let Some(silence) = self.silence else { return Ok(()) };
        // While the node was down nobody could be heard.
        if self.started.elapsed() < SIGN_OF_LIFE.min(silence) {
            return Ok(());
        }
        for session in self.store.finish_silent_sessions(before(now, silence), SESSIONS).await? {
            info!(%session, "a silent session was finished");
        }
        Ok(())
    }
}

// === impl EndingRuns ===

/// The runs of one base model that go to disk or end.
pub(super) struct EndingRuns {
    store: StateStore,
    model: TrainedModel,
    /// How long a run may outlive its session.
    after_finish: Duration,
    /// Runs that fell silent before this have been moved to disk.
    spilled_until: Timestamp,
    /// The last run that was looked at; the next look goes on after it.
    looked_at: Option<RunId>,
    /// Runs whose last operation is accepted and not finished.
    ending: HashMap<RunId, (TenantId, RequestId)>,
}

impl EndingRuns {
    /// The runs of `model`, whose sessions end after so much `silence`.
    pub(super) fn new(store: StateStore, model: TrainedModel, silence: Option<Duration>) -> Self {
        let after_finish = silence.map_or(AFTER_FINISH, |silence| silence.min(AFTER_FINISH));
        Self { store, model, after_finish, spilled_until: Timestamp::MIN, looked_at: None, ending: HashMap::new() }
    }

    pub(super) async fn look(&mut self, now: Timestamp) -> Result<()> {
        self.spill_silent(now).await?;
        self.look_after_ends().await?;
        self.end_due(now).await
    }

    /// The last operation of a run that is ending.
    #[cfg(test)]
    pub(super) fn ending_request(&self, run: &RunId) -> Option<RequestId> {
        self.ending.get(run).map(|(_, request)| request.clone())
    }

    /// Moves runs to disk that fell silent since the last look.
    async fn spill_silent(&mut self, now: Timestamp) -> Result<()> {
        let Some(idle) = self.model.idle else { return Ok(()) };
        let until = before(now, idle);
        let mut after: Option<RunId> = None;
        loop {
            let page = RunPage { base_model: &self.model.base_model, after: after.as_ref(), limit: PAGE };
            let silenced = self.store.silenced_runs(page, self.spilled_until, until).await?;
            let Some((_, last)) = silenced.last() else { break };
            let next = last.clone();
            for (tenant, run) in &silenced {
                match self.model.journal.spill(tenant, run).await {
                    Ok(()) => {}
                    Err(error) if error.code == ErrorCode::Draining => return Err(error),
                    // It stays in memory, where `max_loras` bounds it.
                    Err(error) => warn!(%run, %error, "a silent run could not be moved to disk"),
                }
            }
            after = Some(next);
        }
        self.spilled_until = until;
        Ok(())
    }

    /// Ends some of the runs whose time is over.
    async fn end_due(&mut self, now: Timestamp) -> Result<()> {
        let page = RunPage { base_model: &self.model.base_model, after: self.looked_at.as_ref(), limit: RUNS };
        let end = EndOfRuns {
            made_before: self.model.lifetime.map(|lifetime| before(now, lifetime)),
            session_silent_before: before(now, self.after_finish),
        };
        let due = self.store.due_runs(page, end).await?;
        let is_last_page = due.len() < RUNS as usize;
        self.looked_at = due.last().filter(|_| !is_last_page).map(|run| run.id.clone());
        for run in due {
            match self.end(&run, now).await {
                Ok(()) => {}
                Err(error) if error.code == ErrorCode::Draining => return Err(error),
                // It has been closed meanwhile.
                Err(error) if error.code.is_users_fault() => {}
                Err(error) => warn!(run = %run.id, %error, "a run whose time is over could not be ended"),
            }
        }
        Ok(())
    }

    async fn end(&mut self, run: &DueRun, now: Timestamp) -> Result<()> {
        if self.ending.contains_key(&run.id) {
            return Ok(());
        }
        let Some(insist) = self.patience(run, now) else { return Ok(()) };
        let name = now.strftime("expired-%Y%m%d-%H%M%S").to_string();
        let path = CheckpointPath::new(run.id.clone(), CheckpointKind::Weights, &name)?;
        let asked = self.model.journal.expire(&run.tenant, &run.id, path.clone(), run.ending, insist).await?;
        if let Some(request) = asked {
            info!(run = %run.id, ending = ?run.ending, checkpoint = %path, "a run whose time is over is saved and ended");
            self.ending.insert(run.id.clone(), (run.tenant.clone(), request));
        }
        Ok(())
    }

    /// Forgets the runs whose last operation is done. One that failed is tried again.
    async fn look_after_ends(&mut self) -> Result<()> {
        let mut done = Vec::new();
        for (run, (tenant, request)) in &self.ending {
            match self.store.operation_result(tenant, request).await? {
                Some(OperationState::Pending) => continue,
                Some(OperationState::Finished(Err(error))) => warn!(%run, %error, "a run could not be saved"),
                _ => {}
            }
            done.push(run.clone());
        }
        self.ending.retain(|run, _| !done.contains(run));
        Ok(())
    }

    /// Whether the run is to be ended now, and if so, whether also in the middle of its work.
    fn patience(&self, run: &DueRun, now: Timestamp) -> Option<bool> {
        let lifetime = match run.ending {
            // Its client is gone.
            Ending::Session => return Some(true),
            Ending::Lifetime => self.model.lifetime?,
        };
        let is_latest = run.created_at < before(now, lifetime + LATEST.min(lifetime / 2));
        let is_quiet = run.last_used_at < before(now, QUIET.min(lifetime / 10));
        (is_latest || is_quiet).then_some(is_latest)
    }
}

/// So long before `now`, or the beginning of time.
pub(super) fn before(now: Timestamp, duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    now.checked_sub(duration).unwrap_or(Timestamp::MIN)
}
