//! The journal: accepted operations in each run's order.

use super::StateStore;
use super::codec::{from_integer, now, to_integer};
use super::connection::Connection;
use super::failure::Failure;
use super::runs::{closed_run, no_run};
use super::sql::{Row, Target, query};
use super::writer::Write;
use crate::call::Position;
use crate::error::{Error, Result};
use crate::ids::{RequestId, RunId, TenantId};

/// The number of an operation that was refused after its number was known.
const REFUSED: &str = "refused";

/// An operation about to become durable.
#[derive(Clone, Debug)]
pub struct NewOperation {
    /// The id under which its result can be retrieved.
    pub request: RequestId,
    /// Who asked.
    pub tenant: TenantId,
    /// The run it changes.
    pub run: RunId,
    /// Its place in the run's order.
    pub position: Position,
    /// Its short name, for people who look into the store.
    pub name: &'static str,
    /// The operation as `MessagePack`.
    pub payload: Vec<u8>,
    /// SHA-256 of the payload: tells a repetition from another operation with the same number.
    pub fingerprint: [u8; 32],
}

/// What became of an operation that was offered to the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is durable.
    New,
    /// Its place was taken before.
    Existing(Existing),
}

/// What holds a place in a run's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// Its id.
    pub request: RequestId,
    /// SHA-256 of its payload.
    pub fingerprint: Vec<u8>,
    /// Whether the number was used up by a request that was refused.
    pub refused: bool,
}

/// How far an operation in the journal has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Accepted, no result yet.
    Pending,
    /// It succeeded.
    Done,
    /// It failed; it changed nothing.
    Failed,
}

/// An operation as the journal holds it.
#[derive(Clone, Debug)]
pub struct JournaledOperation {
    /// Its id.
    pub request: RequestId,
    /// Its place.
    pub position: Position,
    /// The operation as `MessagePack`; absent when a snapshot covers it.
    pub payload: Option<Vec<u8>>,
    /// How far it has come.
    pub status: Status,
    /// Its `Result<RunOutcome>` as `MessagePack`, until it expires.
    pub outcome: Option<Vec<u8>>,
}

/// Where a run's order stands, for a server that has just started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOrder {
    /// Every number up to this one had its turn.
    pub passed_through: u64,
    /// The highest arrival number in use.
    pub last_arrival: i64,
    /// Numbers beyond `passed_through` that are pending, in order.
    pub pending: Vec<u64>,
    /// Numbers beyond `passed_through` that were used up by refused requests, in order.
    pub refused: Vec<u64>,
}

impl StateStore {
    /// Makes an operation of an open run durable, unless its place is taken.
    pub async fn append(&self, operation: NewOperation) -> Result<Appended> {
        self.writer.write(Append(operation)).await
    }

    /// Marks a number as used up by a request that was refused; a number that is taken stays as it is.
    pub async fn append_refused(&self, tenant: &TenantId, run: &RunId, sequence: u64) -> Result<()> {
        let write = AppendRefused { tenant: tenant.clone(), run: run.clone(), sequence };
        self.writer.write(write).await
    }

    /// Gives up waiting for the numbers up to `sequence` that never arrived.
    pub async fn pass_over(&self, run: &RunId, sequence: u64) -> Result<()> {
        self.writer.write(PassOver { run: run.clone(), sequence }).await
    }

    /// What holds `position` in the run's order.
    pub async fn operation_at(&self, run: &RunId, position: Position) -> Result<Option<Existing>> {
        Ok(existing_at(&self.readers, run, position).await?)
    }

    /// The latest operation of that name in the run.
    pub async fn latest_named(&self, run: &RunId, name: &str) -> Result<Option<RequestId>> {
        let request: Option<String> = query(
            "SELECT request FROM operations WHERE run = $1 AND name = $2 ORDER BY after DESC, arrival DESC LIMIT 1",
        )
        .bind(run.as_str())
        .bind(name)
        .fetch_optional_value("request", &self.readers)
        .await?;
        Ok(request.map(RequestId::new))
    }

    /// Where the run's order stands. Nobody may append to the run meanwhile.
    pub async fn run_order(&self, run: &RunId) -> Result<RunOrder> {
        let row = query(
            "SELECT passed_through,
                    (SELECT after FROM snapshots WHERE run = $1) AS covered,
                    (SELECT arrival FROM snapshots WHERE run = $1) AS covered_arrival,
                    (SELECT MAX(after) FROM operations
                     WHERE run = $1 AND arrival = 0 AND state IN (1, 2)) AS finished,
                    (SELECT MAX(arrival) FROM operations WHERE run = $1) AS arrival
             FROM runs WHERE id = $1",
        )
        .bind(run.as_str())
        .fetch_optional(&self.readers)
        .await?
        .ok_or_else(|| no_run(run))?;
        let number = |column: &str| Ok::<_, Error>(row.get::<Option<i64>>(column)?.unwrap_or_default());
        let passed = number("passed_through")?.max(number("covered")?).max(number("finished")?);
        let last_arrival = number("covered_arrival")?.max(number("arrival")?);
        let ahead = query(
            "SELECT after, state FROM operations
             WHERE run = $1 AND arrival = 0 AND after > $2 AND state IN (0, 3) ORDER BY after",
        )
        .bind(run.as_str())
        .bind(passed)
        .fetch_all(&self.readers)
        .await?;

        let mut order =
            RunOrder { passed_through: from_integer(passed)?, last_arrival, pending: Vec::new(), refused: Vec::new() };
        for row in &ahead {
            let number = from_integer(row.get("after")?)?;
            match row.get::<i64>("state")? {
                0 => order.pending.push(number),
                _ => order.refused.push(number),
            }
        }
        Ok(order)
    }

