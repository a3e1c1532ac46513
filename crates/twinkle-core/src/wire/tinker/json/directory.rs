//! Lists of sessions, and what is known of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer to `GET sessions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionNames {
    /// Their ids.
    pub sessions: Vec<String>,
}

/// The answer to `GET sessions/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionContents {
    /// Its training runs.
    pub training_run_ids: Vec<String>,
    /// Its sampling sessions.
    pub sampler_ids: Vec<String>,
    /// The user's notes.
    #[serde(default)]
    pub user_metadata: BTreeMap<String, String>,
    /// A name to show.
    #[serde(default)]
    pub display_name: Option<String>,
}

/// `PUT sessions/{id}/project`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AssignProject {
    /// Where it is filed from now on.
    pub project_id: String,
}

/// The answer to `GET sessions/{id}/trace_export`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TraceExport {
    /// `pending`, `ready` or `failed`.
    pub status: String,
    /// Where the file is when it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `POST sessions/search`; everything that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionSearchRequest {
    /// This session; with a name, one that matches either.
    #[serde(default)]
    pub session_id: Option<String>,
    /// Projects to search.
    #[serde(default)]
    pub project_ids: Option<Vec<String>>,
    /// Notes a session must have.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub user_metadata: BTreeMap<String, String>,
    /// Words of the name to show.
    #[serde(default)]
    pub display_name: Option<String>,
    /// Whose sessions.
    #[serde(default)]
    pub owner: Option<SearchOwner>,
    /// States a session may be in.
    #[serde(default)]
    pub statuses: Option<Vec<SessionStatusQuery>>,
    /// Most sessions in the answer.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Where the page begins.
    #[serde(default)]
    pub cursor: Option<SessionCursor>,
}

/// Whose sessions are searched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SearchOwner {
    /// `own`, `accessible` or `user`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The users, for `user`.
    #[serde(default)]
    pub owner_urns: Vec<String>,
}

/// A state that is searched for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionStatusQuery {
    /// `active`, `client_finished`, `cancelled` or `failed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Why its client finished it.
    #[serde(default)]
    pub reasons: Option<Vec<String>>,
}

/// Where a page of found sessions begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionCursor {
    /// When the session before it was opened, RFC 3339.
    pub last_created_at: jiff::Timestamp,
    /// That session.
    pub last_session_id: String,
}

/// The answer to [`SessionSearchRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionSearchResponse {
    /// One page, newest first.
    pub sessions: Vec<SessionSummary>,
    /// Where the next one begins.
    #[serde(default)]
    pub next_cursor: Option<SessionCursor>,
}

/// A session that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionSummary {
    /// Its id.
    pub session_id: String,
    /// When it was opened, RFC 3339.
    pub created_at: jiff::Timestamp,
    /// Whose it is.
    pub owner: String,
    /// Where it is filed.
    pub project_id: String,
    /// What became of it; nothing when it merely fell silent.
    #[serde(default)]
    pub status: Option<SessionStatus>,
    /// How many checkpoints its runs have.
    pub checkpoints_count: u64,
    /// A name to show.
    #[serde(default)]
    pub display_name: Option<String>,
    /// The user's notes.
    #[serde(default)]
    pub user_metadata: Option<BTreeMap<String, String>>,
    /// Bytes of its checkpoints.
    #[serde(default)]
    pub checkpoint_storage_bytes: Option<u64>,
}

/// What became of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionStatus {
    /// `active` or `client_finished`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Why its client finished it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<super::FinishReason>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl SessionStatus {
    /// It is still open.
    #[must_use]
    pub fn active() -> Self {
        Self { kind: "active".to_owned(), reason: None, detail: None }
    }

    /// Its client said that it is over.
    #[must_use]
    pub fn client_finished(reason: String, detail: Option<String>) -> Self {
        Self { kind: "client_finished".to_owned(), reason: Some(super::FinishReason { kind: reason }), detail }
    }
}
