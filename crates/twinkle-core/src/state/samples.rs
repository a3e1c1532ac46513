//! Samples that clients wait for, by name only: after a restart they are told to submit them again.

use super::StateStore;
use super::codec::now;
use super::connection::Connection;
use super::failure::Failure;
use super::sql::{Row, query};
use super::writer::Write;
use crate::error::{Error, Result};
use crate::ids::{RequestId, SamplingSessionId, TenantId};

/// Samples that are taken up after a restart at most; older ones are forgotten.
const MOST_TAKEN_UP: i64 = 262_144;

/// A sample that a client waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwaitedSample {
    /// The sample.
    pub request: RequestId,
    /// Its owner.
    pub tenant: TenantId,
    /// Where it was submitted.
    pub session: SamplingSessionId,
    /// Which of the sampling session's clients submitted it.
    pub client: u64,
}

impl StateStore {
    /// Notes that a client waits for a sample.
    pub async fn keep_sample(&self, sample: AwaitedSample) -> Result<()> {
        self.writer.write(KeepSample(sample)).await
    }

    /// Forgets samples that nobody waits for any more.
    pub async fn forget_samples(&self, requests: Vec<RequestId>) -> Result<()> {
        self.writer.write(ForgetSamples(requests)).await
    }

    /// The samples that clients wait for, the newest first.
    pub async fn awaited_samples(&self) -> Result<Vec<AwaitedSample>> {
        let rows = query("SELECT * FROM samples ORDER BY accepted_at DESC LIMIT $1")
            .bind(MOST_TAKEN_UP)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(read_sample).collect()
    }

    /// Counts one more client of the tenant's sampling session: its number, from 1 on. The first client is 0.
    pub async fn join_sampling_session(&self, tenant: &TenantId, id: &SamplingSessionId) -> Result<u64> {
        self.writer.write(Join { tenant: tenant.clone(), session: id.clone() }).await
    }
}

fn read_sample(row: &Row) -> Result<AwaitedSample> {
    Ok(AwaitedSample {
        request: RequestId::new(row.get::<String>("request")?),
        tenant: TenantId::new(row.get::<String>("tenant")?),
        session: SamplingSessionId::new(row.get::<String>("sampling_session")?),
        client: u64::try_from(row.get::<i64>("clone")?).unwrap_or_default(),
    })
}

struct KeepSample(AwaitedSample);

impl Write for KeepSample {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let Self(sample) = self;
        query(
            "INSERT INTO samples (request, tenant, sampling_session, clone, accepted_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT DO NOTHING",
        )
        .bind(sample.request.as_str())
        .bind(sample.tenant.as_str())
        .bind(sample.session.as_str())
        .bind(i64::try_from(sample.client).unwrap_or(i64::MAX))
        .bind(now())
        .execute(connection)
        .await?;
        Ok(())
    }
}

struct ForgetSamples(Vec<RequestId>);

impl Write for ForgetSamples {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        for request in &self.0 {
            query("DELETE FROM samples WHERE request = $1").bind(request.as_str()).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

struct Join {
    tenant: TenantId,
    session: SamplingSessionId,
}

impl Write for Join {
    type Answer = u64;

    async fn apply(&self, connection: &mut Connection) -> Result<u64, Failure> {
        let joined: Option<i64> =
            query("UPDATE sampling_sessions SET joined = joined + 1 WHERE id = $1 AND tenant = $2 RETURNING joined")
                .bind(self.session.as_str())
                .bind(self.tenant.as_str())
                .fetch_optional_value("joined", connection)
                .await?;
        let joined = joined.ok_or_else(|| no_sampling_session(&self.session))?;
        Ok(u64::try_from(joined).unwrap_or(1))
    }
}

/// The answer for a sampling session that is absent or another tenant's.
pub(super) fn no_sampling_session(id: &SamplingSessionId) -> Error {
    Error::not_found(format!("sampling session `{id}` does not exist"))
}
