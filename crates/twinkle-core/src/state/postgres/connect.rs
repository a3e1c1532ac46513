//! Connections as the store needs them.

use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgConnection, PgPool, Row as _};

use super::super::failure::describe;
use crate::error::{Error, Result};

/// The schema of a server without a `key_prefix`.
const DEFAULT_SCHEMA: &str = "twinkle";
/// `PostgreSQL` cuts longer names off.
const LONGEST_NAME: usize = 63;
/// Connections that only read.
const READERS: u32 = 4;
/// How long a read waits for a connection while the database is away.
const READER_WAIT: Duration = Duration::from_secs(5);

/// The schema that `key_prefix` names: the prefix without the separator that Redis keys end with.
pub(super) fn schema_name(key_prefix: &str) -> Result<String> {
    let name = key_prefix.trim_end_matches([':', '.', '/', '_', '-']);
    if name.is_empty() {
        return Ok(DEFAULT_SCHEMA.to_owned());
    }
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if !is_plain || name.len() > LONGEST_NAME || name.starts_with("pg_") {
        return Err(Error::invalid(format!("`persistence.key_prefix` `{key_prefix}` cannot name a schema"))
            .hint(format!("use letters, digits, `_` and `-`, at most {LONGEST_NAME}, not beginning with `pg_`")));
    }
    Ok(name.to_owned())
}

/// Reads the URL; its text stays out of errors, because it may hold a password.
pub(super) fn options(url: &str) -> Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url).map_err(|error| {
        Error::invalid(format!("`persistence.postgres_url` cannot be read: {error}"))
            .hint("write `postgres://user:password@host:5432/database`")
    })?;
    Ok(options.application_name("twinkle").disable_statement_logging())
}

/// Makes the connection work in the schema, and makes a commit mean what it says.
///
/// The settings for dead peers let the database give the lock free within half a minute when this machine vanishes.
pub(super) async fn prepare_writer(connection: &mut PgConnection, schema: &str) -> sqlx::Result<()> {
    let exists: bool = sqlx::query_scalar("SELECT to_regnamespace(quote_ident($1)) IS NOT NULL")
        .bind(schema)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        let statement = format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
    }
    let statements = format!(
        "SET search_path TO \"{schema}\";
         SET idle_in_transaction_session_timeout = '60s';
         SET lock_timeout = '30s';
         SET tcp_keepalives_idle = 10;
         SET tcp_keepalives_interval = 5;
         SET tcp_keepalives_count = 3;
         SELECT set_config('synchronous_commit', 'on', false)
         WHERE current_setting('synchronous_commit') IN ('off', 'local');"
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await.map(drop)
}

/// A few connections that only read, made again when they break.
pub(super) async fn readers(options: &PgConnectOptions, schema: &str) -> sqlx::Result<PgPool> {
    let statements = format!("SET search_path TO \"{schema}\"; SET default_transaction_read_only = on;");
    PgPoolOptions::new()
        .max_connections(READERS)
        .min_connections(1)
        .acquire_timeout(READER_WAIT)
        .max_lifetime(None)
        .after_connect(move |connection, _| {
            let statements = statements.clone();
            Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await.map(drop) })
        })
        .connect_with(options.clone())
        .await
}

/// Makes or upgrades the tables. A schema with tables of somebody else is left alone.
pub(super) async fn migrate(connection: &mut PgConnection, schema: &str) -> Result<()> {
    let foreign: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident($1)))
         AND to_regclass(quote_ident($1) || '.ownership') IS NULL
         AND to_regclass(quote_ident($1) || '._sqlx_migrations') IS NULL",
    )
    .bind(schema)
    .fetch_one(&mut *connection)
    .await
    .map_err(|error| describe(&error))?;
    if foreign {
        return Err(Error::invalid(format!("schema `{schema}` belongs to another program"))
            .hint("give the state store a schema of its own with `persistence.key_prefix`"));
    }
    let mut migrator = sqlx::migrate!("./migrations/postgres");
    // The schema's own lock is held already; sqlx's would be one for the whole database.
    migrator.set_locking(false);
    match migrator.run(connection).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(version) | MigrateError::VersionTooNew(version, _)) => Err(Error::invalid(
            format!("the state store in schema `{schema}` was written by a newer version (schema {version})"),
        )
        .hint("start that version, or name another schema with `persistence.key_prefix`")),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => Err(describe(&error)),
        Err(error) => {
            Err(Error::internal(format!("the state store in schema `{schema}` could not be upgraded: {error}")))
        }
    }
}

/// A database that may forget commits is told to the operator, not refused: it may be a trial.
pub(super) async fn warn_of_weak_settings(connection: &mut PgConnection) {
    for setting in ["fsync", "full_page_writes"] {
        let value: sqlx::Result<String> =
            sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(&mut *connection).await;
        if value.is_ok_and(|value| value == "off") {
            tracing::warn!(
                "the PostgreSQL server runs with `{setting} = off`: a crash of its machine can lose what was acknowledged"
            );
        }
    }
}

/// Names the server in an error, without the password.
pub(super) fn cannot_open(options: &PgConnectOptions, schema: &str, error: &sqlx::Error) -> Error {
    let place = options.get_socket().map_or_else(
        || format!("{}:{}", options.get_host(), options.get_port()),
        |socket| socket.display().to_string(),
    );
    let mut described = describe(error);
    described.message =
        format!("cannot open the state store in schema `{schema}` of PostgreSQL at `{place}`: {}", described.message);
    described
}

/// A session of the database, so that exactly this one can be ended.
#[derive(Clone, Debug)]
pub(super) struct Session {
    process: i32,
    began: String,
}

impl Session {
    /// The session of that connection.
    pub(super) async fn of(connection: &mut PgConnection) -> sqlx::Result<Self> {
        let row = sqlx::query("SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()")
            .fetch_one(connection)
            .await?;
        Ok(Self { process: row.try_get(0)?, began: row.try_get(1)? })
    }

    /// Ends the session if the database still has it: it may hold the lock, or be about to commit.
    pub(super) async fn end(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2",
        )
        .bind(self.process)
        .bind(self.began.as_str())
        .execute(connection)
        .await
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_names_a_schema_without_its_separator() {
        assert_eq!(schema_name("").unwrap(), "twinkle");
        assert_eq!(schema_name("prod:").unwrap(), "prod");
        assert_eq!(schema_name("Team-1_blue").unwrap(), "Team-1_blue");
        for unfit in ["a\"b", "a b", "pg_catalog", "ä", &"x".repeat(64)] {
            assert!(schema_name(unfit).is_err(), "{unfit}");
        }
    }

    #[test]
    fn an_unreadable_url_does_not_show_its_password() {
        let error = options("postgres://user:secret@host:port/x").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
