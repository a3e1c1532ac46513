//! Places to sample from.

use super::StateStore;
use super::codec::{from_blob, to_blob};
use super::connection::Connection;
use super::failure::Failure;
use super::samples::no_sampling_session;
use super::sessions::{no_session, require_open_session};
use super::sql::{Row, query};
use super::writer::Write;
use crate::call::SamplingSessionRecord;
use crate::error::{Error, Result};
use crate::ids::{SamplingSessionId, SessionId, TenantId};

impl StateStore {
    /// Keeps a new sampling session of an open session, and returns it.
    ///
    /// The same id again returns the one that is there; with other weights it is refused.
    pub async fn create_sampling_session(&self, record: &SamplingSessionRecord) -> Result<SamplingSessionRecord> {
        self.writer.write(CreateSamplingSession(record.clone())).await
    }

    /// The tenant's sampling session of that name.
    pub async fn sampling_session(&self, tenant: &TenantId, id: &SamplingSessionId) -> Result<SamplingSessionRecord> {
        let row = query("SELECT * FROM sampling_sessions WHERE id = $1 AND tenant = $2")
            .bind(id.as_str())
            .bind(tenant.as_str())
            .fetch_optional(&self.readers)
            .await?
            .ok_or_else(|| no_sampling_session(id))?;
        read_sampling_session(&row)
    }
}

fn read_sampling_session(row: &Row) -> Result<SamplingSessionRecord> {
    Ok(SamplingSessionRecord {
        id: SamplingSessionId::new(row.get::<String>("id")?),
        tenant: TenantId::new(row.get::<String>("tenant")?),
        session: SessionId::new(row.get::<String>("session")?),
        base_model: row.get("base_model")?,
        source: from_blob(&row.get::<Vec<u8>>("source")?)?,
    })
}

struct CreateSamplingSession(SamplingSessionRecord);

impl Write for CreateSamplingSession {
    type Answer = SamplingSessionRecord;

    async fn apply(&self, connection: &mut Connection) -> Result<SamplingSessionRecord, Failure> {
        let Self(record) = self;
        let existing = query("SELECT * FROM sampling_sessions WHERE id = $1")
            .bind(record.id.as_str())
            .fetch_optional(&mut *connection)
            .await?;
        if let Some(row) = existing {
            let existing = read_sampling_session(&row)?;
            if existing.tenant != record.tenant {
                return Err(no_session(&record.session).into());
            }
            if existing != *record {
                return Err(Error::invalid(format!(
                    "sampling session `{}` exists already with other weights",
                    record.id
                ))
                .hint("give every sampling session of a session its own number")
                .into());
            }
            return Ok(existing);
        }
        require_open_session(connection, &record.tenant, &record.session).await?;
        query("INSERT INTO sampling_sessions (id, tenant, session, base_model, source) VALUES ($1, $2, $3, $4, $5)")
            .bind(record.id.as_str())
            .bind(record.tenant.as_str())
            .bind(record.session.as_str())
            .bind(record.base_model.as_str())
            .bind(to_blob(&record.source)?)
            .execute(connection)
            .await?;
        Ok(record.clone())
    }
}
