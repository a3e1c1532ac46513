//! What an engine is doing: written by its thread, read by anyone without waiting for it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::component::Health;

/// An engine that has work, computes nothing and takes no turn for this long is stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The heartbeat of one engine. A cheap handle.
#[derive(Clone, Debug)]
pub struct Pulse {
    beats: Arc<Mutex<Beats>>,
}

/// What an engine tells about itself; part of a component's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineStatus {
    /// `ready`, `recovering`, `draining`, `stopped` or `stuck`.
    pub state: &'static str,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Questions that wait for the engine; the one it works on is not counted.
    pub waiting: usize,
    /// What it computes right now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_operation: Option<String>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_operation_since: Option<Timestamp>,
    /// Seconds since its thread last took a turn; an idle engine takes none.
    pub last_turn_seconds_ago: u64,
    /// How often it was started again since the node started.
    pub restarts: u64,
    /// Why it was last started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

#[derive(Debug)]
struct Beats {
    phase: Phase,
    stuck_after: Duration,
    /// Questions without an answer.
    in_line: usize,
    /// When a question last came into an empty line.
    line_began: Instant,
    last_turn: Instant,
    pass: Option<Pass>,
    /// Passes that came to an end.
    passes: u64,
    restarts: u64,
    last_failure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Working,
    Recovering { reason: String, is_lasting: bool },
    Draining,
    Stopped { was_drained: bool },
}

/// What is computed right now.
#[derive(Debug)]
struct Pass {
    what: String,
    since: Timestamp,
}

/// A place in the engine's line, from the question to its answer.
#[derive(Debug)]
pub struct Place(Pulse);

impl Drop for Place {
    fn drop(&mut self) {
        let mut beats = self.0.beats.lock();
        beats.in_line = beats.in_line.saturating_sub(1);
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new(STUCK_AFTER)
    }
}

impl Pulse {
    /// The pulse of an engine that is about to work, and is called stuck after `stuck_after` without a turn.
    #[must_use]
    pub fn new(stuck_after: Duration) -> Self {
        let now = Instant::now();
        let beats = Beats {
            phase: Phase::Working,
            stuck_after,
            in_line: 0,
            line_began: now,
            last_turn: now,
            pass: None,
            passes: 0,
            restarts: 0,
            last_failure: None,
        };
        Self { beats: Arc::new(Mutex::new(beats)) }
    }

    /// Takes a place in the line; dropping it gives the place back.
    #[must_use]
    pub fn enter(&self) -> Place {
        let mut beats = self.beats.lock();
        if beats.in_line == 0 {
            beats.line_began = Instant::now();
        }
        beats.in_line += 1;
        drop(beats);
        Place(self.clone())
    }

    /// The engine's thread is alive and looks for work.
    pub fn turn(&self) {
        self.beats.lock().last_turn = Instant::now();
    }

    /// The engine begins to compute `what`.
    pub fn begin(&self, what: impl Into<String>) {
        self.beats.lock().pass = Some(Pass { what: what.into(), since: Timestamp::now() });
    }

    /// What it computed has come to an end.
    pub fn end(&self) {
        let mut beats = self.beats.lock();
        beats.pass = None;
        beats.passes += 1;
        beats.last_turn = Instant::now();
    }

    /// The engine can work, perhaps again.
    pub fn working(&self) {
        let mut beats = self.beats.lock();
        beats.last_turn = Instant::now();
        if matches!(beats.phase, Phase::Recovering { .. }) {
            beats.phase = Phase::Working;
        }
    }

    /// The engine takes no new work.
    pub fn draining(&self) {
        let mut beats = self.beats.lock();
        if !matches!(beats.phase, Phase::Stopped { .. }) {
            beats.phase = Phase::Draining;
        }
    }

    /// The engine has ended for good.
    pub fn stopped(&self) {
        let mut beats = self.beats.lock();
        beats.phase = Phase::Stopped { was_drained: beats.phase == Phase::Draining };
    }

    /// The engine was lost and will be started again. `is_lasting` when that has not helped for a while.
    pub fn lost(&self, reason: &str, is_lasting: bool) {
        let mut beats = self.beats.lock();
        beats.pass = None;
        beats.restarts += 1;
        beats.last_failure = Some(reason.to_owned());
        if !matches!(beats.phase, Phase::Draining | Phase::Stopped { .. }) {
            beats.phase = Phase::Recovering { reason: reason.to_owned(), is_lasting };
        }
    }

    /// Passes that came to an end since the start: whether there is progress.
    #[must_use]
    pub fn passes(&self) -> u64 {
        self.beats.lock().passes
    }

