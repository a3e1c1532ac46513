//! What is forgotten, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use super::codec::now;
use super::connection::Connection;
use super::failure::Failure;
use super::sql::query;
use super::writer::Write;
use super::{StateStore, session_parts};
use crate::error::Result;

/// How long things are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// A finished operation's result, counted from its end.
    pub results: Duration,
    /// A session that was never used, counted from its client's last sign of life.
    pub idle_sessions: Duration,
    /// An upload, counted from when it was last noted: one that is under way is noted every few seconds.
    pub uploads: Duration,
    /// Rows of each kind that one sweep removes at most, so that it never holds up other writes for long.
    pub batch: u32,
    /// The time between two sweeps.
    pub every: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            results: Duration::from_hours(2),
            idle_sessions: Duration::from_hours(30 * 24),
            uploads: Duration::from_hours(24),
            batch: 1000,
            every: Duration::from_mins(1),
        }
    }
}

/// What one sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Results that are no longer delivered.
    pub results: u64,
    /// Operations that are no longer known.
    pub operations: u64,
    /// Closed runs without checkpoints whose clients are long gone.
    pub runs: u64,
    /// Sessions without runs whose clients are long gone.
    pub sessions: u64,
}

impl StateStore {
    /// Forgets what has been kept for its time, at most one batch of each kind.
    pub async fn sweep(&self, retention: &Retention) -> Result<Swept> {
        let age = |duration: Duration| now().saturating_sub(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX));
        let write = Sweep {
            finished_before: age(retention.results),
            seen_before: age(retention.idle_sessions),
            uploaded_before: age(retention.uploads),
            batch: retention.batch,
        };
        self.writer.write(write).await
    }

    /// Sweeps again and again until the store closes or the future is dropped.
    pub async fn sweep_periodically(self, retention: Retention) {
        let mut ticks = tokio::time::interval(retention.every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.sweep(&retention).await {
                Ok(swept) if swept != Swept::default() => tracing::debug!(?swept, "expired state removed"),
                Ok(_) => {}
                Err(error) if error.code == crate::ErrorCode::Draining => return,
                Err(error) => tracing::warn!(%error, "expired state could not be removed"),
            }
        }
    }
}

struct Sweep {
    finished_before: i64,
    seen_before: i64,
    uploaded_before: i64,
    batch: u32,
}

impl Write for Sweep {
    type Answer = Swept;

    async fn apply(&self, connection: &mut Connection) -> Result<Swept, Failure> {
        let results = query(
            "UPDATE operations SET outcome = NULL WHERE id IN (SELECT id FROM operations
             WHERE state <> 0 AND finished_at < $1 AND outcome IS NOT NULL LIMIT $2)",
        )
        .bind(self.finished_before)
        .bind(self.batch)
        .execute(&mut *connection)
        .await?;
        let operations = self.forget_operations(connection).await?;
        let runs = self.forget_runs(connection).await?;
        let sessions = self.forget_sessions(connection).await?;
        query("DELETE FROM samples WHERE request IN (SELECT request FROM samples WHERE accepted_at < $1 LIMIT $2)")
            .bind(self.finished_before)
            .bind(self.batch)
            .execute(&mut *connection)
            .await?;
        query("DELETE FROM uploads WHERE request IN (SELECT request FROM uploads WHERE changed_at < $1 LIMIT $2)")
            .bind(self.uploaded_before)
            .bind(self.batch)
            .execute(connection)
            .await?;
        Ok(Swept { results, operations, runs, sessions })
    }
}

impl Sweep {
    /// An operation can go when its result is gone and a snapshot covers it. Its number stays used up.
    async fn forget_operations(&self, connection: &mut Connection) -> Result<u64, Failure> {
        let gone = query(
            "DELETE FROM operations WHERE id IN (SELECT id FROM operations
             WHERE state IN (1, 2) AND finished_at < $1 AND outcome IS NULL AND payload IS NULL LIMIT $2)
             RETURNING run, after, arrival",
        )
        .bind(self.finished_before)
        .bind(self.batch)
        .fetch_all(&mut *connection)
        .await?;
        let mut passed: BTreeMap<String, i64> = BTreeMap::new();
        for row in &gone {
            if row.get::<i64>("arrival")? == 0 {
                let highest = passed.entry(row.get("run")?).or_default();
                *highest = (*highest).max(row.get("after")?);
            }
        }
        for (run, number) in passed {
            query("UPDATE runs SET passed_through = $1 WHERE id = $2 AND passed_through < $1")
                .bind(number)
                .bind(run)
                .execute(&mut *connection)
                .await?;
        }
        let refused = query(
            "DELETE FROM operations WHERE id IN (SELECT operations.id FROM operations JOIN runs ON runs.id = run
             WHERE state = 3 AND finished_at < $1 AND (after <= passed_through OR runs.closed = 1) LIMIT $2)",
        )
        .bind(self.finished_before)
        .bind(self.batch)
        .execute(connection)
        .await?;
        Ok(gone.len() as u64 + refused)
    }

    /// A closed run stays on record as long as its session, its checkpoints or its results do.
    async fn forget_runs(&self, connection: &mut Connection) -> Result<u64, Failure> {
        query(
            "DELETE FROM runs WHERE id IN (SELECT runs.id FROM runs JOIN sessions ON sessions.id = runs.session
             WHERE runs.closed = 1 AND runs.last_used_at < $1 AND sessions.finished = 1 AND sessions.last_seen_at < $1
             AND NOT EXISTS (SELECT 1 FROM operations WHERE operations.run = runs.id)
             AND NOT EXISTS (SELECT 1 FROM checkpoints WHERE checkpoints.run = runs.id) LIMIT $2)",
        )
        .bind(self.seen_before)
        .bind(self.batch)
        .execute(connection)
        .await
    }

    /// A session whose runs are on record stays with them.
    async fn forget_sessions(&self, connection: &mut Connection) -> Result<u64, Failure> {
        let gone: Vec<String> = query(
            "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE last_seen_at < $1
             AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.session = sessions.id) LIMIT $2) RETURNING id",
        )
        .bind(self.seen_before)
        .bind(self.batch)
        .fetch_column("id", &mut *connection)
        .await?;
        for session in &gone {
            query("DELETE FROM sampling_sessions WHERE session = $1").bind(session).execute(&mut *connection).await?;
            session_parts::forget(connection, session).await?;
        }
        Ok(gone.len() as u64)
    }
}
