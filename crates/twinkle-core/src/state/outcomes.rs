//! Results of operations: stored once, delivered as often as asked.

use super::StateStore;
use super::codec::{from_blob, now, to_blob};
use super::connection::Connection;
use super::endings::end_by;
use super::failure::Failure;
use super::runs::close;
use super::sql::query;
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
    /// Whether the run is closed now: it was unloaded, expired, or could not be created.
    pub closed: bool,
    /// Other operations of the run that failed because it closed.
    pub abandoned: Vec<RequestId>,
}

impl StateStore {
    /// Stores the result of an operation. A result that is there already is kept.
    ///
    /// A run that was unloaded or expired, or whose creation failed, is closed in the same transaction.
    pub async fn finish(&self, request: &RequestId, outcome: &Result<RunOutcome>) -> Result<Finished> {
        let write = Finish {
            request: request.clone(),
            blob: to_blob(outcome)?,
            succeeded: outcome.is_ok(),
            end: outcome.as_ref().ok().filter(|outcome| outcome.ends_run()).cloned(),
        };
        self.writer.write(write).await
    }

    /// Where the tenant's operation of that id stands; `None` when it is absent or another tenant's.
    pub async fn operation_result(&self, tenant: &TenantId, request: &RequestId) -> Result<Option<OperationState>> {
        let row = query("SELECT state, outcome FROM operations WHERE request = $1 AND tenant = $2 AND state <> 3")
            .bind(request.as_str())
            .bind(tenant.as_str())
            .fetch_optional(&self.readers)
            .await?;
        let Some(row) = row else { return Ok(None) };
        if row.get::<i64>("state")? == 0 {
            return Ok(Some(OperationState::Pending));
        }
        let Some(outcome) = row.get::<Option<Vec<u8>>>("outcome")? else {
            return Ok(Some(OperationState::Expired));
        };
        Ok(Some(OperationState::Finished(from_blob(&outcome)?)))
    }
}

struct Finish {
    request: RequestId,
    blob: Vec<u8>,
    succeeded: bool,
    /// The outcome, if it ended the run.
    end: Option<RunOutcome>,
}

impl Write for Finish {
    type Answer = Finished;
    const PATIENT: bool = true;

    async fn apply(&self, connection: &mut Connection) -> Result<Finished, Failure> {
        let row = query(
            "UPDATE operations SET state = $1, outcome = $2, finished_at = $3 WHERE request = $4 AND state = 0
             RETURNING run, name",
        )
        .bind(if self.succeeded { 1_i64 } else { 2 })
        .bind(self.blob.as_slice())
        .bind(now())
        .bind(self.request.as_str())
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else {
            return self.require_known(connection).await;
        };
        let creation_failed = row.get::<String>("name")? == "create_model" && !self.succeeded;
        if self.end.is_none() && !creation_failed {
            return Ok(Finished::default());
        }
        let run = RunId::new(row.get::<String>("run")?);
        let abandoned = close(connection, &run, &end_by(&run, self.end.as_ref())).await?;
        Ok(Finished { closed: true, abandoned })
    }
}

impl Finish {
    async fn require_known(&self, connection: &mut Connection) -> Result<Finished, Failure> {
        let known: bool = query("SELECT EXISTS (SELECT 1 FROM operations WHERE request = $1) AS known")
            .bind(self.request.as_str())
            .fetch_value("known", connection)
            .await?;
        if known {
            return Ok(Finished::default());
        }
        Err(Error::internal(format!("the result of unknown operation `{}` cannot be stored", self.request)).into())
    }
}
