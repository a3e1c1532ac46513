//! Sessions of clients.

use jiff::Timestamp;

use super::StateStore;
use super::codec::{from_blob, from_nanoseconds, now, to_blob, to_nanoseconds};
use super::connection::Connection;
use super::failure::Failure;
use super::sql::{Row, query};
use super::writer::Write;
use crate::call::{ClientEnd, SessionRecord};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{SessionId, TenantId};

impl StateStore {
    /// Keeps a new session.
    pub async fn create_session(&self, session: &SessionRecord) -> Result<()> {
        self.writer.write(CreateSession(session.clone())).await
    }

    /// The tenant's session of that name.
    pub async fn session(&self, tenant: &TenantId, session: &SessionId) -> Result<SessionRecord> {
        let row = query("SELECT * FROM sessions WHERE id = $1 AND tenant = $2")
            .bind(session.as_str())
            .bind(tenant.as_str())
            .fetch_optional(&self.readers)
            .await?
            .ok_or_else(|| no_session(session))?;
        read_session(&row)
    }

    /// Notes that the session's client is alive. A finished session is [`ErrorCode::Gone`].
    pub async fn touch_session(&self, tenant: &TenantId, session: &SessionId) -> Result<()> {
        self.writer.write(TouchSession { tenant: tenant.clone(), session: session.clone() }).await
    }

    /// Ends a session; ending it again changes nothing.
    pub async fn finish_session(&self, tenant: &TenantId, session: &SessionId) -> Result<()> {
        self.finish_session_with(tenant, session, None).await
    }

    /// Ends a session with what its client says about it; the first word is kept.
    pub async fn finish_session_with(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        end: Option<ClientEnd>,
    ) -> Result<()> {
        self.writer.write(FinishSession { tenant: tenant.clone(), session: session.clone(), end }).await
    }

    /// Files the tenant's session, and with it all it has, under a project.
    pub async fn assign_project(&self, tenant: &TenantId, session: &SessionId, project: &str) -> Result<()> {
        let assignment =
            AssignProject { tenant: tenant.clone(), session: session.clone(), project: project.to_owned() };
        self.writer.write(assignment).await
    }

    /// When the session's client was last heard of.
    pub async fn session_last_seen(&self, tenant: &TenantId, session: &SessionId) -> Result<Timestamp> {
        let seen: i64 = query("SELECT last_seen_at FROM sessions WHERE id = $1 AND tenant = $2")
            .bind(session.as_str())
            .bind(tenant.as_str())
            .fetch_optional_value("last_seen_at", &self.readers)
            .await?
            .ok_or_else(|| no_session(session))?;
        from_nanoseconds(seen)
    }
}

/// The answer for a session that is absent or another tenant's.
pub(super) fn no_session(session: &SessionId) -> Error {
    Error::not_found(format!("session `{session}` does not exist"))
}

/// Refuses unless the tenant's session exists and is open.
pub(super) async fn require_open_session(
    connection: &mut Connection,
    tenant: &TenantId,
    session: &SessionId,
) -> Result<(), Failure> {
    let finished: Option<bool> = query("SELECT finished FROM sessions WHERE id = $1 AND tenant = $2")
        .bind(session.as_str())
        .bind(tenant.as_str())
        .fetch_optional_value("finished", connection)
        .await?;
    match finished {
        Some(false) => Ok(()),
        Some(true) => Err(Error::new(ErrorCode::Gone, format!("session `{session}` is finished"))
            .hint("open a new session")
            .into()),
        None => Err(no_session(session).into()),
    }
}

pub(super) fn read_session(row: &Row) -> Result<SessionRecord> {
    let client_end: Option<Vec<u8>> = row.get("client_end")?;
    Ok(SessionRecord {
        id: SessionId::new(row.get::<String>("id")?),
        tenant: TenantId::new(row.get::<String>("tenant")?),
        tags: from_blob(&row.get::<Vec<u8>>("tags")?)?,
        user_metadata: from_blob(&row.get::<Vec<u8>>("user_metadata")?)?,
        sdk_version: row.get("sdk_version")?,
        finished: row.get("finished")?,
        created_at: from_nanoseconds(row.get("created_at")?)?,
        project_id: row.get("project")?,
        display_name: row.get("display_name")?,
        client_end: client_end.as_deref().map(from_blob).transpose()?,
    })
}

struct CreateSession(SessionRecord);

impl Write for CreateSession {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let Self(session) = self;
        if !insert(connection, session).await? {
            return Err(Error::new(ErrorCode::Conflict, format!("session `{}` exists already", session.id)).into());
        }
        Ok(())
    }
}

/// Keeps a session unless it is there; says whether it was not.
pub(super) async fn insert(connection: &mut Connection, session: &SessionRecord) -> Result<bool, Failure> {
    let created = query(
        "INSERT INTO sessions (id, tenant, tags, user_metadata, sdk_version, finished, created_at, last_seen_at,
         project, display_name, client_end)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
    )
    .bind(session.id.as_str())
    .bind(session.tenant.as_str())
    .bind(to_blob(&session.tags)?)
    .bind(to_blob(&session.user_metadata)?)
    .bind(session.sdk_version.as_deref())
    .bind(session.finished)
    .bind(to_nanoseconds(session.created_at))
    .bind(session.project_id.as_deref())
    .bind(session.display_name.as_deref())
    .bind(session.client_end.as_ref().map(to_blob).transpose()?)
    .execute(connection)
    .await?;
    Ok(created > 0)
}

struct AssignProject {
    tenant: TenantId,
    session: SessionId,
    project: String,
}

impl Write for AssignProject {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let assigned = query("UPDATE sessions SET project = $1 WHERE id = $2 AND tenant = $3")
            .bind(self.project.as_str())
            .bind(self.session.as_str())
            .bind(self.tenant.as_str())
            .execute(connection)
            .await?;
        if assigned == 0 {
            return Err(no_session(&self.session).into());
        }
        Ok(())
    }
}

struct TouchSession {
    tenant: TenantId,
    session: SessionId,
}

impl Write for TouchSession {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let touched = query("UPDATE sessions SET last_seen_at = $1 WHERE id = $2 AND tenant = $3 AND finished = 0")
            .bind(now())
            .bind(self.session.as_str())
            .bind(self.tenant.as_str())
            .execute(&mut *connection)
            .await?;
        if touched == 1 {
            return Ok(());
        }
        require_open_session(connection, &self.tenant, &self.session).await
    }
}

struct FinishSession {
    tenant: TenantId,
    session: SessionId,
    end: Option<ClientEnd>,
}

impl Write for FinishSession {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let finished = query(
            "UPDATE sessions SET finished = 1, last_seen_at = $1, client_end = COALESCE(client_end, $4)
             WHERE id = $2 AND tenant = $3",
        )
        .bind(now())
        .bind(self.session.as_str())
        .bind(self.tenant.as_str())
        .bind(self.end.as_ref().map(to_blob).transpose()?)
        .execute(connection)
        .await?;
        if finished == 0 {
            return Err(no_session(&self.session).into());
        }
        Ok(())
    }
}
