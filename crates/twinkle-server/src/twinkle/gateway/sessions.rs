//! Sessions: a client opens one, and whatever it makes belongs to it and ends with it.

use std::collections::BTreeMap;

use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use twinkle_core::call::{ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, ErrorCode};
use twinkle_core::ids::SessionId;

use crate::tinker::unexpected;
use crate::twinkle::{Answer, Caller, Json, Tenant, TwinkleFront, ok};

/// Most bytes of notes with a session.
const MOST_NOTES: usize = 64 << 10;

/// The body of `POST create_session`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "TwinkleCreateSession")]
pub(super) struct Opening {
    /// The user's notes.
    metadata: Option<BTreeMap<String, Value>>,
    /// The session's name, of a client that chooses one itself.
    session_id: Option<String>,
}

/// The body of `POST session_heartbeat`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "TwinkleHeartbeat")]
pub(super) struct Heartbeat {
    /// The session.
    session_id: String,
}

/// `POST create_session`
pub(super) async fn create(
    State(front): State<TwinkleFront>,
    Tenant(tenant): Tenant,
    Json(opening): Json<Opening>,
) -> Answer {
    let id = match opening.session_id.as_deref() {
        Some(chosen) => SessionId::chosen(chosen)?,
        None => SessionId::fresh_twinkle(),
    };
    let request = ServeRequest::CreateSession {
        id: Some(id),
        tags: Vec::new(),
        user_metadata: notes(opening.metadata.unwrap_or_default())?,
        sdk_version: None,
        project_id: None,
        display_name: None,
    };
    match front.serve(&tenant, request).await? {
        ServeOutcome::Session(record) => ok(&json!({ "session_id": record.id })),
        other => Err(unexpected("the server component", &other).into()),
    }
}

/// A user's notes as texts; what is not a text is kept as JSON.
fn notes(metadata: BTreeMap<String, Value>) -> Result<BTreeMap<String, String>, Error> {
    let notes: BTreeMap<String, String> = metadata
        .into_iter()
        .map(|(name, value)| match value {
            Value::String(text) => (name, text),
            other => (name, other.to_string()),
        })
        .collect();
    let bytes: usize = notes.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MOST_NOTES {
        return Err(Error::new(
            ErrorCode::TooLarge,
            format!("`metadata` has {bytes} bytes, the limit is {MOST_NOTES}"),
        ));
    }
    Ok(notes)
}

/// `POST session_heartbeat`
pub(super) async fn heartbeat(
    State(front): State<TwinkleFront>,
    Tenant(tenant): Tenant,
    Json(beat): Json<Heartbeat>,
) -> Answer {
    match front.serve(&tenant, ServeRequest::Heartbeat(SessionId::new(beat.session_id))).await {
        Ok(_) => ok(&json!({})),
        // Absent, another tenant's or finished: the same words.
        Err(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::Gone) => {
            Err(Error::not_found("Unknown session").into())
        }
        Err(error) => Err(error.into()),
    }
}

/// `POST heartbeat` of a component, of clients of the first generation: the request itself keeps their session alive.
pub(super) async fn component_heartbeat(_: Caller) -> Answer {
    ok(&json!({ "status": "ok" }))
}
