//! Lists of sessions and what is known of one.

use axum::extract::State;
use twinkle_core::call::{
    DEFAULT_PROJECT, FoundSession, ServeOutcome, ServeRequest, SessionPlace, SessionSearch, SessionState,
};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{SessionId, TenantId};
use twinkle_core::wire::tinker::json::{
    AssignProject, SessionContents, SessionCursor, SessionNames, SessionSearchRequest, SessionSearchResponse,
    SessionStatus, SessionStatusQuery, SessionSummary, TraceExport,
};

use super::body::RawBody;
use super::reply::{Answer, done, ok};
use super::rest::{Asked, Bounds, Captured};
use super::session::path;
use super::{Front, Tenant, unexpected};

/// Most sessions of one page.
const MAX_SESSIONS: u32 = 1_000;
/// Most sessions found at once.
const MAX_FOUND: u32 = 200;

/// `GET sessions`
pub(super) async fn list(State(front): State<Front>, Tenant(tenant): Tenant, asked: Asked) -> Answer {
    let Bounds { limit, offset } = Bounds::of(asked, 20, MAX_SESSIONS)?;
    match front.serve(&tenant, ServeRequest::ListSessions { limit, offset }).await? {
        ServeOutcome::SessionNames(names) => {
            ok(&SessionNames { sessions: names.iter().map(|name| name.as_str().to_owned()).collect() })
        }
        other => Err(unexpected("the server component", &other).into()),
    }
}

/// `GET sessions/{id}`
pub(super) async fn read(State(front): State<Front>, Tenant(tenant): Tenant, session: Captured<String>) -> Answer {
    let request = ServeRequest::ReadSession(SessionId::new(path(session)?));
    match front.serve(&tenant, request).await? {
        ServeOutcome::SessionContents(contents) => ok(&SessionContents {
            training_run_ids: contents.runs.iter().map(|run| run.as_str().to_owned()).collect(),
            sampler_ids: contents.samplers.iter().map(|sampler| sampler.as_str().to_owned()).collect(),
            user_metadata: contents.record.user_metadata,
            display_name: contents.record.display_name,
        }),
        other => Err(unexpected("the server component", &other).into()),
    }
}

/// `PUT sessions/{id}/project`
pub(super) async fn assign_project(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    session: Captured<String>,
    body: RawBody,
) -> Answer {
    let session = SessionId::new(path(session)?);
    let AssignProject { project_id } = body.json().await?;
    front.serve(&tenant, ServeRequest::AssignProject { session, project_id }).await?;
    Ok(done())
}

/// `GET sessions/{id}/trace_export`: the session must be there, then its client learns that there is no such file.
pub(super) async fn trace_export(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    session: Captured<String>,
) -> Answer {
    front.serve(&tenant, ServeRequest::ReadSession(SessionId::new(path(session)?))).await?;
    let error = "this server keeps no timelines of sessions; it sends traces of requests to an OpenTelemetry \
                 collector, see docs/observability.md";
    ok(&TraceExport { status: "failed".to_owned(), url: None, error: Some(error.to_owned()) })
}

/// `POST sessions/search`
pub(super) async fn search(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: SessionSearchRequest = body.json().await?;
    let Some(search) = wanted_of(wanted, &tenant)? else {
        return ok(&SessionSearchResponse::default());
    };
    match front.serve(&tenant, ServeRequest::SearchSessions(Box::new(search))).await? {
        ServeOutcome::FoundSessions { sessions, next } => ok(&SessionSearchResponse {
            sessions: sessions.into_iter().map(summary).collect(),
            next_cursor: next.map(|place| SessionCursor {
                last_created_at: place.created_at,
                last_session_id: place.session.as_str().to_owned(),
            }),
        }),
        other => Err(unexpected("the server component", &other).into()),
    }
}

/// What is searched for; `None` when only other people's sessions are, of which nobody sees any.
fn wanted_of(wanted: SessionSearchRequest, tenant: &TenantId) -> Result<Option<SessionSearch>> {
    if let Some(owner) = &wanted.owner {
        match owner.kind.as_str() {
            "own" | "accessible" => {}
            "user" if owner.owner_urns.iter().any(|urn| urn == tenant.as_str()) => {}
            "user" => return Ok(None),
            other => return Err(Error::invalid(format!("`owner` has an unknown type `{other}`"))),
        }
    }
    if let Some(limit) = wanted.limit
        && !(1..=MAX_FOUND).contains(&limit)
    {
        return Err(Error::invalid(format!("`limit` {limit} is not between 1 and {MAX_FOUND}")));
    }
    Ok(Some(SessionSearch {
        session: wanted.session_id.map(SessionId::new),
        words: wanted.display_name.map(|name| name.to_lowercase().split_whitespace().map(str::to_owned).collect()),
        projects: wanted.project_ids,
        user_metadata: wanted.user_metadata,
        states: wanted.statuses.map(|statuses| statuses.into_iter().map(state).collect::<Result<_>>()).transpose()?,
        limit: wanted.limit.unwrap_or(50),
        after: wanted.cursor.map(|cursor| SessionPlace {
            created_at: cursor.last_created_at,
            session: SessionId::new(cursor.last_session_id),
        }),
    }))
}

fn state(query: SessionStatusQuery) -> Result<SessionState> {
    match query.kind.as_str() {
        "active" => Ok(SessionState::Active),
        "client_finished" => Ok(SessionState::ClientFinished(query.reasons)),
        "cancelled" | "failed" => Ok(SessionState::Never),
        other => Err(Error::invalid(format!("`statuses` has an unknown type `{other}`"))),
    }
}

fn summary(found: FoundSession) -> SessionSummary {
    let FoundSession { record, checkpoints, checkpoint_bytes } = found;
    let status = match record.client_end {
        Some(end) => Some(SessionStatus::client_finished(end.reason, end.detail)),
        None if record.finished => None,
        None => Some(SessionStatus::active()),
    };
    SessionSummary {
        session_id: record.id.as_str().to_owned(),
        created_at: record.created_at,
        owner: record.tenant.as_str().to_owned(),
        project_id: record.project_id.unwrap_or_else(|| DEFAULT_PROJECT.to_owned()),
        status,
        checkpoints_count: checkpoints,
        display_name: record.display_name,
        user_metadata: (!record.user_metadata.is_empty()).then_some(record.user_metadata),
        checkpoint_storage_bytes: Some(checkpoint_bytes),
    }
}
