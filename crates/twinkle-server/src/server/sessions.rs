//! Sessions: opened, kept alive, finished.

use std::collections::BTreeMap;

use jiff::Timestamp;
use twinkle_core::call::{ServeOutcome, SessionRecord};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{SessionId, TenantId};
use twinkle_core::state::StateStore;

/// Opens a session; durable when this returns.
pub(crate) async fn create(
    store: &StateStore,
    tenant: TenantId,
    tags: Vec<String>,
    user_metadata: BTreeMap<String, String>,
    sdk_version: Option<String>,
) -> Result<ServeOutcome> {
    let session = SessionRecord {
        id: SessionId::fresh(),
        tenant,
        tags,
        user_metadata,
        sdk_version,
        finished: false,
        created_at: Timestamp::now(),
    };
    store.create_session(&session).await?;
    Ok(ServeOutcome::Session(session))
}

/// Keeps a session alive; a finished one answers [`ErrorCode::Gone`], which ends the client's heartbeat.
pub(crate) async fn heartbeat(store: &StateStore, tenant: &TenantId, session: &SessionId) -> Result<ServeOutcome> {
    store.touch_session(tenant, session).await?;
    Ok(ServeOutcome::Done)
}

/// Ends a session: its runs and sampling sessions stay, new ones are refused. Finishing twice is no error.
pub(crate) async fn finish(store: &StateStore, tenant: &TenantId, session: &SessionId) -> Result<ServeOutcome> {
    store.finish_session(tenant, session).await?;
    Ok(ServeOutcome::Done)
}

/// Describes a session that can still be given runs; a finished one answers [`ErrorCode::Gone`].
pub(crate) async fn describe(store: &StateStore, tenant: &TenantId, session: &SessionId) -> Result<ServeOutcome> {
    let record = store.session(tenant, session).await?;
    if record.finished {
        return Err(Error::new(ErrorCode::Gone, format!("session `{session}` is finished")).hint("open a new session"));
    }
    Ok(ServeOutcome::Session(record))
}
