//! What can go wrong between here and the server.

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not succeed. What is worth retrying has been retried before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument that no server would take.
    #[error("{0}")]
    InvalidArgument(String),
    /// The server could not be reached, or the connection broke again and again.
    #[error("cannot reach `{url}`")]
    Connection {
        /// What was asked.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The server refused the request.
    #[error("the server answered {status}: {message}")]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// The request was accepted, and its execution failed. The run is as it was before.
    #[error("operation `{request_id}` failed: {message}")]
    Failed {
        /// Whose fault it is: `user`, `server` or `unknown`.
        category: String,
        /// The server's words.
        message: String,
        /// Which operation.
        request_id: String,
    },
    /// The server no longer knows the operation; its result is lost.
    #[error("operation `{request_id}` expired on the server")]
    Expired {
        /// Which operation.
        request_id: String,
    },
    /// A file could not be written.
    #[error("cannot write `{path}`")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The async runtime shut down before the operation's result was there.
    #[error("the async runtime is shutting down")]
    ShuttingDown,
    /// The server's answer is not what the protocol promises.
    #[error("the server's answer to `{route}` cannot be read: {reason}")]
    Malformed {
        /// What was asked.
        route: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl Error {
    /// Whether repeating the call unchanged can never succeed.
    #[must_use]
    pub fn is_users_fault(&self) -> bool {
        match self {
            Self::InvalidArgument(_) => true,
            Self::Rejected { status, .. } => (400..500).contains(status) && ![408, 409, 429].contains(status),
            Self::Failed { category, .. } => category == "user",
            Self::Connection { .. }
            | Self::Expired { .. }
            | Self::File { .. }
            | Self::ShuttingDown
            | Self::Malformed { .. } => false,
        }
    }

    /// Whether what was asked for is not there, or is another's: servers do not tell the two apart.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Rejected { status: 404, .. })
    }

    pub(crate) fn malformed(route: &str, reason: &dyn std::fmt::Display) -> Self {
        Self::Malformed { route: route.to_owned(), reason: reason.to_string() }
    }
}
