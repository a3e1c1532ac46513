//! What the databases say, in words for an operator.

use std::time::Duration;

use crate::error::{Error, ErrorCode};

/// Primary result codes of `SQLite` (<https://www.sqlite.org/rescode.html>).
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;
/// When a client may try again while the database is away.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Why a write did not happen.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request was refused before it changed anything.
    Refused(Error),
    /// `SQLite` failed; what the write had changed so far must be rolled back.
    Database(sqlx::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => error,
            Failure::Database(error) => describe(&error),
        }
    }
}

/// What went wrong, as far as it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    DiskFull,
    Damage,
    /// The connection broke, or the database is starting or ending.
    Lost,
    /// It may be right later: too many connections, or a replica that cannot write.
    Busy,
    Text,
    Permission,
    Other,
}

fn cause(error: &sqlx::Error) -> Cause {
    let database = match error {
        sqlx::Error::Database(database) => database,
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) => {
            return Cause::Lost;
        }
        sqlx::Error::PoolTimedOut => return Cause::Busy,
        _ => return Cause::Other,
    };
    let code = database.code().unwrap_or_default();
    if database.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
        return match code.parse::<i32>().map(|extended| extended & 0xff) {
            Ok(SQLITE_FULL) => Cause::DiskFull,
            Ok(SQLITE_CORRUPT | SQLITE_NOTADB) => Cause::Damage,
            _ => Cause::Other,
        };
    }
    // <https://www.postgresql.org/docs/current/errcodes-appendix.html>
    match code.as_ref() {
        "53100" => Cause::DiskFull,
        "XX001" | "XX002" => Cause::Damage,
        "53300" | "25006" | "53200" => Cause::Busy,
        "22021" => Cause::Text,
        "42501" => Cause::Permission,
        code if code.starts_with("08") || code.starts_with("57P") || code == "25P03" => Cause::Lost,
        _ => Cause::Other,
    }
}

/// Whether the file is no database, or a broken one.
pub(super) fn is_damage(error: &sqlx::Error) -> bool {
    cause(error) == Cause::Damage
}

/// Whether the connection broke: what it was doing may or may not have happened.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    cause(error) == Cause::Lost
}

/// The error a client or operator reads.
pub(super) fn describe(error: &sqlx::Error) -> Error {
    match cause(error) {
        Cause::DiskFull => Error::new(ErrorCode::ResourceExhausted, "the disk of the state store is full")
            .hint("free some space; nothing that was acknowledged is lost"),
        Cause::Damage => {
            Error::internal(format!("the state store is damaged: {error}")).hint("restore it from a backup")
        }
        Cause::Lost | Cause::Busy => unreachable(error),
        Cause::Text => Error::invalid("a text with a NUL character cannot be stored"),
        Cause::Permission => Error::invalid(format!("the state store's user may not do this: {error}"))
            .hint("the user needs its own schema, or the right to make one in the database"),
        Cause::Other => Error::internal(format!("the state store failed: {error}")),
    }
}

/// The answer while the database is away.
pub(super) fn unreachable(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Overloaded, format!("the state store cannot be reached: {error}")).retry_after(TRY_AGAIN)
}

/// The answer for a write that was being committed when the database went away.
pub(super) fn outcome_unknown() -> Error {
    let text = "the state store cannot be reached, and whether this was stored will be known when it is back";
    Error::new(ErrorCode::Overloaded, text).retry_after(TRY_AGAIN)
}

/// The answer when the writing task has ended.
pub(super) fn closed() -> Error {
    Error::new(ErrorCode::Draining, "the state store is closed")
}
