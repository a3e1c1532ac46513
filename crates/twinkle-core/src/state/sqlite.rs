//! The store in a `SQLite` file: one server per file, and no file but ours.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection};
use tempfile::TempDir;

use super::backend::{NotCommitted, apply_all};
use super::connection::{Connection, Readers};
use super::failure::{describe, is_damage};
use super::writer::PendingWrite;
use crate::error::{Error, ErrorCode, Result};

/// `PRAGMA application_id` of our files: "TWKL".
const APPLICATION_ID: i64 = 0x5457_4B4C;
/// Read-only connections: enough for the cores of a small node, few enough to cost nothing.
const READERS: u32 = 4;
/// Files up to this size are checked from end to end when they are opened.
const CHECKED_BYTES: u64 = 64 << 20;

/// The store in a file, and the lock on it.
pub(super) struct Sqlite {
    pub(super) connection: Connection,
    /// Held as long as this server may write.
    lock: File,
    /// The folder of a store that is forgotten at the end.
    temporary: Option<TempDir>,
}

impl Sqlite {
    /// Opens the file `path`, making it and its folder when they are missing.
    pub(super) async fn open(path: &Path) -> Result<(Self, Readers)> {
        let connect = SqliteConnectOptions::new().synchronous(SqliteSynchronous::Full);
        Self::open_with(path, connect, None).await
    }

    /// A file in a private folder, never synced.
    pub(super) async fn open_temporary() -> Result<(Self, Readers)> {
        let folder = tempfile::Builder::new()
            .prefix("twinkle-state-")
            .tempdir()
            .map_err(|error| Error::internal(format!("no temporary folder: {error}")))?;
        let connect = SqliteConnectOptions::new().synchronous(SqliteSynchronous::Off);
        let path = folder.path().join("state.sqlite");
        Self::open_with(&path, connect, Some(folder)).await
    }

    /// One transaction for the group.
    ///
    /// The statements are our own, not sqlx's transaction object: `SQLite` ends a transaction by itself when
    /// the disk is full, and sqlx would count it as open for ever.
    pub(super) async fn commit(&mut self, group: &mut [Box<dyn PendingWrite>]) -> Result<(), NotCommitted> {
        let outcome = self.try_commit(group).await;
        if outcome.is_err()
            && let Err(error) = self.connection.control("ROLLBACK").await
        {
            tracing::debug!(%error, "nothing to roll back");
        }
        Ok(outcome?)
    }

    async fn try_commit(&mut self, group: &mut [Box<dyn PendingWrite>]) -> Result<(), sqlx::Error> {
        self.connection.control("BEGIN IMMEDIATE").await?;
        apply_all(&mut self.connection, group).await?;
        self.connection.control("COMMIT").await
    }

    /// Gives the file and its lock back.
    pub(super) async fn close(self) {
        self.connection.close().await;
        drop(self.lock);
        drop(self.temporary);
    }

    async fn open_with(
        path: &Path,
        connect: SqliteConnectOptions,
        temporary: Option<TempDir>,
    ) -> Result<(Self, Readers)> {
        let lock = lock_file(path)?;
        let connect = connect
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(5))
            .disable_statement_logging();
        let mut writer = connect.connect().await.map_err(|error| cannot_open(path, &error))?;
        check_origin(&mut writer, path).await?;
        check_pages(&mut writer, path).await?;
        migrate(&mut writer, path).await?;

        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .min_connections(READERS)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(connect.read_only(true).create_if_missing(false))
            .await
            .map_err(|error| cannot_open(path, &error))?;
        Ok((Self { connection: Connection::Sqlite(writer), lock, temporary }, Readers::Sqlite(readers)))
    }
}

/// Takes the lock beside the store; the operating system gives it back when the process ends.
fn lock_file(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|error| Error::invalid(format!("cannot make the state folder `{}`: {error}", folder.display())))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|error| Error::invalid(format!("cannot open `{}`: {error}", lock_path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            ErrorCode::Conflict,
            format!("the state store `{}` is in use by another server", path.display()),
        )
        .hint("stop that server, or give this one another `persistence.file_path`")),
        Err(TryLockError::Error(error)) => {
            Err(Error::invalid(format!("cannot lock `{}`: {error}", lock_path.display()))
                .hint("put the state store on a local file system"))
        }
    }
}

/// A database with tables that we did not make is left alone.
async fn check_origin(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    let application: i64 = sqlx::query_scalar("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| cannot_open(path, &error))?;
    if application == APPLICATION_ID {
        return Ok(());
    }
    let tables: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_schema")
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| cannot_open(path, &error))?;
    if tables > 0 {
        return Err(Error::invalid(format!("`{}` is a database of another program", path.display()))
            .hint("name a file of its own for the state store"));
    }
    sqlx::raw_sql("PRAGMA application_id = 0x54574B4C")
        .execute(connection)
        .await
        .map_err(|error| cannot_open(path, &error))?;
    Ok(())
}

/// Reads a file of moderate size from end to end, so that damage is found now and not in the middle of a request.
async fn check_pages(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if size > CHECKED_BYTES {
        return Ok(());
    }
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(connection)
        .await
        .map_err(|error| cannot_open(path, &error))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(damaged(path, &verdict))
}

async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    match sqlx::migrate!("./migrations/sqlite").run(connection).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(version) | MigrateError::VersionTooNew(version, _)) => Err(Error::invalid(
            format!("the state store `{}` was written by a newer version (schema {version})", path.display()),
        )
        .hint("start that version, or name another file")),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => Err(cannot_open(path, &error)),
        Err(error) => {
            Err(Error::internal(format!("the state store `{}` could not be upgraded: {error}", path.display())))
        }
    }
}

fn cannot_open(path: &Path, error: &sqlx::Error) -> Error {
    if is_damage(error) {
        return damaged(path, &error.to_string());
    }
    let mut described = describe(error);
    described.message = format!("cannot open the state store `{}`: {}", path.display(), described.message);
    described
}

fn damaged(path: &Path, detail: &str) -> Error {
    Error::internal(format!("`{}` is not a state store, or it is damaged: {detail}", path.display()))
        .hint("restore it from a backup, or move it away to start with an empty one")
}
