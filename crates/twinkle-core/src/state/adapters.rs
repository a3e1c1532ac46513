//! What Twinkle clients set for their adapters, kept for the length of their session.

use super::StateStore;
use super::codec::{from_blob, to_blob};
use super::connection::Connection;
use super::failure::Failure;
use super::session_parts::ADAPTERS;
use super::sql::query;
use super::writer::Write;
use crate::call::{AdapterCounters, AdapterRecord};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{RunId, SessionId, TenantId};

/// Bytes of one adapter's settings.
const MAX_BYTES: usize = 64 << 10;
/// Bytes of one adapter's counters.
const MAX_COUNTER_BYTES: usize = 256 << 10;

impl StateStore {
    /// Keeps an adapter of an open session, in place of what was kept of it before.
    pub async fn keep_adapter(&self, record: &AdapterRecord) -> Result<()> {
        self.writer.write(KeepAdapter(record.clone())).await
    }

    /// Keeps what an adapter's metrics have counted; nothing happens when it stands for another run by now.
    pub async fn keep_counters(&self, counters: AdapterCounters) -> Result<()> {
        self.writer.write(KeepCounters(counters)).await
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
            counters: row.get::<Option<Vec<u8>>>("counters")?.unwrap_or_default(),
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
        ADAPTERS.require_room(connection, (&record.tenant, &record.session), &record.name).await?;
        // Another run has counted nothing yet.
        query(
            "INSERT INTO adapters (session, name, tenant, run, settings) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (session, name) DO UPDATE SET run = excluded.run, settings = excluded.settings,
             counters = CASE WHEN adapters.run = excluded.run THEN adapters.counters END",
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

struct KeepCounters(AdapterCounters);

impl Write for KeepCounters {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let Self(AdapterCounters { tenant, session, name, run, counters }) = self;
        if counters.len() > MAX_COUNTER_BYTES {
            let text = format!("the counters of adapter `{name}` take more than {MAX_COUNTER_BYTES} bytes");
            return Err(Error::new(ErrorCode::TooLarge, text).into());
        }
        query("UPDATE adapters SET counters = $1 WHERE session = $2 AND name = $3 AND tenant = $4 AND run = $5")
            .bind(counters.as_slice())
            .bind(session.as_str())
            .bind(name.as_str())
            .bind(tenant.as_str())
            .bind(run.as_str())
            .execute(connection)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Retention;
    use super::super::tests::session;
    use super::*;
    use crate::call::{AdapterSettings, MetricSetting, NamedClass};

    fn record(name: &str) -> AdapterRecord {
        let session = SessionId::new("s");
        let run = RunId::of_adapter(&session, name).unwrap();
        let settings = json!({ "epsilon": 0.2, "names": ["a", null], "deep": { "z": 1, "a": true } });
        let loss = NamedClass { class: "GRPOLoss".into(), settings: settings.as_object().cloned().unwrap() };
        let metrics = vec![MetricSetting { metric: loss.clone(), training: Some(false) }];
        let settings =
            AdapterSettings { made_with: "r=8".into(), loss: Some(loss), metrics, ..AdapterSettings::default() };
        AdapterRecord {
            session,
            name: name.to_owned(),
            tenant: TenantId::new("alice"),
            run,
            settings,
            counters: vec![],
        }
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
        for number in 0..ADAPTERS.most {
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
    async fn counters_stay_with_their_run() {
        let store = StateStore::open_in_memory().await.unwrap();
        store.create_session(&session("s")).await.unwrap();
        store.keep_adapter(&record("a")).await.unwrap();
        let of = |counters: &[u8]| {
            let AdapterRecord { session, name, tenant, run, .. } = record("a");
            AdapterCounters { session, name, tenant, run, counters: counters.to_vec() }
        };
        let (tenant, session) = (TenantId::new("alice"), SessionId::new("s"));
        let kept = async || store.adapter(&tenant, &session, "a").await.unwrap().unwrap().counters;
        store.keep_counters(of(b"one")).await.unwrap();
        store.keep_counters(AdapterCounters { tenant: TenantId::new("bob"), ..of(b"foreign") }).await.unwrap();
        store.keep_counters(AdapterCounters { run: RunId::new("s-a~2"), ..of(b"of another") }).await.unwrap();
        // Settings that change leave them.
        store.keep_adapter(&record("a")).await.unwrap();
        assert_eq!(kept().await, b"one");
        let large = store.keep_counters(of(&vec![0; MAX_COUNTER_BYTES + 1])).await.unwrap_err();
        assert_eq!((large.code, kept().await), (ErrorCode::TooLarge, b"one".to_vec()));
        store.keep_adapter(&AdapterRecord { run: RunId::new("s-a~2"), ..record("a") }).await.unwrap();
        assert_eq!(kept().await, b"");
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
