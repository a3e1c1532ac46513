//! Results of operations: stored once, delivered as often as asked.

use sqlx::{Row, SqliteConnection};

use super::StateStore;
use super::codec::{from_blob, now, to_blob};
use super::failure::{Failure, describe};
use super::runs::{close, closed_run};
use super::writer::Write;
use crate::call::RunOutcome;
use crate::error::{Error, Result};
use crate::ids::{RequestId, RunId, TenantId};

/// Where an operation stands for its client.
#[derive(Clone, Debug, PartialEq)]
pub enum OperationState {
    /// Accepted, no result yet.
    Pending,
    /// Its result.
    Finished(Result<RunOutcome>),
    /// It had a result, which was kept for its time and is gone.
    Expired,
}

/// What storing a result brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Whether the run is closed now: it was unloaded, or could not be created.
    pub closed: bool,
    /// Other operations of the run that failed because it closed.
    pub abandoned: Vec<RequestId>,
}

impl StateStore {
    /// Stores the result of an operation. A result that is there already is kept.
    ///
    /// A run that was unloaded, or whose creation failed, is closed in the same transaction.
    pub async fn finish(&self, request: &RequestId, outcome: &Result<RunOutcome>) -> Result<Finished> {
        let write = Finish {
            request: request.clone(),
            blob: to_blob(outcome)?,
            succeeded: outcome.is_ok(),
            unloads: matches!(outcome, Ok(RunOutcome::Unloaded { .. })),
        };
        self.writer.write(write).await
    }

    /// Where the tenant's operation of that id stands; `None` when it is absent or another tenant's.
    pub async fn operation_result(&self, tenant: &TenantId, request: &RequestId) -> Result<Option<OperationState>> {
        let row = sqlx::query("SELECT state, outcome FROM operations WHERE request = ? AND tenant = ? AND state <> 3")
            .bind(request.as_str())
            .bind(tenant.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| describe(&error))?;
        let Some(row) = row else { return Ok(None) };
        if row.get::<i64, _>("state") == 0 {
            return Ok(Some(OperationState::Pending));
        }
        let Some(outcome) = row.get::<Option<Vec<u8>>, _>("outcome") else {
            return Ok(Some(OperationState::Expired));
        };
        Ok(Some(OperationState::Finished(from_blob(&outcome)?)))
    }
}

struct Finish {
    request: RequestId,
    blob: Vec<u8>,
    succeeded: bool,
    unloads: bool,
}

impl Write for Finish {
    type Answer = Finished;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<Finished, Failure> {
        let row = sqlx::query(
            "UPDATE operations SET state = ?, outcome = ?, finished_at = ? WHERE request = ? AND state = 0
             RETURNING run, name",
        )
        .bind(if self.succeeded { 1 } else { 2 })
        .bind(self.blob.as_slice())
        .bind(now())
        .bind(self.request.as_str())
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else {
            return self.require_known(connection).await;
        };
        let creation_failed = row.get::<&str, _>("name") == "create_model" && !self.succeeded;
        if !self.unloads && !creation_failed {
            return Ok(Finished::default());
        }
        let run = RunId::new(row.get::<String, _>("run"));
        let abandoned = close(connection, &run, &closed_run(&run)).await?;
        Ok(Finished { closed: true, abandoned })
    }
}

impl Finish {
    async fn require_known(&self, connection: &mut SqliteConnection) -> Result<Finished, Failure> {
        let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM operations WHERE request = ?)")
            .bind(self.request.as_str())
            .fetch_one(connection)
            .await?;
        if known {
            return Ok(Finished::default());
        }
        Err(Error::internal(format!("the result of unknown operation `{}` cannot be stored", self.request)).into())
    }
}
