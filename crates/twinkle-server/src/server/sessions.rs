//! Sessions: opened, kept alive, finished, filed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use twinkle_core::call::{ClientEnd, ServeOutcome, SessionContents, SessionRecord};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{SessionId, TenantId};
use twinkle_core::state::StateStore;

/// Most sessions in one page; a larger wish gets this many.
const LARGEST_PAGE: u32 = 1_000;
/// Most runs, and most sampling sessions, that are named of one session.
const MOST_NAMED: u32 = 10_000;
/// Longest name of a project, and longest name to show, in bytes.
const LONGEST_NAME: usize = 255;

/// What a client says about its new session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opening {
    /// Its name, when the client or its front chose one.
    pub(crate) id: Option<SessionId>,
    /// Its tags.
    pub(crate) tags: Vec<String>,
    /// Its notes.
    pub(crate) user_metadata: BTreeMap<String, String>,
    /// Its version.
    pub(crate) sdk_version: Option<String>,
    /// The project it is filed under.
    pub(crate) project_id: Option<String>,
    /// A name to show.
    pub(crate) display_name: Option<String>,
}

/// Opens a session; durable when this returns. One of a chosen name that the tenant has open already is answered again.
pub(crate) async fn create(store: &StateStore, tenant: TenantId, opening: Opening) -> Result<ServeOutcome> {
    for (field, name) in [("project_id", &opening.project_id), ("display_name", &opening.display_name)] {
        name.as_deref().map_or(Ok(()), |name| check_name(field, name))?;
    }
    let chosen = opening.id.clone();
    let session = SessionRecord {
        id: opening.id.unwrap_or_else(SessionId::fresh),
        tenant,
        tags: opening.tags,
        user_metadata: opening.user_metadata,
        sdk_version: opening.sdk_version,
        finished: false,
        created_at: now(),
        project_id: opening.project_id,
        display_name: opening.display_name,
        client_end: None,
    };
    match (store.create_session(&session).await, chosen) {
        (Ok(()), _) => Ok(ServeOutcome::Session(session)),
        (Err(error), Some(chosen)) if error.code == ErrorCode::Conflict => {
            reopen(store, &session.tenant, &chosen).await
        }
        (Err(error), _) => Err(error),
    }
}

/// The tenant's open session of a name that is taken.
async fn reopen(store: &StateStore, tenant: &TenantId, chosen: &SessionId) -> Result<ServeOutcome> {
    match describe(store, tenant, chosen).await {
        Err(error) if error.code == ErrorCode::NotFound => {
            Err(Error::invalid(format!("a session cannot be named `{chosen}`")).hint("leave `session_id` out"))
        }
        answer => answer,
    }
}

/// Now, in microseconds: as exact as clients give a time back that they were told.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// Keeps a session alive; a finished one answers [`ErrorCode::Gone`], which ends the client's heartbeat.
pub(crate) async fn heartbeat(store: &StateStore, tenant: &TenantId, session: &SessionId) -> Result<ServeOutcome> {
    store.touch_session(tenant, session).await?;
    Ok(ServeOutcome::Done)
}

/// Ends a session: its runs and sampling sessions stay, new ones are refused. Finishing twice is no error.
pub(crate) async fn finish(
    store: &StateStore,
    tenant: &TenantId,
    session: &SessionId,
    end: Option<ClientEnd>,
) -> Result<ServeOutcome> {
    store.finish_session_with(tenant, session, end).await?;
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

/// A session, finished or not, with what belongs to it.
pub(crate) async fn read(store: &StateStore, tenant: &TenantId, session: &SessionId) -> Result<ServeOutcome> {
    let record = store.session(tenant, session).await?;
    let runs = store.runs_of_session(tenant, session, MOST_NAMED).await?;
    let samplers = store.samplers_of_session(tenant, session, MOST_NAMED).await?;
    Ok(ServeOutcome::SessionContents(SessionContents { record, runs, samplers }))
}

/// One page of the tenant's sessions, newest first.
pub(crate) async fn list(store: &StateStore, tenant: &TenantId, limit: u32, offset: u32) -> Result<ServeOutcome> {
    store.list_sessions(tenant, limit.min(LARGEST_PAGE), offset).await.map(ServeOutcome::SessionNames)
}

/// Files a session under a project.
pub(crate) async fn assign_project(
    store: &StateStore,
    tenant: &TenantId,
    session: &SessionId,
    project: &str,
) -> Result<ServeOutcome> {
    check_name("project_id", project)?;
    store.assign_project(tenant, session, project).await?;
    Ok(ServeOutcome::Done)
}

/// Whether a name can be filed and searched for.
pub(super) fn check_name(field: &str, name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::invalid(format!("`{field}` is empty")).hint("leave it out, or give it a name"));
    }
    if name.len() > LONGEST_NAME {
        let length = name.len();
        return Err(Error::invalid(format!("`{field}` has {length} bytes, the limit is {LONGEST_NAME}")));
    }
    Ok(())
}