    /// How often the engine was started again.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.beats.lock().restarts
    }

    /// Whether the engine can work.
    #[must_use]
    pub fn health(&self) -> Health {
        let beats = self.beats.lock();
        match &beats.phase {
            Phase::Working => beats.stuck().map_or(Health::Ready, Health::Failed),
            Phase::Recovering { reason, is_lasting: false } => Health::Recovering(reason.clone()),
            Phase::Recovering { reason, is_lasting: true } => Health::Failed(reason.clone()),
            // An engine that was told to stop has not failed.
            Phase::Draining | Phase::Stopped { was_drained: true } => Health::Draining,
            Phase::Stopped { was_drained: false } => Health::Failed("the engine has stopped".to_owned()),
        }
    }

    /// What the engine tells about itself.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        let health = self.health();
        let beats = self.beats.lock();
        let (state, reason) = match (&beats.phase, health) {
            (Phase::Working, Health::Failed(reason)) => ("stuck", Some(reason)),
            (Phase::Working, _) => ("ready", None),
            (Phase::Recovering { reason, .. }, _) => ("recovering", Some(reason.clone())),
            (Phase::Draining, _) => ("draining", None),
            (Phase::Stopped { .. }, _) => ("stopped", None),
        };
        EngineStatus {
            state,
            reason,
            waiting: beats.in_line.saturating_sub(usize::from(beats.pass.is_some())),
            current_operation: beats.pass.as_ref().map(|pass| pass.what.clone()),
            current_operation_since: beats.pass.as_ref().map(|pass| pass.since),
            last_turn_seconds_ago: beats.last_turn.elapsed().as_secs(),
            restarts: beats.restarts,
            last_failure: beats.last_failure.clone(),
        }
    }
}

impl Beats {
    /// Why the engine counts as stuck: work waits, nothing is computed, and no turn was taken for too long.
    fn stuck(&self) -> Option<String> {
        let still = self.last_turn.max(self.line_began).elapsed();
        let is_stuck = self.in_line > 0 && self.pass.is_none() && still > self.stuck_after;
        is_stuck.then(|| format!("no turn for {} s while {} operations wait", still.as_secs(), self.in_line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(31);

    #[tokio::test(start_paused = true)]
    async fn an_engine_is_stuck_when_work_waits_and_it_takes_no_turn() {
        let pulse = Pulse::default();
        tokio::time::advance(LONG).await;
        assert_eq!(pulse.health(), Health::Ready, "an idle engine takes no turns");

        let place = pulse.enter();
        tokio::time::advance(STUCK_AFTER).await;
        assert_eq!(pulse.health(), Health::Ready);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(pulse.health(), Health::Failed("no turn for 31 s while 1 operations wait".to_owned()));
        assert_eq!(pulse.status().state, "stuck");

        pulse.turn();
        assert_eq!(pulse.health(), Health::Ready);
        tokio::time::advance(LONG).await;
        drop(place);
        assert_eq!(pulse.health(), Health::Ready, "nothing waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_pass_is_work_and_shows_since_when() {
        let pulse = Pulse::default();
        let (_working, _waiting) = (pulse.enter(), pulse.enter());
        pulse.begin("forward_backward of run `s:train:0`");
        tokio::time::advance(LONG).await;
        assert_eq!(pulse.health(), Health::Ready);
        let status = pulse.status();
        assert_eq!(status.current_operation.as_deref(), Some("forward_backward of run `s:train:0`"));
        assert!(status.current_operation_since.is_some());
        assert_eq!((status.state, status.waiting), ("ready", 1));
        pulse.end();
        assert_eq!(pulse.status().current_operation, None);
    }

    #[test]
    fn a_lost_engine_recovers_and_a_lasting_failure_is_called_one() {
        let pulse = Pulse::default();
        pulse.lost("a panic", false);
        assert_eq!(pulse.health(), Health::Recovering("a panic".to_owned()));
        pulse.lost("another", true);
        assert_eq!(pulse.health(), Health::Failed("another".to_owned()));
        pulse.working();
        assert_eq!(pulse.health(), Health::Ready);
        let status = serde_json::to_value(pulse.status()).unwrap();
        assert_eq!((&status["restarts"], &status["last_failure"]), (&2.into(), &"another".into()));
        pulse.draining();
        pulse.lost("too late", false);
        assert_eq!(pulse.health(), Health::Draining);
        pulse.stopped();
        assert_eq!(pulse.health(), Health::Draining);
    }
}
