//! What `SQLite` says, in words for an operator.

use crate::error::{Error, ErrorCode};

/// Primary result codes of `SQLite` (<https://www.sqlite.org/rescode.html>).
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;

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

/// The primary result code, when the error came from `SQLite` itself.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & 0xff)
}

/// Whether the file is no database, or a broken one.
pub(super) fn is_damage(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(SQLITE_CORRUPT | SQLITE_NOTADB))
}

/// The error a client or operator reads.
pub(super) fn describe(error: &sqlx::Error) -> Error {
    match primary_code(error) {
        Some(SQLITE_FULL) => Error::new(ErrorCode::ResourceExhausted, "the disk of the state store is full")
            .hint("free some space; nothing that was acknowledged is lost"),
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => {
            Error::internal(format!("the state store is damaged: {error}")).hint("restore it from a backup")
        }
        _ => Error::internal(format!("the state store failed: {error}")),
    }
}

/// The answer for a write that was being committed when the database went away, by a server that stops meanwhile.
pub(super) fn outcome_unknown() -> Error {
    Error::new(ErrorCode::Draining, "whether this was stored will be known when the database is back")
}

/// The answer when the writing task has ended.
pub(super) fn closed() -> Error {
    Error::new(ErrorCode::Draining, "the state store is closed")
}
