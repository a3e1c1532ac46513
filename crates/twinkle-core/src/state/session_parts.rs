//! What a session may have several of, up to a bound: made while the session is open, and gone with it.

use super::connection::Connection;
use super::failure::Failure;
use super::sessions::require_open_session;
use super::sql::query;
use crate::error::{Error, ErrorCode};
use crate::ids::{SessionId, TenantId};

/// A table with rows of sessions.
pub(super) struct SessionPart {
    /// What its rows are called.
    plural: &'static str,
    /// Rows of one session.
    pub(super) most: i64,
    /// What to do in a session that has as many.
    hint: &'static str,
    /// How many `total` a session (`$1`) has besides the one of that name (`$2`).
    count_others: &'static str,
    /// Forgets those of a session (`$1`).
    forget: &'static str,
}

pub(super) static ADAPTERS: SessionPart = SessionPart {
    plural: "adapters",
    most: 256,
    hint: "open a new session",
    count_others: "SELECT COUNT(*) AS total FROM adapters WHERE session = $1 AND name <> $2",
    forget: "DELETE FROM adapters WHERE session = $1",
};

pub(super) static CUSTOM_LOSSES: SessionPart = SessionPart {
    plural: "custom losses",
    most: 256,
    hint: "reuse a loss, or open a new session",
    count_others: "SELECT COUNT(*) AS total FROM custom_losses WHERE session = $1 AND id <> $2",
    forget: "DELETE FROM custom_losses WHERE session = $1",
};

impl SessionPart {
    /// Refuses unless the tenant's session is open and may have the one of this name.
    pub(super) async fn require_room(
        &self,
        connection: &mut Connection,
        (tenant, session): (&TenantId, &SessionId),
        name: &str,
    ) -> Result<(), Failure> {
        // A session is one tenant's, and so is everything in it.
        require_open_session(connection, tenant, session).await?;
        let others: i64 =
            query(self.count_others).bind(session.as_str()).bind(name).fetch_value("total", &mut *connection).await?;
        if others < self.most {
            return Ok(());
        }
        let text = format!("session `{session}` has {} {}, as many as it may", self.most, self.plural);
        Err(Error::new(ErrorCode::LimitReached, text).hint(self.hint).into())
    }
}

/// Forgets everything that a session had.
pub(super) async fn forget(connection: &mut Connection, session: &str) -> Result<(), Failure> {
    for part in [&ADAPTERS, &CUSTOM_LOSSES] {
        query(part.forget).bind(session).execute(&mut *connection).await?;
    }
    Ok(())
}
