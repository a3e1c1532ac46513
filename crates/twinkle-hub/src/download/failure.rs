//! Why something could not be had from a hub.

use std::io;
use std::path::Path;

use reqwest::StatusCode;
use twinkle_core::{Error, ErrorCode};

/// Why a request failed for good.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The hub's answer, which asking again would not change.
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its reason, if it gave one.
        reason: Option<String>,
    },
    /// No usable answer after all attempts.
    Unreachable(String),
    /// The hub's answer is there and wrong, or the machine cannot hold it.
    Fatal(Error),
}

impl Failure {
    /// In a few words.
    pub(crate) fn in_words(&self) -> String {
        match self {
            Self::Refused { status, reason: Some(reason) } => format!("{}: {reason}", status.as_u16()),
            Self::Refused { status, reason: None } => {
                let known = status.canonical_reason().unwrap_or("refused").to_lowercase();
                format!("{}: {known}", status.as_u16())
            }
            Self::Unreachable(why) => why.clone(),
            Self::Fatal(error) => error.to_string(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// A file that could not be written, in a sentence that says what to do.
pub(crate) fn file_error(doing: &str, path: &Path, error: &io::Error) -> Error {
    let place = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(ErrorCode::ResourceExhausted, format!("cannot {doing} `{place}`: the disk is full"))
                .hint("free some space, or put the cache on another disk with `HF_HOME` or `MODELSCOPE_CACHE`; what is there is kept")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::new(ErrorCode::ResourceExhausted, format!("cannot {doing} `{place}`: {error}"))
                .hint("make it writable for this user, or put the cache elsewhere with `HF_HOME` or `MODELSCOPE_CACHE`")
        }
        _ => Error::internal(format!("cannot {doing} `{place}`: {error}")),
    }
}

/// An error and what caused it, in one line: the causes hold what matters, such as `connection refused`.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let told = source.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        cause = source.source();
    }
    text
}
