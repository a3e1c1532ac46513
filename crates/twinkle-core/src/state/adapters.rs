//! What Twinkle clients set for their adapters, kept for the length of their session.

use super::StateStore;
use super::codec::{from_blob, to_blob};
use super::connection::Connection;
use super::failure::Failure;
use super::sessions::require_open_session;
use super::sql::query;
use super::writer::Write;
use crate::call::AdapterRecord;
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{RunId, SessionId, TenantId};

/// Adapters of one session.
const MAX_PER_SESSION: i64 = 256;
/// Bytes of one adapter's settings.
const MAX_BYTES: usize = 64 << 10;

impl StateStore {
    /// Keeps an adapter of an open session, in place of what was kept of it before.
    pub async fn keep_adapter(&self, record: &AdapterRecord) -> Result<()> {
        self.writer.write(KeepAdapter(record.clone())).await
    }

    /// The tenant's adapter of that name in that session; `None`: there is none.
    pub async fn adapter(&self, tenant: &TenantId, session: &SessionId, name: &str) -> Result<Option<AdapterRecord>> {
        let row = query("SELECT * FROM adapters WHERE session = $1 AND name = $2 AND tenant = $3")
            .bind(session.as_str())
            .bind(name)
            .bind(tenant.as_str())
            .fetch_optional(&self.readers)
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(AdapterRecord {
            session: session.clone(),
            name: name.to_owned(),
            tenant: tenant.clone(),
            run: RunId::new(row.get::<String>("run")?),
            settings: from_blob(&row.get::<Vec<u8>>("settings")?)?,
        }))
    }
}

struct KeepAdapter(AdapterRecord);

impl Write for KeepAdapter {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let Self(record) = self;
        let settings = to_blob(&record.settings)?;
        if settings.len() > MAX_BYTES {
            let text = format!("the settings of adapter `{}` take more than {MAX_BYTES} bytes", record.name);
            return Err(Error::new(ErrorCode::TooLarge, text).into());
        }
        // A session is one tenant's, and so is everything in it.
        require_open_session(connection, &record.tenant, &record.session).await?;
        let others: i64 = query("SELECT COUNT(*) AS total FROM adapters WHERE session = $1 AND name <> $2")
            .bind(record.session.as_str())
            .bind(record.name.as_str())
            .fetch_value("total", &mut *connection)
            .await?;
        if others >= MAX_PER_SESSION {
            let text = format!("session `{}` has {MAX_PER_SESSION} adapters, as many as it may", record.session);
            return Err(Error::new(ErrorCode::LimitReached, text).hint("open a new session").into());
        }
        query(
            "INSERT INTO adapters (session, name, tenant, run, settings) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (session, name) DO UPDATE SET run = excluded.run, settings = excluded.settings",
        )
        .bind(record.session.as_str())
        .bind(record.name.as_str())
        .bind(record.tenant.as_str())
        .bind(record.run.as_str())
        .bind(settings)
        .execute(connection)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::Retention;
    use super::*;
    use crate::call::{AdapterSettings, MetricSetting, NamedClass, SessionRecord};

    fn session(name: &str) -> SessionRecord {
        SessionRecord {
            id: SessionId::new(name),
            tenant: TenantId::new("alice"),
            tags: Vec::new(),
            user_metadata: BTreeMap::new(),
            sdk_version: None,
            finished: false,
            created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            project_id: None,
            display_name: None,
            client_end: None,
        }
    }

    fn record(name: &str) -> AdapterRecord {
        let session = SessionId::new("s");
        let run = RunId::of_adapter(&session, name).unwrap();
        let settings = json!({ "epsilon": 0.2, "names": ["a", null], "deep": { "z": 1, "a": true } });
        let loss = NamedClass { class: "GRPOLoss".into(), settings: settings.as_object().cloned().unwrap() };
        let metrics = vec![MetricSetting { metric: loss.clone(), training: Some(false) }];
        let settings =
            AdapterSettings { made_with: "r=8".into(), loss: Some(loss), metrics, ..AdapterSettings::default() };
        AdapterRecord { session, name: name.to_owned(), tenant: TenantId::new("alice"), run, settings }
    }

    #[tokio::test]
    async fn what_was_set_survives_a_restart_and_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("state.sqlite");
        let store = StateStore::open(&place).await.unwrap();
        assert!(store.keep_adapter(&record("a")).await.is_err(), "there is no session yet");
        store.create_session(&session("s")).await.unwrap();
        store.keep_adapter(&record("a")).await.unwrap();
        let mut changed = record("a");
        changed.run = RunId::new("s-a~2");
        changed.settings.template = Some(NamedClass { class: "Template".into(), ..NamedClass::default() });
        store.keep_adapter(&changed).await.unwrap();
        let foreign = AdapterRecord { tenant: TenantId::new("bob"), ..record("a") };
        assert_eq!(store.keep_adapter(&foreign).await.unwrap_err().code, ErrorCode::NotFound);
        store.close().await;

        let store = StateStore::open(&place).await.unwrap();
        let (tenant, session) = (TenantId::new("alice"), SessionId::new("s"));
        assert_eq!(store.adapter(&tenant, &session, "a").await.unwrap(), Some(changed));
        assert_eq!(store.adapter(&TenantId::new("bob"), &session, "a").await.unwrap(), None);
        assert_eq!(store.adapter(&tenant, &session, "b").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_session_has_so_many_and_takes_them_along() {
        let store = StateStore::open_in_memory().await.unwrap();
        store.create_session(&session("s")).await.unwrap();
        for number in 0..MAX_PER_SESSION {
            store.keep_adapter(&record(&number.to_string())).await.unwrap();
        }
        store.keep_adapter(&record("0")).await.unwrap();
        assert_eq!(store.keep_adapter(&record("one more")).await.unwrap_err().code, ErrorCode::LimitReached);
        let (tenant, session) = (TenantId::new("alice"), SessionId::new("s"));
        store.finish_session(&tenant, &session).await.unwrap();
        let retention = Retention { idle_sessions: std::time::Duration::ZERO, ..Retention::default() };
        store.sweep(&retention).await.unwrap();
        assert_eq!(store.adapter(&tenant, &session, "0").await.unwrap(), None);
    }

    #[tokio::test]
    async fn settings_have_a_bound() {
        let store = StateStore::open_in_memory().await.unwrap();
        store.create_session(&session("s")).await.unwrap();
        let mut large = record("a");
        large.settings.made_with = "x".repeat(MAX_BYTES);
        assert_eq!(store.keep_adapter(&large).await.unwrap_err().code, ErrorCode::TooLarge);
    }
}
