//! Training runs.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::StateStore;
use super::codec::{from_blob, from_integer, from_nanoseconds, now, to_blob, to_nanoseconds};
use super::failure::{Failure, describe};
use super::journal::{Appended, NewOperation, existing_at, insert_operation};
use super::sessions::{no_session, require_open_session};
use super::writer::Write;
use crate::call::{Position, RunRecord};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{RequestId, RunId, SessionId, TenantId};

/// A run and the operation that makes it: they become durable together.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// The run.
    pub record: RunRecord,
    /// Its creation, at the zero position.
    pub operation: NewOperation,
}

impl StateStore {
    /// Keeps a new run of an open session together with its first operation.
    pub async fn insert_run(&self, run: NewRun) -> Result<Appended> {
        self.writer.write(InsertRun(run)).await
    }

    /// The tenant's run of that name, closed or not.
    pub async fn run(&self, tenant: &TenantId, run: &RunId) -> Result<RunRecord> {
        let row = sqlx::query("SELECT * FROM runs WHERE id = ? AND tenant = ?")
            .bind(run.as_str())
            .bind(tenant.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| describe(&error))?
            .ok_or_else(|| no_run(run))?;
        read_run(&row)
    }

    /// One page of the tenant's runs, newest first, and how many there are in all.
    pub async fn list_runs(&self, tenant: &TenantId, limit: u32, offset: u32) -> Result<(Vec<RunRecord>, u64)> {
        let rows =
            sqlx::query("SELECT * FROM runs WHERE tenant = ? ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?")
                .bind(tenant.as_str())
                .bind(limit)
                .bind(offset)
                .fetch_all(&self.readers)
                .await
                .map_err(|error| describe(&error))?;
        let total: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM runs WHERE tenant = ?")
            .bind(tenant.as_str())
            .fetch_one(&self.readers)
            .await
            .map_err(|error| describe(&error))?;
        let runs = rows.iter().map(read_run).collect::<Result<Vec<_>>>()?;
        Ok((runs, from_integer(total)?))
    }

    /// Open runs that have unfinished operations, with their owners, in order of name.
    pub async fn unfinished_runs(&self) -> Result<Vec<(TenantId, RunId)>> {
        let rows = sqlx::query(
            "SELECT id, tenant FROM runs WHERE NOT closed
             AND id IN (SELECT run FROM operations WHERE state = 0) ORDER BY id",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(|error| describe(&error))?;
        Ok(rows
            .iter()
            .map(|row| (TenantId::new(row.get::<String, _>("tenant")), RunId::new(row.get::<String, _>("id"))))
            .collect())
    }

    /// Closes a run: its unfinished operations fail with `reason`, its payloads and its snapshot are forgotten.
    ///
    /// Returns the operations that failed.
    pub async fn close_run(&self, run: &RunId, reason: &Error) -> Result<Vec<RequestId>> {
        self.writer.write(CloseRun { run: run.clone(), reason: reason.clone() }).await
    }
}

/// The answer for a run that is absent or another tenant's.
pub(crate) fn no_run(run: &RunId) -> Error {
    Error::not_found(format!("run `{run}` does not exist"))
}

/// The answer for a run that was unloaded or never came to be.
pub(crate) fn closed_run(run: &RunId) -> Error {
    Error::not_found(format!("run `{run}` is closed")).hint("create a new run, if need be from one of its checkpoints")
}

fn read_run(row: &SqliteRow) -> Result<RunRecord> {
    Ok(RunRecord {
        id: RunId::new(row.get::<String, _>("id")),
        tenant: TenantId::new(row.get::<String, _>("tenant")),
        session: SessionId::new(row.get::<String, _>("session")),
        base_model: row.get("base_model"),
        lora: from_blob(row.get("lora"))?,
        user_metadata: from_blob(row.get("user_metadata"))?,
        closed: row.get("closed"),
        created_at: from_nanoseconds(row.get("created_at"))?,
        last_used_at: from_nanoseconds(row.get("last_used_at"))?,
    })
}

struct InsertRun(NewRun);

impl Write for InsertRun {
    type Answer = Appended;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<Appended, Failure> {
        let Self(NewRun { record, operation }) = self;
        let owner: Option<String> = sqlx::query_scalar("SELECT tenant FROM runs WHERE id = ?")
            .bind(record.id.as_str())
            .fetch_optional(&mut *connection)
            .await?;
        if let Some(owner) = owner {
            if owner != record.tenant.as_str() {
                return Err(no_session(&record.session).into());
            }
            let existing = existing_at(connection, &record.id, Position::default()).await?;
            return existing.map(Appended::Existing).ok_or_else(|| {
                Error::new(ErrorCode::Gone, format!("run `{}` was created long ago", record.id))
                    .hint("give every run of a session its own number")
                    .into()
            });
        }
        require_open_session(connection, &record.tenant, &record.session).await?;
        sqlx::query(
            "INSERT INTO runs (id, tenant, session, base_model, lora, user_metadata, created_at, last_used_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(record.id.as_str())
        .bind(record.tenant.as_str())
        .bind(record.session.as_str())
        .bind(record.base_model.as_str())
        .bind(to_blob(&record.lora)?)
        .bind(to_blob(&record.user_metadata)?)
        .bind(to_nanoseconds(record.created_at))
        .bind(to_nanoseconds(record.last_used_at))
        .execute(&mut *connection)
        .await?;
        insert_operation(connection, operation).await?;
        Ok(Appended::New)
    }
}

struct CloseRun {
    run: RunId,
    reason: Error,
}

impl Write for CloseRun {
    type Answer = Vec<RequestId>;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<Vec<RequestId>, Failure> {
        close(connection, &self.run, &self.reason).await
    }
}

/// See [`StateStore::close_run`].
pub(super) async fn close(
    connection: &mut SqliteConnection,
    run: &RunId,
    reason: &Error,
) -> Result<Vec<RequestId>, Failure> {
    let outcome: Result<crate::call::RunOutcome> = Err(reason.clone());
    let outcome = to_blob(&outcome)?;
    sqlx::query("UPDATE runs SET closed = 1 WHERE id = ?").bind(run.as_str()).execute(&mut *connection).await?;
    sqlx::query("DELETE FROM snapshots WHERE run = ?").bind(run.as_str()).execute(&mut *connection).await?;
    let failed: Vec<String> = sqlx::query_scalar(
        "UPDATE operations SET state = 2, outcome = ?, finished_at = ? WHERE run = ? AND state = 0 RETURNING request",
    )
    .bind(outcome)
    .bind(now())
    .bind(run.as_str())
    .fetch_all(&mut *connection)
    .await?;
    sqlx::query("UPDATE operations SET payload = NULL WHERE run = ? AND payload IS NOT NULL")
        .bind(run.as_str())
        .execute(connection)
        .await?;
    Ok(failed.into_iter().map(RequestId::new).collect())
}
