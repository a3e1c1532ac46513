//! The store in a schema of a `PostgreSQL` database: one server per schema, and every commit's outcome is known.
//!
//! One connection writes. It holds a session-level advisory lock, so that the database itself gives the schema free
//! when this server dies. The table `ownership` has a number that every owner raises once (`epoch`) and a number that
//! every commit raises (`commits`). A connection that breaks in the middle of a commit leaves its outcome open: after
//! reconnecting, the old session is ended, the lock is taken again, and `commits` tells whether it happened. If not,
//! the same group is applied again; if another server owned the schema meanwhile, this one never writes again.

mod connect;
mod ownership;

use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use tokio::time::{Instant, sleep_until, timeout};

use super::backend::{NotCommitted, Recovered, apply_all};
use super::connection::{Connection, Readers};
use super::failure::{Failure, describe, is_lost, unreachable};
use super::sql::query;
use super::writer::PendingWrite;
use crate::error::{Error, ErrorCode, Result};
use connect::Session;

/// How long one group of writes may take before its connection counts as broken.
const COMMIT_LIMIT: Duration = Duration::from_secs(30);
/// How long one attempt to come back may take.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);
/// The time between two questions whether the database is there.
const PING_EVERY: Duration = Duration::from_secs(5);

/// The store in a schema, owned by this server.
pub(super) struct Postgres {
    options: PgConnectOptions,
    schema: String,
    /// Absent while the database is away.
    connection: Option<Connection>,
    session: Session,
    epoch: i64,
    /// The number of the last commit that certainly happened.
    commits: i64,
    next_ping: Instant,
}

impl Postgres {
    /// Opens the schema that `key_prefix` names, making it and its tables when they are missing.
    pub(super) async fn open(url: &str, key_prefix: &str) -> Result<(Self, Readers)> {
        let schema = connect::schema_name(key_prefix)?;
        let options = connect::options(url)?;
        let cannot = |error: &sqlx::Error| connect::cannot_open(&options, &schema, error);

        let mut connection = options.connect().await.map_err(|error| cannot(&error))?;
        connect::prepare_writer(&mut connection, &schema).await.map_err(|error| cannot(&error))?;
        ownership::lock(&mut connection, &schema).await.map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Database(error) => cannot(&error),
        })?;
        connect::migrate(&mut connection, &schema).await?;
        connect::warn_of_weak_settings(&mut connection).await;
        let session = Session::of(&mut connection).await.map_err(|error| cannot(&error))?;
        let mut connection = Connection::Postgres(connection);
        let (epoch, commits) = ownership::begin_epoch(&mut connection).await?;
        let readers = connect::readers(&options, &schema).await.map_err(|error| cannot(&error))?;
        let next_ping = Instant::now() + PING_EVERY;
        let connection = Some(connection);
        Ok((Self { options, schema, connection, session, epoch, commits, next_ping }, Readers::Postgres(readers)))
    }

    /// One transaction for the group.
    pub(super) async fn commit(&mut self, group: &mut [Box<dyn PendingWrite>]) -> Result<(), NotCommitted> {
        let Some(mut connection) = self.connection.take() else {
            return Err(NotCommitted::Lost { error: unreachable("the connection is broken"), uncertain: false });
        };
        let number = self.commits + 1;
        let committed =
            timeout(COMMIT_LIMIT, try_commit(&mut connection, group, &self.schema, self.epoch, number)).await;
        // Dropped in the middle of a statement, the connection would be of no use: it is not put back then.
        let outcome = committed.unwrap_or_else(|_| {
            Err(NotCommitted::Lost { error: unreachable("the database does not answer"), uncertain: true })
        });
        match &outcome {
            Ok(()) => self.commits = number,
            Err(NotCommitted::Lost { .. }) => return outcome,
            Err(_) => {
                if let Err(error) = connection.control("ROLLBACK").await {
                    return Err(NotCommitted::Lost { error: describe(&error), uncertain: false });
                }
            }
        }
        self.connection = Some(connection);
        self.next_ping = Instant::now() + PING_EVERY;
        outcome
    }

    /// Connects again, makes sure that nobody else was here, and reads what became of the last commit.
    pub(super) async fn recover(&mut self) -> Result<Recovered, NotCommitted> {
        let recovered = timeout(RECOVERY_LIMIT, self.try_recover()).await;
        recovered.unwrap_or_else(|_| Err(lost(unreachable("the database does not answer"))))
    }

    /// Returns when the connection has been silent for a while.
    pub(super) async fn ping_due(&self) {
        sleep_until(self.next_ping).await;
    }

    /// Asks whether the database is there, so that an outage is noticed before a write is.
    pub(super) async fn ping(&mut self) -> Result<(), NotCommitted> {
        self.next_ping = Instant::now() + PING_EVERY;
        let Some(mut connection) = self.connection.take() else {
            return Err(lost(unreachable("the connection is broken")));
        };
        match timeout(RECOVERY_LIMIT, connection.control("SELECT 1")).await {
            Ok(Ok(())) => {
                self.connection = Some(connection);
                Ok(())
            }
            Ok(Err(error)) => Err(lost(describe(&error))),
            Err(_) => Err(lost(unreachable("the database does not answer"))),
        }
    }

    /// Gives the schema free.
    pub(super) async fn close(self) {
        if let Some(connection) = self.connection {
            connection.close().await;
        }
    }

    async fn try_recover(&mut self) -> Result<Recovered, NotCommitted> {
        let options = self.options.clone();
        let mut connection = options.connect().await.map_err(|error| lost(describe(&error)))?;
        connect::prepare_writer(&mut connection, &self.schema).await.map_err(|error| lost(describe(&error)))?;
        self.session.end(&mut connection).await.map_err(|error| lost(describe(&error)))?;
        let locked = ownership::lock(&mut connection, &self.schema).await;
        let session = Session::of(&mut connection).await.map_err(|error| lost(describe(&error)))?;
        let mut connection = Connection::Postgres(connection);
        let (epoch, commits) = ownership::read(&mut connection).await.map_err(|failure| lost(failure.into()))?;
        if epoch != self.epoch {
            return Err(NotCommitted::Fenced(taken_over(&self.schema)));
        }
        locked.map_err(|failure| lost(failure.into()))?;
        let recovered = match commits - self.commits {
            0 => Recovered::NotCommitted,
            1 => Recovered::Committed,
            _ => return Err(NotCommitted::Fenced(rewound(&self.schema))),
        };
        (self.commits, self.session, self.connection) = (commits, session, Some(connection));
        Ok(recovered)
    }
}

