//! Start-up, sessions, telemetry and what the server can do.

use std::collections::BTreeMap;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use http::HeaderMap;
use serde_json::{Value, json};
use twinkle_core::call::{ClientEnd, RunOperation, ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{SessionId, TenantId};
use twinkle_core::wire::tinker::json::{
    ClientConfig, CreateSession, DynamicConfig, FinishSession, Health, Heartbeat, ServerCapabilities, SessionCreated,
    SupportedModel, Tag, TelemetryAnswer,
};

use super::body::RawBody;
use super::operations::Place;
use super::reply::{Answer, done, ok};
use super::{Front, Tenant, idempotency, unexpected};

/// How many runs are looked at in one go when a session ends.
const PAGE: u32 = 100;

/// How often: a session's runs are among the tenant's newest.
const MAX_PAGES: u32 = 10;

/// `GET healthz`
pub(super) async fn health() -> Answer {
    ok(&Health { status: "ok".to_owned() })
}

/// `POST client/config`
pub(super) async fn client_config() -> Answer {
    ok(&ClientConfig::default())
}

/// `POST client/dynamic_config`
pub(super) async fn dynamic_config() -> Answer {
    ok(&DynamicConfig::default())
}

/// `GET get_server_capabilities`
pub(super) async fn capabilities(State(front): State<Front>) -> Answer {
    let supported = |model: &crate::directory::ServedModel| SupportedModel {
        model_name: model.name.clone(),
        max_context_length: Some(model.max_context as u64),
        trainable: Some(model.trainer.is_some()),
        sampleable: Some(model.sampler.is_some()),
        sampler_engine: None,
    };
    ok(&ServerCapabilities { supported_models: front.context.directory.models().iter().map(supported).collect() })
}

/// `POST create_session`. Sent again under the same key, the session that the first one opened is answered.
pub(super) async fn create(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    body: RawBody,
) -> Answer {
    let wanted: CreateSession = body.json().await?;
    let chosen = wanted.session_id.as_deref().map(SessionId::chosen).transpose()?;
    let key = idempotency::key(&headers)?;
    let request = ServeRequest::CreateSession {
        id: chosen.or_else(|| key.map(|key| SessionId::of_key(&tenant, "create_session", &key))),
        tags: wanted.tags,
        user_metadata: notes(wanted.user_metadata),
        sdk_version: wanted.sdk_version,
        project_id: wanted.project_id,
        display_name: wanted.display_name,
    };
    match front.serve(&tenant, request).await? {
        ServeOutcome::Session(record) => ok(&SessionCreated {
            kind: Tag::new("create_session"),
            session_id: record.id.as_str().to_owned(),
            ..SessionCreated::default()
        }),
        other => Err(unexpected("the server component", &other).into()),
    }
}

/// `POST session_heartbeat`
pub(super) async fn heartbeat(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let beat: Heartbeat = body.json().await?;
    front.serve(&tenant, ServeRequest::Heartbeat(SessionId::new(beat.session_id))).await?;
    ok(&json!({ "type": "session_heartbeat" }))
}

/// `POST sessions/{id}/finish`
pub(super) async fn finish(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    session: std::result::Result<Path<String>, PathRejection>,
    body: RawBody,
) -> Answer {
    let session = SessionId::new(path(session)?);
    let mut end = None;
    if !body.bytes.is_empty() {
        let said: FinishSession = body.json().await?;
        let said = said.reason.map(|reason| ClientEnd { reason: reason.kind, detail: said.detail });
        tracing::info!(%session, end = ?said, "the client finished its session");
        end = said;
    }
    front.serve(&tenant, ServeRequest::FinishSession { session: session.clone(), end }).await?;
    front.unload_runs(&tenant, &session).await?;
    Ok(done())
}

impl Front {
    /// Frees the memory of a finished session's runs: nobody will train them again. Their checkpoints stay.
    async fn unload_runs(&self, tenant: &TenantId, session: &SessionId) -> Result<()> {
        for page in 0..MAX_PAGES {
            let request = ServeRequest::ListRuns { project_id: None, limit: PAGE, offset: page * PAGE };
            let runs = match self.serve(tenant, request).await? {
                ServeOutcome::Runs { runs, .. } => runs,
                other => return Err(unexpected("the server component", &other)),
            };
            let is_last = runs.len() < PAGE as usize;
            for run in runs.into_iter().filter(|run| run.session == *session && !run.closed) {
                let place = Place { run: run.id, sequence: None };
                if let Err(error) = self.accept(tenant, &run.base_model, place.clone(), RunOperation::Unload).await {
                    tracing::warn!(run = %place.run, %error, "a finished session's run was not unloaded");
                }
            }
            if is_last {
                break;
            }
        }
        Ok(())
    }
}

/// `POST telemetry`: always answered at once, for a client's errors wait for it. Nothing is kept.
pub(super) async fn telemetry(body: RawBody) -> Answer {
    tracing::debug!(bytes = body.bytes.len(), "telemetry of a client");
    ok(&TelemetryAnswer { status: "accepted".to_owned() })
}

/// The captured part of a path.
pub(super) fn path<T>(captured: std::result::Result<Path<T>, PathRejection>) -> Result<T> {
    let Path(value) =
        captured.map_err(|error| Error::invalid(format!("the path of the request is broken: {error}")))?;
    Ok(value)
}

/// A user's notes as texts; what is not a text is kept as JSON.
pub(super) fn notes(metadata: BTreeMap<String, Value>) -> BTreeMap<String, String> {
    metadata
        .into_iter()
        .map(|(name, value)| match value {
            Value::String(text) => (name, text),
            other => (name, other.to_string()),
        })
        .collect()
}