    /// At most `limit` operations of the run after `after` and up to `until`, in order.
    pub async fn tail(
        &self,
        run: &RunId,
        after: Option<Position>,
        until: Position,
        limit: u32,
    ) -> Result<Vec<JournaledOperation>> {
        let after = match after {
            Some(position) => (to_integer(position.after)?, position.arrival),
            None => (-1, 0),
        };
        let rows = query(
            "SELECT request, after, arrival, payload, state, outcome FROM operations
             WHERE run = $1 AND (after, arrival) > ($2, $3) AND (after, arrival) <= ($4, $5) AND state <> 3
             ORDER BY after, arrival LIMIT $6",
        )
        .bind(run.as_str())
        .bind(after.0)
        .bind(after.1)
        .bind(to_integer(until.after)?)
        .bind(until.arrival)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read_operation).collect()
    }
}

fn read_operation(row: &Row) -> Result<JournaledOperation> {
    let status = match row.get::<i64>("state")? {
        0 => Status::Pending,
        1 => Status::Done,
        2 => Status::Failed,
        other => return Err(Error::internal(format!("the state store holds an unknown operation state `{other}`"))),
    };
    Ok(JournaledOperation {
        request: RequestId::new(row.get::<String>("request")?),
        position: Position { after: from_integer(row.get("after")?)?, arrival: row.get("arrival")? },
        payload: row.get("payload")?,
        status,
        outcome: row.get("outcome")?,
    })
}

/// What holds a place, read inside or outside of a transaction.
pub(super) async fn existing_at<'c>(
    target: impl Into<Target<'c>> + Send,
    run: &RunId,
    position: Position,
) -> Result<Option<Existing>, Failure> {
    let row =
        query("SELECT request, fingerprint, state FROM operations WHERE run = $1 AND after = $2 AND arrival = $3")
            .bind(run.as_str())
            .bind(to_integer(position.after)?)
            .bind(position.arrival)
            .fetch_optional(target)
            .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Existing {
        request: RequestId::new(row.get::<String>("request")?),
        fingerprint: row.get("fingerprint")?,
        refused: row.get::<i64>("state")? == 3,
    }))
}

pub(super) async fn insert_operation(connection: &mut Connection, operation: &NewOperation) -> Result<bool, Failure> {
    let inserted = query(
        "INSERT INTO operations (request, tenant, run, after, arrival, name, fingerprint, payload, state)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0) ON CONFLICT (run, after, arrival) DO NOTHING",
    )
    .bind(operation.request.as_str())
    .bind(operation.tenant.as_str())
    .bind(operation.run.as_str())
    .bind(to_integer(operation.position.after)?)
    .bind(operation.position.arrival)
    .bind(operation.name)
    .bind(&operation.fingerprint[..])
    .bind(operation.payload.as_slice())
    .execute(connection)
    .await?;
    Ok(inserted == 1)
}

/// Refuses unless the tenant's run is open, and notes its use.
async fn touch_open_run(connection: &mut Connection, tenant: &TenantId, run: &RunId) -> Result<(), Failure> {
    let touched = query("UPDATE runs SET last_used_at = $1 WHERE id = $2 AND tenant = $3 AND closed = 0")
        .bind(now())
        .bind(run.as_str())
        .bind(tenant.as_str())
        .execute(connection)
        .await?;
    if touched == 0 {
        return Err(closed_run(run).into());
    }
    Ok(())
}

struct Append(NewOperation);

impl Write for Append {
    type Answer = Appended;

    async fn apply(&self, connection: &mut Connection) -> Result<Appended, Failure> {
        let Self(operation) = self;
        touch_open_run(connection, &operation.tenant, &operation.run).await?;
        if insert_operation(connection, operation).await? {
            return Ok(Appended::New);
        }
        let existing = existing_at(connection, &operation.run, operation.position).await?;
        existing
            .map(Appended::Existing)
            .ok_or_else(|| Error::internal("an operation was neither inserted nor found").into())
    }
}

struct AppendRefused {
    tenant: TenantId,
    run: RunId,
    sequence: u64,
}

impl Write for AppendRefused {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        touch_open_run(connection, &self.tenant, &self.run).await?;
        query(
            "INSERT INTO operations (request, tenant, run, after, arrival, name, fingerprint, state, finished_at)
             VALUES ($1, $2, $3, $4, 0, $5, $6, 3, $7) ON CONFLICT (run, after, arrival) DO NOTHING",
        )
        .bind(RequestId::journaled().as_str())
        .bind(self.tenant.as_str())
        .bind(self.run.as_str())
        .bind(to_integer(self.sequence)?)
        .bind(REFUSED)
        .bind(Vec::new())
        .bind(now())
        .execute(connection)
        .await?;
        Ok(())
    }
}

struct PassOver {
    run: RunId,
    sequence: u64,
}

impl Write for PassOver {
    type Answer = ();
    const PATIENT: bool = true;

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        query("UPDATE runs SET passed_through = $1 WHERE id = $2 AND passed_through < $1")
            .bind(to_integer(self.sequence)?)
            .bind(self.run.as_str())
            .execute(connection)
            .await?;
        Ok(())
    }
}
