//! The store in a Redis server: a working copy in `SQLite`, and every commit in Redis before it is one here.
//!
//! Reads and writes run on a private working copy, with the statements of every other store. Triggers note which rows
//! a transaction changed. Before it is committed, those rows go to Redis in one script, which Redis executes and logs
//! as a whole; so what was answered is in Redis, and a server that starts loads everything from there.
//!
//! One server owns a key prefix. It holds a lease that it renews, and a token (`fence`) that every script checks: a
//! server that was away while another one took over changes nothing any more. A connection that breaks in the middle
//! of a commit leaves its outcome open. After reconnecting, the token is changed first, so that a late script of the
//! old connection does nothing, and then the number of the last commit tells whether it happened. A Redis that lost
//! commits which were acknowledged, or everything, gets it all again from the working copy.

mod changes;
mod mirror;
mod rows;
mod scripts;

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::backend::{NotCommitted, Recovered, apply_all};
use super::connection::{Connection, Readers};
use super::failure::{Failure, describe};
use super::sqlite::Sqlite;
use super::writer::PendingWrite;
use crate::error::{Error, ErrorCode, Result};
use changes::Tables;
use mirror::{Mirror, Standing};

/// A server that is silent for this long has lost its lease.
const LEASE: Duration = Duration::from_secs(8);
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How often a starting server looks whether the lease of the one before is over.
const LEASE_CHECK_EVERY: Duration = Duration::from_millis(200);

/// The store below a key prefix, owned by this server.
pub(super) struct Redis {
    working: Sqlite,
    tables: Tables,
    mirror: Mirror,
    /// The number of the last commit that certainly happened.
    commits: i64,
    /// Whether the working copy has a transaction open whose outcome is to be learned from Redis.
    in_flight: bool,
    next_renewal: Instant,
}

impl Redis {
    /// Opens the store below `key_prefix`, waiting for the lease of a server that ended without a goodbye.
    pub(super) async fn open(url: &str, key_prefix: &str) -> Result<(Self, Readers)> {
        let mut mirror = Mirror::connect(url, key_prefix).await?;
        mirror.warn_of_weak_settings().await;
        let commits = acquire(&mut mirror, key_prefix).await?;
        let opened = Self::load(mirror, commits).await;
        opened.map_err(|error| Error {
            message: format!("cannot open the state store in Redis: {}", error.message),
            ..error
        })
    }

    /// One transaction for the group, in Redis and then here.
    pub(super) async fn commit(&mut self, group: &mut [Box<dyn PendingWrite>]) -> Result<(), NotCommitted> {
        let changed = match self.apply(group).await {
            Ok(changed) => changed,
            Err(error) => {
                self.roll_back().await;
                return Err(error);
            }
        };
        if changed.is_empty() {
            return self.commit_here().await;
        }
        let written = self.mirror.commit(self.commits + 1, &changed, LEASE, &self.tables).await;
        match written {
            Ok(()) => {
                self.commits += 1;
                self.next_renewal = Instant::now() + RENEW_EVERY;
                self.commit_here().await
            }
            Err(NotCommitted::Lost { error, uncertain }) => {
                self.in_flight = true;
                Err(NotCommitted::Lost { error, uncertain })
            }
            Err(error) => {
                self.roll_back().await;
                Err(error)
            }
        }
    }

    /// Connects again, makes sure that nobody else was here, and learns what became of the last commit.
    pub(super) async fn recover(&mut self) -> Result<Recovered, NotCommitted> {
        let standing = self.mirror.reconnect(LEASE).await?;
        let recovered = match standing {
            Standing::Owned { commits } if self.in_flight && commits == self.commits + 1 => Recovered::Committed,
            Standing::Owned { commits } if commits == self.commits => Recovered::NotCommitted,
            Standing::Owned { .. } | Standing::Empty => {
                self.finish_transaction(Recovered::NotCommitted).await?;
                self.rewrite().await?;
                Recovered::NotCommitted
            }
            Standing::Foreign => return Err(NotCommitted::Fenced(self.mirror.taken_over())),
        };
        self.finish_transaction(recovered).await?;
        self.next_renewal = Instant::now() + RENEW_EVERY;
        Ok(recovered)
    }

    /// Returns when the lease should be renewed.
    pub(super) async fn renewal_due(&self) {
        sleep_until(self.next_renewal).await;
    }

    /// Renews the lease.
    pub(super) async fn renew(&mut self) -> Result<(), NotCommitted> {
        self.next_renewal = Instant::now() + RENEW_EVERY;
        self.mirror.renew(LEASE).await
    }

