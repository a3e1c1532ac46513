//! What only a `SQLite` file can meet with; the contract of all stores is in `tests/state`.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::*;
use crate::call::SessionRecord;
use crate::error::ErrorCode;
use crate::ids::{SessionId, TenantId};

pub(super) fn session(id: &str) -> SessionRecord {
    SessionRecord {
        id: SessionId::new(id),
        tenant: TenantId::new("alice"),
        tags: vec![],
        user_metadata: BTreeMap::new(),
        sdk_version: None,
        finished: false,
        created_at: Timestamp::now(),
        project_id: None,
        display_name: None,
        client_end: None,
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_takes_nothing_with_it() {
    struct LimitPages;
    impl writer::Write for LimitPages {
        type Answer = ();
        async fn apply(&self, connection: &mut connection::Connection) -> Result<(), failure::Failure> {
            sql::query("PRAGMA max_page_count = 1").fetch_optional(connection).await?;
            Ok(())
        }
    }
    let store = StateStore::open_in_memory().await.unwrap();
    store.writer.write(LimitPages).await.unwrap();
    let large = SessionRecord { tags: vec!["x".repeat(1 << 20)], ..session("large") };
    let small = session("small");
    let (full, fits) = tokio::join!(store.create_session(&large), store.create_session(&small));
    let full = full.unwrap_err();
    assert_eq!(full.code, ErrorCode::ResourceExhausted, "{full}");
    fits.unwrap();
    assert_eq!(store.session(&small.tenant, &large.id).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let text = "not a database, but long enough to be taken for one. ".repeat(40);
    std::fs::write(&path, &text).unwrap();
    let error = StateStore::open(&path).await.unwrap_err();
    assert!(error.message.contains("is not a state store"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn another_programs_database_is_refused() {
    use sqlx::ConnectOptions;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql("CREATE TABLE recipes (name TEXT)").execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let error = StateStore::open(&path).await.unwrap_err();
    assert!(error.message.contains("another program"), "{error}");
}

#[tokio::test]
async fn a_store_with_a_broken_page_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.sqlite");
    let store = StateStore::open(&path).await.unwrap();
    for number in 0..100 {
        store.create_session(&session(&format!("s{number}"))).await.unwrap();
    }
    store.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in &mut bytes[8192..] {
        *byte = 0xaa;
    }
    std::fs::write(&path, bytes).unwrap();
    let error = StateStore::open(&path).await.unwrap_err();
    assert!(error.message.contains("damaged"), "{error}");
}
