//! Lists of sessions and of what belongs to them.

use super::StateStore;
use super::codec::{from_integer, to_nanoseconds};
use super::sessions::read_session;
use super::sql::query;
use crate::call::{SessionPlace, SessionRecord};
use crate::error::Result;
use crate::ids::{RunId, SamplingSessionId, SessionId, TenantId};

impl StateStore {
    /// One page of the names of the tenant's sessions, newest first.
    pub async fn list_sessions(&self, tenant: &TenantId, limit: u32, offset: u32) -> Result<Vec<SessionId>> {
        let names: Vec<String> =
            query("SELECT id FROM sessions WHERE tenant = $1 ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3")
                .bind(tenant.as_str())
                .bind(limit)
                .bind(offset)
                .fetch_column("id", &self.readers)
                .await?;
        Ok(names.into_iter().map(SessionId::new).collect())
    }

    /// The tenant's sessions after a place in the list, newest first.
    pub async fn sessions_after(
        &self,
        tenant: &TenantId,
        place: Option<&SessionPlace>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>> {
        let (created_at, id) =
            place.map_or((i64::MAX, ""), |place| (to_nanoseconds(place.created_at), place.session.as_str()));
        let rows = query(
            "SELECT * FROM sessions WHERE tenant = $1 AND (created_at < $2 OR (created_at = $2 AND id < $3))
             ORDER BY created_at DESC, id DESC LIMIT $4",
        )
        .bind(tenant.as_str())
        .bind(created_at)
        .bind(id)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read_session).collect()
    }

    /// Names of the runs of the tenant's session, oldest first.
    pub async fn runs_of_session(&self, tenant: &TenantId, session: &SessionId, limit: u32) -> Result<Vec<RunId>> {
        let names: Vec<String> =
            query("SELECT id FROM runs WHERE session = $1 AND tenant = $2 ORDER BY created_at, id LIMIT $3")
                .bind(session.as_str())
                .bind(tenant.as_str())
                .bind(limit)
                .fetch_column("id", &self.readers)
                .await?;
        Ok(names.into_iter().map(RunId::new).collect())
    }

    /// Names of the sampling sessions of the tenant's session, in order of name.
    pub async fn samplers_of_session(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        limit: u32,
    ) -> Result<Vec<SamplingSessionId>> {
        let names: Vec<String> =
            query("SELECT id FROM sampling_sessions WHERE session = $1 AND tenant = $2 ORDER BY id LIMIT $3")
                .bind(session.as_str())
                .bind(tenant.as_str())
                .bind(limit)
                .fetch_column("id", &self.readers)
                .await?;
        Ok(names.into_iter().map(SamplingSessionId::new).collect())
    }

    /// How many checkpoints the runs of the tenant's session have, and their bytes.
    pub async fn checkpoints_of_session(&self, tenant: &TenantId, session: &SessionId) -> Result<(u64, u64)> {
        let row = query(
            "SELECT COUNT(*) AS total, CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) AS bytes FROM checkpoints
             WHERE tenant = $1 AND run IN (SELECT id FROM runs WHERE session = $2)",
        )
        .bind(tenant.as_str())
        .bind(session.as_str())
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok((0, 0)) };
        Ok((from_integer(row.get("total")?)?, from_integer(row.get("bytes")?)?))
    }
}
