//! What the writing task needs of a database: one transaction for a group of writes, and a way back after an outage.

use super::connection::Connection;
use super::failure::{Failure, describe};
use super::postgres::Postgres;
use super::redis::Redis;
use super::sqlite::Sqlite;
use super::writer::PendingWrite;
use crate::error::Error;

/// The database that writes go to.
pub(super) enum Backend {
    Sqlite(Sqlite),
    Postgres(Box<Postgres>),
    Redis(Box<Redis>),
}

/// Why a group of writes was not committed.
#[derive(Debug)]
pub(super) enum NotCommitted {
    /// A statement of one of the writes failed; everything was rolled back.
    Statement(Error),
    /// The database takes no writes now; everything was rolled back.
    Refused(Error),
    /// The database went away. `uncertain` when it may have committed before it did.
    Lost { error: Error, uncertain: bool },
    /// Another server owns the records now. This one must not write any more.
    Fenced(Error),
}

/// What the database says after an outage about the commit that it interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recovered {
    /// It happened.
    Committed,
    /// It did not, or there was none.
    NotCommitted,
}

impl Backend {
    /// One transaction with all of the group's changes.
    pub(super) async fn commit(&mut self, group: &mut [Box<dyn PendingWrite>]) -> Result<(), NotCommitted> {
        match self {
            Self::Sqlite(sqlite) => sqlite.commit(group).await,
            Self::Postgres(postgres) => postgres.commit(group).await,
            Self::Redis(redis) => redis.commit(group).await,
        }
    }

    /// One attempt to reach the database again after [`NotCommitted::Lost`].
    pub(super) async fn recover(&mut self) -> Result<Recovered, NotCommitted> {
        match self {
            Self::Sqlite(_) => Ok(Recovered::NotCommitted),
            Self::Postgres(postgres) => postgres.recover().await,
            Self::Redis(redis) => redis.recover().await,
        }
    }

    /// Returns when [`Backend::renew`] should be called.
    pub(super) async fn renewal_due(&mut self) {
        match self {
            Self::Sqlite(_) => std::future::pending().await,
            Self::Postgres(postgres) => postgres.ping_due().await,
            Self::Redis(redis) => redis.renewal_due().await,
        }
    }

    /// Tells the database that this server is alive, and learns whether the database is.
    pub(super) async fn renew(&mut self) -> Result<(), NotCommitted> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(postgres) => postgres.ping().await,
            Self::Redis(redis) => redis.renew().await,
        }
    }

    /// Gives the records free for another server.
    pub(super) async fn close(self) {
        match self {
            Self::Sqlite(sqlite) => sqlite.close().await,
            Self::Postgres(postgres) => postgres.close().await,
            Self::Redis(redis) => redis.close().await,
        }
    }
}

/// Makes every change of a group inside the transaction that is open.
pub(super) async fn apply_all(
    connection: &mut Connection,
    group: &mut [Box<dyn PendingWrite>],
) -> Result<(), sqlx::Error> {
    for write in group {
        write.apply(connection).await?;
    }
    Ok(())
}

impl From<sqlx::Error> for NotCommitted {
    fn from(error: sqlx::Error) -> Self {
        Self::Statement(describe(&error))
    }
}

impl From<Failure> for NotCommitted {
    fn from(failure: Failure) -> Self {
        Self::Statement(failure.into())
    }
}
