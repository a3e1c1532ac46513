//! One error type for everything a client or an operator can be told.
//!
//! The code is stable: tests, dashboards and the protocol fronts rely on it. The wording is not.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Short for results whose error a client will read.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Defines the codes once: the enum, the list of all, and what each means for the documentation.
macro_rules! codes {
    ($(#[doc = $meaning:literal] $name:ident,)*) => {
        /// What kind of failure it is; decides the HTTP status and whether a client should try again.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode {
            $(#[doc = $meaning] $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// What it means, in a sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning.trim(),)*
                }
            }
        }
    };
}

codes! {
    /// The request is wrong and will stay wrong.
    InvalidArgument,
    /// The request is right, but this server cannot do it.
    Unsupported,
    /// No or an unknown credential.
    Unauthenticated,
    /// Not there, or not yours: the two are not told apart.
    NotFound,
    /// It was there and is finished.
    Gone,
    /// The same name or number was used for something else.
    Conflict,
    /// Larger than a stated limit.
    TooLarge,
    /// The tenant has as many of something as it may have at once; one must end before another can begin.
    LimitReached,
    /// Over a tenant's quota; try again after the stated time.
    QuotaExceeded,
    /// A queue is full; try again.
    Overloaded,
    /// It ran longer than it may and was stopped.
    TimedOut,
    /// The node is shutting down; try another or later.
    Draining,
    /// An engine failed before this was done, and starts again: nothing is decided, ask again.
    Interrupted,
    /// The disk or another resource of the node is used up.
    ResourceExhausted,
    /// A defect or a failed device: not the client's fault.
    Internal,
}

impl ErrorCode {
    /// Whether the client caused it and would cause it again.
    #[must_use]
    pub const fn is_users_fault(self) -> bool {
        matches!(
            self,
            Self::InvalidArgument
                | Self::Unsupported
                | Self::Unauthenticated
                | Self::NotFound
                | Self::Gone
                | Self::Conflict
                | Self::TooLarge
                | Self::LimitReached
        )
    }
}

/// An error with a stable code, a text a person can act on, and perhaps a hint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Error {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// What happened, lowercase, without a trailing full stop.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When trying again makes sense, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Error {
    /// An error with this code and text.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, retry_after_ms: None }
    }

    /// A permanent mistake in the request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// Something this server cannot do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unsupported, message)
    }

    /// Not there, or not yours.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// A defect or a failed device.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds when to try again, rounded up to a millisecond: never too early.
    #[must_use]
    pub fn retry_after(mut self, wait: std::time::Duration) -> Self {
        self.retry_after_ms = Some(u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(formatter, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// The candidate nearest to `word`, if one is near enough to be a likely misspelling.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(word.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean …? known …: …`, the hint for an unknown name out of a closed list.
#[must_use]
pub fn suggestion(word: &str, what: &str, known: &[&str]) -> String {
    let list = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match nearest(word, known.iter().copied()) {
        Some(candidate) => format!("did you mean `{candidate}`? known {what}: {list}"),
        None => format!("known {what}: {list}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_finds_its_word_and_nonsense_finds_none() {
        assert_eq!(nearest("rnaks", ["name", "ranks", "device_type"]), Some("ranks"));
        assert_eq!(nearest("cross_entrpy", ["cross_entropy", "ppo"]), Some("cross_entropy"));
        assert_eq!(nearest("zzzzzz", ["name", "ranks"]), None);
    }
}
