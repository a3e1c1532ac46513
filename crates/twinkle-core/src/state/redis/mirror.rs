//! The connection to Redis and what is asked of it.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Script, ScriptInvocation};
use uuid::Uuid;

use super::super::backend::NotCommitted;
use super::super::failure::unreachable;
use super::changes::{Change, Tables};
use super::scripts::{ACQUIRE, COMMIT, REJOIN, RELEASE, RENEW, REPLACE};
use crate::error::{Error, ErrorCode, Result};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long Redis may take for one script, its sync to the disk included.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Rows that are asked for at once.
const PAGE: usize = 500;

/// Redis below one prefix.
pub(super) struct Mirror {
    client: Client,
    connection: MultiplexedConnection,
    prefix: String,
    /// Tells this server's scripts from those of any other, and from those before an outage.
    token: String,
    scripts: Scripts,
}

struct Scripts {
    acquire: Script,
    commit: Script,
    renew: Script,
    rejoin: Script,
    replace: Script,
    release: Script,
}

/// What Redis knows after an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// This server still owns the prefix; the number of the last commit that Redis has.
    Owned { commits: i64 },
    /// Redis has nothing any more.
    Empty,
    /// Another server has taken over.
    Foreign,
}

impl Mirror {
    /// Connects; the URL stays out of errors, because it may hold a password.
    pub(super) async fn connect(url: &str, key_prefix: &str) -> Result<Self> {
        let client = Client::open(url).map_err(|error| {
            let text = format!("`persistence.redis_url` cannot be used: {}", error.category());
            Error::invalid(text).hint("write `redis://user:password@host:6379/0`; TLS (`rediss://`) is not supported")
        })?;
        let connection = connect(&client).await.map_err(|error| cannot_open(&error))?;
        let scripts = Scripts {
            acquire: Script::new(ACQUIRE),
            commit: Script::new(COMMIT),
            renew: Script::new(RENEW),
            rejoin: Script::new(REJOIN),
            replace: Script::new(REPLACE),
            release: Script::new(RELEASE),
        };
        let prefix = format!("{key_prefix}twinkle:");
        Ok(Self { client, connection, prefix, token: Uuid::new_v4().to_string(), scripts })
    }

    /// Takes the lease; `None` while somebody has it. Answers the number of the last commit.
    pub(super) async fn acquire(&mut self, lease: Duration) -> Result<Option<i64>> {
        let mut script = self.start(&self.scripts.acquire);
        script.arg(&self.token).arg(milliseconds(lease));
        script.invoke_async(&mut self.connection).await.map_err(|error| cannot_open(&error))
    }

    /// Refuses what a newer version wrote, and notes this version.
    pub(super) async fn check_schema(&mut self, version: i64) -> Result<()> {
        let key = self.key("schema");
        let stored: Option<i64> =
            redis::cmd("GET").arg(&key).query_async(&mut self.connection).await.map_err(|error| cannot_open(&error))?;
        if let Some(stored) = stored.filter(|stored| *stored > version) {
            return Err(Error::invalid(format!("it was written by a newer version (schema {stored})"))
                .hint("start that version, or use another `persistence.key_prefix`"));
        }
        redis::cmd("SET")
            .arg(&key)
            .arg(version)
            .query_async::<()>(&mut self.connection)
            .await
            .map_err(|error| cannot_open(&error))
    }

    /// Some rows of a table, and where to go on; 0 is the beginning and the end. A row may come twice.
    pub(super) async fn page(&mut self, table: &str, cursor: u64) -> Result<(u64, Vec<Vec<u8>>)> {
        let (next, flat): (u64, Vec<Vec<u8>>) = redis::cmd("HSCAN")
            .arg(self.key(table))
            .arg(cursor)
            .arg("COUNT")
            .arg(PAGE)
            .query_async(&mut self.connection)
            .await
            .map_err(|error| cannot_open(&error))?;
        Ok((next, flat.into_iter().skip(1).step_by(2).collect()))
    }

    /// Writes a commit's rows and its number, all or nothing.
    pub(super) async fn commit(
        &mut self,
        number: i64,
        changes: &[Change],
        lease: Duration,
        tables: &Tables,
    ) -> Result<(), NotCommitted> {
        let mut script = self.start(&self.scripts.commit);
        for table in &tables.all {
            script.key(self.key(&table.name));
        }
        script.arg(&self.token).arg(milliseconds(lease)).arg(number);
        for change in changes {
            // Keys are counted from 1, and three come before the tables.
            let key = change.table + 4;
            match &change.row {
                Some(row) => script.arg("S").arg(key).arg(&change.field).arg(row.as_slice()),
                None => script.arg("D").arg(key).arg(&change.field),
            };
        }
        let owned: i64 = script.invoke_async(&mut self.connection).await.map_err(|error| not_committed(&error))?;
        self.require_ownership(owned)
    }

    /// Renews the lease.
    pub(super) async fn renew(&mut self, lease: Duration) -> Result<(), NotCommitted> {
        let mut script = self.start(&self.scripts.renew);
        script.arg(&self.token).arg(milliseconds(lease));
        let owned: i64 = script.invoke_async(&mut self.connection).await.map_err(|error| lost(&error))?;
        self.require_ownership(owned)
    }

