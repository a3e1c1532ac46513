//! Uploads of checkpoints to hubs: how each is doing. Their tokens are kept nowhere, so a restart ends them.

use super::StateStore;
use super::codec::{from_blob, now, to_blob};
use super::connection::Connection;
use super::failure::Failure;
use super::sql::{Row, query};
use super::writer::Write;
use crate::error::{Error, Result};
use crate::ids::{RequestId, TenantId};

/// Ended uploads of one tenant that are remembered; of more, those that ended first are forgotten.
const MOST_OF_TENANT: i64 = 1_000;

const UNDER_WAY: i64 = 0;
const COMPLETED: i64 = 1;
const FAILED: i64 = 2;

/// An upload as it was when it was last noted.
#[derive(Clone, Debug, PartialEq)]
pub struct UploadRecord {
    /// Its name.
    pub request: RequestId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Bytes that the hub had.
    pub sent_bytes: u64,
    /// Bytes of all its files; 0 until they are known.
    pub total_bytes: u64,
    /// Its end; `None`: it was under way.
    pub end: Option<Result<()>>,
}

impl StateStore {
    /// Notes how an upload is doing, in place of what was noted of it before.
    pub async fn keep_upload(&self, record: &UploadRecord) -> Result<()> {
        self.writer.write(KeepUpload(record.clone())).await
    }

    /// The tenant's upload of that name; `None`: there is none.
    pub async fn upload(&self, tenant: &TenantId, request: &RequestId) -> Result<Option<UploadRecord>> {
        let row = query("SELECT * FROM uploads WHERE request = $1 AND tenant = $2")
            .bind(request.as_str())
            .bind(tenant.as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(read_upload).transpose()
    }
}

fn read_upload(row: &Row) -> Result<UploadRecord> {
    let end = match row.get::<i64>("state")? {
        UNDER_WAY => None,
        COMPLETED => Some(Ok(())),
        _ => {
            let error: Option<Vec<u8>> = row.get("error")?;
            Some(Err(error.map_or_else(|| Ok(Error::internal("the upload failed")), |blob| from_blob(&blob))?))
        }
    };
    Ok(UploadRecord {
        request: RequestId::new(row.get::<String>("request")?),
        tenant: TenantId::new(row.get::<String>("tenant")?),
        sent_bytes: u64::try_from(row.get::<i64>("sent")?).unwrap_or_default(),
        total_bytes: u64::try_from(row.get::<i64>("total")?).unwrap_or_default(),
        end,
    })
}

struct KeepUpload(UploadRecord);

impl Write for KeepUpload {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let Self(record) = self;
        let (state, error) = match &record.end {
            None => (UNDER_WAY, None),
            Some(Ok(())) => (COMPLETED, None),
            Some(Err(error)) => (FAILED, Some(to_blob(error)?)),
        };
        query(
            "INSERT INTO uploads (request, tenant, state, sent, total, error, changed_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (request) DO UPDATE SET state = excluded.state, sent = excluded.sent, total = excluded.total,
             error = excluded.error, changed_at = excluded.changed_at",
        )
        .bind(record.request.as_str())
        .bind(record.tenant.as_str())
        .bind(state)
        .bind(i64::try_from(record.sent_bytes).unwrap_or(i64::MAX))
        .bind(i64::try_from(record.total_bytes).unwrap_or(i64::MAX))
        .bind(error)
        .bind(now())
        .execute(&mut *connection)
        .await?;
        query(
            "DELETE FROM uploads WHERE request IN (SELECT request FROM uploads WHERE tenant = $1 AND state <> 0
             ORDER BY changed_at DESC, request LIMIT 1000 OFFSET $2)",
        )
        .bind(record.tenant.as_str())
        .bind(MOST_OF_TENANT)
        .execute(connection)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Retention;
    use super::*;

    fn record(name: &str, end: Option<Result<()>>) -> UploadRecord {
        UploadRecord {
            request: RequestId::new(name),
            tenant: TenantId::new("alice"),
            sent_bytes: 3,
            total_bytes: 7,
            end,
        }
    }

    #[tokio::test]
    async fn how_an_upload_was_is_known_after_a_restart_and_to_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("state.sqlite");
        let store = StateStore::open(&place).await.unwrap();
        let failed = Some(Err(Error::invalid("no").hint("yes")));
        for (name, end) in [("under way", None), ("done", Some(Ok(()))), ("failed", failed)] {
            store.keep_upload(&record(name, None)).await.unwrap();
            store.keep_upload(&record(name, end)).await.unwrap();
        }
        store.close().await;

        let store = StateStore::open(&place).await.unwrap();
        let of =
            async |tenant: &str, name: &str| store.upload(&TenantId::new(tenant), &RequestId::new(name)).await.unwrap();
        assert_eq!(of("alice", "under way").await, Some(record("under way", None)));
        assert_eq!(of("alice", "done").await, Some(record("done", Some(Ok(())))));
        let failed = of("alice", "failed").await.unwrap().end.unwrap().unwrap_err();
        assert_eq!((failed.message.as_str(), failed.hint.as_deref()), ("no", Some("yes")));
        assert_eq!(of("bob", "done").await, None);
        assert_eq!(of("alice", "never").await, None);
    }

    #[tokio::test]
    async fn ended_uploads_are_forgotten_by_number_and_by_age() {
        let store = StateStore::open_in_memory().await.unwrap();
        store.keep_upload(&record("under way", None)).await.unwrap();
        for number in 0..=MOST_OF_TENANT {
            store.keep_upload(&record(&number.to_string(), Some(Ok(())))).await.unwrap();
        }
        let is_known =
            async |name: &str| store.upload(&TenantId::new("alice"), &RequestId::new(name)).await.unwrap().is_some();
        assert!(!is_known("0").await && is_known("1").await && is_known("under way").await);
        let retention = Retention { uploads: std::time::Duration::ZERO, batch: 10_000, ..Retention::default() };
        store.sweep(&retention).await.unwrap();
        assert!(!is_known("1").await && !is_known("under way").await);
    }
}