async fn try_commit(
    connection: &mut Connection,
    group: &mut [Box<dyn PendingWrite>],
    schema: &str,
    epoch: i64,
    number: i64,
) -> Result<(), NotCommitted> {
    connection.control("BEGIN").await.map_err(|error| before_commit(&error))?;
    apply_all(connection, group).await.map_err(|error| before_commit(&error))?;
    let owned =
        query("UPDATE ownership SET commits = $1 WHERE epoch = $2").bind(number).bind(epoch).execute(connection).await;
    match owned {
        Ok(1) => {}
        Ok(_) => return Err(NotCommitted::Fenced(taken_over(schema))),
        Err(Failure::Refused(error)) => return Err(NotCommitted::Statement(error)),
        Err(Failure::Database(error)) => return Err(before_commit(&error)),
    }
    connection.control("COMMIT").await.map_err(|error| {
        let described = describe(&error);
        if is_lost(&error) {
            NotCommitted::Lost { error: described, uncertain: true }
        } else {
            NotCommitted::Statement(described)
        }
    })
}

/// Until `COMMIT` is sent, a broken connection means that nothing happened.
fn before_commit(error: &sqlx::Error) -> NotCommitted {
    if is_lost(error) { lost(describe(error)) } else { NotCommitted::Statement(describe(error)) }
}

fn lost(error: Error) -> NotCommitted {
    NotCommitted::Lost { error, uncertain: false }
}

fn taken_over(schema: &str) -> Error {
    Error::new(ErrorCode::Conflict, format!("another server has taken over the state store in schema `{schema}`"))
        .hint("one server works on a schema at a time; give each its own `persistence.key_prefix`")
}

fn rewound(schema: &str) -> Error {
    Error::internal(format!("schema `{schema}` has lost commits or was changed by somebody else"))
        .hint("the database was perhaps restored from a backup; restart the server to work with what is there now")
}