    /// Connects again under a new token.
    pub(super) async fn reconnect(&mut self, lease: Duration) -> Result<Standing, NotCommitted> {
        self.connection = connect(&self.client).await.map_err(|error| lost(&error))?;
        let fresh = Uuid::new_v4().to_string();
        let mut script = self.start(&self.scripts.rejoin);
        script.arg(&self.token).arg(&fresh).arg(milliseconds(lease));
        let answer: i64 = script.invoke_async(&mut self.connection).await.map_err(|error| lost(&error))?;
        if answer != -1 {
            self.token = fresh;
        }
        Ok(match answer {
            -1 => Standing::Foreign,
            -2 => Standing::Empty,
            commits => Standing::Owned { commits },
        })
    }

    /// Gives the lease back; a Redis that is away will forget it by itself.
    pub(super) async fn release(&mut self) {
        let mut script = self.start(&self.scripts.release);
        script.arg(&self.token);
        if let Err(error) = script.invoke_async::<i64>(&mut self.connection).await {
            tracing::debug!(%error, "the lease in Redis was not given back");
        }
    }

    /// Removes what an interrupted rewrite left aside.
    pub(super) async fn begin_rewrite(&mut self, tables: &Tables) -> Result<(), NotCommitted> {
        let mut command = redis::cmd("DEL");
        for table in &tables.all {
            command.arg(self.aside(&table.name));
        }
        command.query_async::<()>(&mut self.connection).await.map_err(|error| lost(&error))
    }

    /// Writes rows aside.
    pub(super) async fn rewrite_rows(&mut self, table: &str, rows: &[(String, Vec<u8>)]) -> Result<(), NotCommitted> {
        let mut command = redis::cmd("HSET");
        command.arg(self.aside(table));
        for (field, row) in rows {
            command.arg(field).arg(row.as_slice());
        }
        command.query_async::<()>(&mut self.connection).await.map_err(|error| lost(&error))
    }

    /// Puts everything that is aside in place.
    pub(super) async fn finish_rewrite(
        &mut self,
        tables: &Tables,
        commits: i64,
        lease: Duration,
    ) -> Result<(), NotCommitted> {
        let mut script = self.start(&self.scripts.replace);
        script.key(self.key("schema"));
        for table in &tables.all {
            script.key(self.key(&table.name)).key(self.aside(&table.name));
        }
        script.arg(&self.token).arg(milliseconds(lease)).arg(commits).arg(tables.version);
        let owned: i64 = script.invoke_async(&mut self.connection).await.map_err(|error| lost(&error))?;
        self.require_ownership(owned)
    }

    /// A Redis that may forget writes is told to the operator, not refused: it may be a trial.
    pub(super) async fn warn_of_weak_settings(&mut self) {
        for (setting, safe) in [("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")] {
            let found: redis::RedisResult<Vec<String>> =
                redis::cmd("CONFIG").arg("GET").arg(setting).query_async(&mut self.connection).await;
            match found.as_deref() {
                Ok([_, value]) if value == safe => {}
                Ok([_, value]) => tracing::warn!(
                    "Redis runs with `{setting} {value}`: acknowledged writes are safe only with `{setting} {safe}`"
                ),
                _ => tracing::warn!("Redis does not tell its `{setting}`; acknowledged writes are safe with `{safe}`"),
            }
        }
    }

    /// The answer of a server that is not the owner any more.
    pub(super) fn taken_over(&self) -> Error {
        let text = format!("another server has taken over the state store below `{}` in Redis", self.prefix);
        Error::new(ErrorCode::Conflict, text)
            .hint("one server works below a prefix at a time; give each its own `persistence.key_prefix`")
    }

    fn start<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut script = script.prepare_invoke();
        script.key(self.key("fence")).key(self.key("owner")).key(self.key("commits"));
        script
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn aside(&self, table: &str) -> String {
        format!("{}rewrite:{table}", self.prefix)
    }

    /// Reads the answer of a script that checks the token.
    fn require_ownership(&self, owned: i64) -> Result<(), NotCommitted> {
        match owned {
            1 => Ok(()),
            -1 => Err(NotCommitted::Lost { error: unreachable("Redis has lost everything"), uncertain: false }),
            _ => Err(NotCommitted::Fenced(self.taken_over())),
        }
    }
}

async fn connect(client: &Client) -> redis::RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_LIMIT))
        .set_response_timeout(Some(ANSWER_LIMIT));
    client.get_multiplexed_async_connection_with_config(&config).await
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A commit that Redis answered with an error did not happen; without an answer, nobody knows.
fn not_committed(error: &RedisError) -> NotCommitted {
    match error.code() {
        Some("OOM" | "MISCONF") => NotCommitted::Refused(
            Error::new(ErrorCode::ResourceExhausted, format!("Redis takes no more writes: {error}"))
                .hint("give Redis more memory or disk; nothing that was acknowledged is lost"),
        ),
        Some(_) => lost(error),
        None => NotCommitted::Lost { error: unreachable(error), uncertain: true },
    }
}

fn lost(error: &RedisError) -> NotCommitted {
    NotCommitted::Lost { error: unreachable(error), uncertain: false }
}

fn cannot_open(error: &RedisError) -> Error {
    unreachable(error).hint("check `persistence.redis_url` and whether Redis runs")
}
