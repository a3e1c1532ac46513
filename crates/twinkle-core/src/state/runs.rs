//! Training runs.

use super::StateStore;
use super::codec::{from_blob, from_integer, from_nanoseconds, now, to_blob, to_nanoseconds};
use super::connection::Connection;
use super::failure::Failure;
use super::journal::{Appended, NewOperation, existing_at, insert_operation};
use super::run_limits::RunLimits;
use super::sessions::{no_session, require_open_session};
use super::sql::{Row, query};
use super::writer::Write;
use crate::call::{DEFAULT_PROJECT, Position, RunRecord};
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
        self.insert_run_within(run, RunLimits::default()).await
    }

    /// The same, unless its tenant has as many open runs as it may: [`ErrorCode::LimitReached`].
    pub async fn insert_run_within(&self, run: NewRun, limits: RunLimits) -> Result<Appended> {
        self.writer.write(InsertRun { run, limits }).await
    }

    /// The tenant's run of that name, closed or not.
    pub async fn run(&self, tenant: &TenantId, run: &RunId) -> Result<RunRecord> {
        let row = query("SELECT * FROM runs WHERE id = $1 AND tenant = $2")
            .bind(run.as_str())
            .bind(tenant.as_str())
            .fetch_optional(&self.readers)
            .await?
            .ok_or_else(|| no_run(run))?;
        read_run(&row)
    }

    /// One page of the tenant's runs of one project, newest first, and how many there are in all.
    pub async fn list_runs_of_project(
        &self,
        tenant: &TenantId,
        project: &str,
        limit: u32,
        offset: u32,
    ) -> Result<(Vec<RunRecord>, u64)> {
        let rows = query(
            "SELECT * FROM runs WHERE tenant = $1 AND session IN (SELECT id FROM sessions WHERE tenant = $1 AND COALESCE(project, $3) = $2)
             ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5",
        )
        .bind(tenant.as_str())
        .bind(project)
        .bind(DEFAULT_PROJECT)
        .bind(limit)
        .bind(offset)
        .fetch_all(&self.readers)
        .await?;
        let total: i64 = query(
            "SELECT COUNT(*) AS total FROM runs WHERE tenant = $1
             AND session IN (SELECT id FROM sessions WHERE tenant = $1 AND COALESCE(project, $3) = $2)",
        )
        .bind(tenant.as_str())
        .bind(project)
        .bind(DEFAULT_PROJECT)
        .fetch_value("total", &self.readers)
        .await?;
        Ok((rows.iter().map(read_run).collect::<Result<Vec<_>>>()?, from_integer(total)?))
    }

    /// One page of the tenant's runs, newest first, and how many there are in all.
    pub async fn list_runs(&self, tenant: &TenantId, limit: u32, offset: u32) -> Result<(Vec<RunRecord>, u64)> {
        let rows = query("SELECT * FROM runs WHERE tenant = $1 ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3")
            .bind(tenant.as_str())
            .bind(limit)
            .bind(offset)
            .fetch_all(&self.readers)
            .await?;
        let total: i64 = query("SELECT COUNT(*) AS total FROM runs WHERE tenant = $1")
            .bind(tenant.as_str())
            .fetch_value("total", &self.readers)
            .await?;
        let runs = rows.iter().map(read_run).collect::<Result<Vec<_>>>()?;
        Ok((runs, from_integer(total)?))
    }

    /// Open runs that have unfinished operations, with their owners, in order of name.
    pub async fn unfinished_runs(&self) -> Result<Vec<(TenantId, RunId)>> {
        let rows = query(
            "SELECT id, tenant FROM runs WHERE closed = 0
             AND id IN (SELECT run FROM operations WHERE state = 0) ORDER BY id",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| Ok((TenantId::new(row.get::<String>("tenant")?), RunId::new(row.get::<String>("id")?))))
            .collect()
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

pub(super) fn read_run(row: &Row) -> Result<RunRecord> {
    Ok(RunRecord {
        id: RunId::new(row.get::<String>("id")?),
        tenant: TenantId::new(row.get::<String>("tenant")?),
        session: SessionId::new(row.get::<String>("session")?),
        base_model: row.get("base_model")?,
        lora: from_blob(&row.get::<Vec<u8>>("lora")?)?,
        user_metadata: from_blob(&row.get::<Vec<u8>>("user_metadata")?)?,
        closed: row.get("closed")?,
        created_at: from_nanoseconds(row.get("created_at")?)?,
        last_used_at: from_nanoseconds(row.get("last_used_at")?)?,
    })
}

struct InsertRun {
    run: NewRun,
    limits: RunLimits,
}

impl Write for InsertRun {
    type Answer = Appended;

    async fn apply(&self, connection: &mut Connection) -> Result<Appended, Failure> {
        let Self { run: NewRun { record, operation }, limits } = self;
        let owner: Option<String> = query("SELECT tenant FROM runs WHERE id = $1")
            .bind(record.id.as_str())
            .fetch_optional_value("tenant", &mut *connection)
            .await?;
        if let Some(owner) = owner {
            if owner != record.tenant.as_str() {
                return Err(no_session(&record.session).into());
            }
            let existing = existing_at(&mut *connection, &record.id, Position::default()).await?;
            return existing.map(Appended::Existing).ok_or_else(|| {
                Error::new(ErrorCode::Gone, format!("run `{}` was created long ago", record.id))
                    .hint("give every run of a session its own number")
                    .into()
            });
        }
        require_open_session(connection, &record.tenant, &record.session).await?;
        limits.check(connection, record).await?;
        insert(&mut *connection, record, None).await?;
        insert_operation(connection, operation).await?;
        Ok(Appended::New)
    }
}

/// Keeps a run; `ending` is what is answered about one that is closed from the beginning.
pub(super) async fn insert(
    connection: &mut Connection,
    record: &RunRecord,
    ending: Option<&Error>,
) -> Result<(), Failure> {
    query(
        "INSERT INTO runs (id, tenant, session, base_model, lora, user_metadata, created_at, last_used_at, closed,
         ending) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(record.id.as_str())
    .bind(record.tenant.as_str())
    .bind(record.session.as_str())
    .bind(record.base_model.as_str())
    .bind(to_blob(&record.lora)?)
    .bind(to_blob(&record.user_metadata)?)
    .bind(to_nanoseconds(record.created_at))
    .bind(to_nanoseconds(record.last_used_at))
    .bind(ending.is_some())
    .bind(ending.map(to_blob).transpose()?)
    .execute(connection)
    .await?;
    Ok(())
}

struct CloseRun {
    run: RunId,
    reason: Error,
}

impl Write for CloseRun {
    type Answer = Vec<RequestId>;
    const PATIENT: bool = true;

    async fn apply(&self, connection: &mut Connection) -> Result<Vec<RequestId>, Failure> {
        close(connection, &self.run, &self.reason).await
    }
}

/// See [`StateStore::close_run`].
pub(super) async fn close(connection: &mut Connection, run: &RunId, reason: &Error) -> Result<Vec<RequestId>, Failure> {
    let outcome: Result<crate::call::RunOutcome> = Err(reason.clone());
    let outcome = to_blob(&outcome)?;
    query("UPDATE runs SET closed = 1, ending = $1 WHERE id = $2 AND closed = 0")
        .bind(to_blob(reason)?)
        .bind(run.as_str())
        .execute(&mut *connection)
        .await?;
    query("DELETE FROM snapshots WHERE run = $1").bind(run.as_str()).execute(&mut *connection).await?;
    let failed: Vec<String> = query(
        "UPDATE operations SET state = 2, outcome = $1, finished_at = $2 WHERE run = $3 AND state = 0 RETURNING request",
    )
    .bind(outcome)
    .bind(now())
    .bind(run.as_str())
    .fetch_column("request", &mut *connection)
    .await?;
    query("UPDATE operations SET payload = NULL WHERE run = $1 AND payload IS NOT NULL")
        .bind(run.as_str())
        .execute(connection)
        .await?;
    Ok(failed.into_iter().map(RequestId::new).collect())
}