    /// Gives the prefix free.
    pub(super) async fn close(mut self) {
        self.mirror.release().await;
        self.working.close().await;
    }

    async fn load(mut mirror: Mirror, commits: i64) -> Result<(Self, Readers)> {
        let (mut working, readers) = Sqlite::open_temporary().await?;
        let tables = Tables::of(&mut working.connection).await?;
        mirror.check_schema(tables.version).await?;
        working.connection.control("BEGIN IMMEDIATE").await.map_err(Failure::from)?;
        working.connection.control("PRAGMA defer_foreign_keys = ON").await.map_err(Failure::from)?;
        for table in &tables.all {
            let mut cursor = 0;
            loop {
                let (next, rows) = mirror.page(&table.name, cursor).await?;
                for row in rows {
                    table.insert(&mut working.connection, &row).await?;
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        working.connection.control("COMMIT").await.map_err(Failure::from)?;
        tables.watch(&mut working.connection).await?;
        let next_renewal = Instant::now();
        Ok((Self { working, tables, mirror, commits, in_flight: false, next_renewal }, readers))
    }

    async fn apply(&mut self, group: &mut [Box<dyn PendingWrite>]) -> Result<Vec<changes::Change>, NotCommitted> {
        self.working.connection.control("BEGIN IMMEDIATE").await?;
        apply_all(&mut self.working.connection, group).await?;
        Ok(self.tables.changed(&mut self.working.connection).await?)
    }

    /// Redis has it already. If it cannot be committed here, the copies differ, and only loading it again helps.
    async fn commit_here(&mut self) -> Result<(), NotCommitted> {
        let Err(error) = self.working.connection.control("COMMIT").await else { return Ok(()) };
        self.roll_back().await;
        let described = describe(&error);
        Err(NotCommitted::Fenced(
            Error::internal(format!("the working copy of the state store failed: {}", described.message))
                .hint("restart the server; Redis has everything that was acknowledged"),
        ))
    }

    async fn roll_back(&mut self) {
        if let Err(error) = self.working.connection.control("ROLLBACK").await {
            tracing::debug!(%error, "nothing to roll back");
        }
    }

    async fn finish_transaction(&mut self, recovered: Recovered) -> Result<(), NotCommitted> {
        if !std::mem::take(&mut self.in_flight) {
            return Ok(());
        }
        match recovered {
            Recovered::Committed => {
                self.commits += 1;
                self.commit_here().await
            }
            Recovered::NotCommitted => {
                self.roll_back().await;
                Ok(())
            }
        }
    }

    /// Gives Redis everything again, aside first, and then put in place at once.
    async fn rewrite(&mut self) -> Result<(), NotCommitted> {
        tracing::warn!("Redis has lost writes that it had acknowledged; it gets everything again");
        self.mirror.begin_rewrite(&self.tables).await?;
        for table in &self.tables.all {
            let mut page = 0;
            loop {
                let rows = table.rows(&mut self.working.connection, page).await?;
                if rows.is_empty() {
                    break;
                }
                self.mirror.rewrite_rows(&table.name, &rows).await?;
                page += 1;
            }
        }
        self.mirror.finish_rewrite(&self.tables, self.commits, LEASE).await
    }
}

/// Takes the lease, waiting as long as one that nobody renews can last; answers the number of the last commit.
async fn acquire(mirror: &mut Mirror, key_prefix: &str) -> Result<i64> {
    let deadline = Instant::now() + LEASE + Duration::from_secs(1);
    let mut waits = false;
    loop {
        if let Some(commits) = mirror.acquire(LEASE).await? {
            return Ok(commits);
        }
        if Instant::now() >= deadline {
            let text = format!("the state store below `{key_prefix}` in Redis is in use by another server");
            return Err(Error::new(ErrorCode::Conflict, text)
                .hint("stop that server, or give this one another `persistence.key_prefix`"));
        }
        if !std::mem::replace(&mut waits, true) {
            tracing::info!("waiting until the server that used the state store before has lost its lease");
        }
        sleep(LEASE_CHECK_EVERY).await;
    }
}

fn sqlite(connection: &mut Connection) -> Result<&mut sqlx::SqliteConnection, Failure> {
    match connection {
        Connection::Sqlite(connection) => Ok(connection),
        Connection::Postgres(_) => Err(Error::internal("the working copy is not in SQLite").into()),
    }
}
