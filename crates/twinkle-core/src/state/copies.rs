//! Copies of checkpoints, which belong to runs that nobody can train.

use super::StateStore;
use super::connection::Connection;
use super::failure::Failure;
use super::sessions::require_open_session;
use super::writer::Write;
use super::{checkpoints, runs, sessions, sql};
use crate::call::{CheckpointRecord, RunRecord, SessionRecord};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::RunId;

/// A copy and what it belongs to: they become durable together.
#[derive(Clone, Debug)]
pub struct NewCopy {
    /// A new session for it, finished from the beginning; `None`: its run belongs to one that is there and open.
    pub session: Option<SessionRecord>,
    /// The run it belongs to, closed from the beginning.
    pub run: RunRecord,
    /// The copy.
    pub checkpoint: CheckpointRecord,
}

impl StateStore {
    /// Keeps a copy whose files are in place, with its run and if need be its session.
    pub async fn insert_copy(&self, copy: NewCopy) -> Result<()> {
        self.writer.write(InsertCopy(copy)).await
    }
}

struct InsertCopy(NewCopy);

impl Write for InsertCopy {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let Self(NewCopy { session, run, checkpoint }) = self;
        if session.is_none() {
            require_open_session(&mut *connection, &run.tenant, &run.session).await?;
        }
        let existing: Option<String> = sql::query("SELECT id FROM runs WHERE id = $1")
            .bind(run.id.as_str())
            .fetch_optional_value("id", &mut *connection)
            .await?;
        if existing.is_some() {
            return Err(taken(&run.id).into());
        }
        if let Some(session) = session {
            sessions::insert(&mut *connection, session).await?;
        }
        runs::insert(&mut *connection, run, Some(&untrainable(&run.id))).await?;
        checkpoints::insert(connection, checkpoint).await
    }
}

/// What is answered about a copy's run.
fn untrainable(run: &RunId) -> Error {
    Error::new(ErrorCode::NotFound, format!("run `{run}` holds a copy of a checkpoint and cannot be trained"))
        .hint("create a new run from the copy")
}

/// The answer to a copy whose run is there already.
pub(crate) fn taken(run: &RunId) -> Error {
    Error::invalid(format!("run `{run}` exists already")).hint("give the copy a number that no run of the session has")
}
