//! Start-up, sessions and telemetry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Tag;

/// `POST client/config` and `POST client/dynamic_config`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClientConfigRequest {
    /// The client's version.
    #[serde(default)]
    pub sdk_version: Option<String>,
}

/// The switches a client asks for before anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of the protocol, by their names on the wire")]
pub struct ClientConfig {
    /// Whether the API key is exchanged for a token first.
    pub pjwt_auth_enabled: bool,
    /// Where the client looks for its key.
    pub credential_default_source: String,
    /// Bytes of sampling requests a client has on their way at most.
    pub sample_dispatch_bytes_semaphore_size: u64,
    /// Bytes of results a client fetches at the same time at most.
    pub inflight_response_bytes_semaphore_size: u64,
    /// Whether the chunks of one request are sent at the same time.
    pub parallel_fwdbwd_chunks: bool,
    /// Whether training requests are compressed with zstd.
    pub proto_compress_fwdbwd: bool,
    /// Most datums in one chunk.
    pub fwdbwd_max_chunk_len: u64,
    /// Most estimated bytes in one chunk.
    pub fwdbwd_max_chunk_bytes_count: u64,
    /// Most estimated bytes of training requests on their way.
    pub fwdbwd_dispatch_bytes_semaphore_size: u64,
    /// Most samples a sampling client has on their way.
    pub sample_max_concurrent_requests: u64,
    /// Whether finished samples are announced in bulk.
    pub sample_use_retrieve_futures: bool,
    /// Whether a copied sampling client asks for a number of its own.
    pub sample_join_sampling_session: bool,
    /// Whether a traced loss is run by the server.
    pub custom_loss_server_side: bool,
    /// SDK 0.22 to 0.24: training requests as protobuf.
    pub proto_write_fwdbwd: bool,
    /// SDK 0.22 to 0.24: a forward is a forward-backward without gradients.
    pub fwd_via_fwdbwd: bool,
    /// SDK 0.24 to 0.33: loading a checkpoint makes the model.
    pub create_model_via_load_weights: bool,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            pjwt_auth_enabled: false,
            credential_default_source: "api_key".to_owned(),
            sample_dispatch_bytes_semaphore_size: 10 << 20,
            inflight_response_bytes_semaphore_size: 50 << 20,
            parallel_fwdbwd_chunks: true,
            proto_compress_fwdbwd: false,
            fwdbwd_max_chunk_len: 1024,
            fwdbwd_max_chunk_bytes_count: 5_000_000,
            fwdbwd_dispatch_bytes_semaphore_size: 50_000_000,
            sample_max_concurrent_requests: 2000,
            sample_use_retrieve_futures: true,
            sample_join_sampling_session: true,
            custom_loss_server_side: true,
            proto_write_fwdbwd: true,
            fwd_via_fwdbwd: true,
            create_model_via_load_weights: true,
        }
    }
}

/// The switches a client asks for again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct DynamicConfig {
    /// Seconds until it asks again.
    pub refresh_interval_sec: u64,
    /// Whether abandoned samples are cancelled.
    pub sample_cancel_enabled: bool,
    /// Most samples cancelled at once.
    pub sample_cancel_max_batch_size: u64,
}

impl Default for DynamicConfig {
    fn default() -> Self {
        Self { refresh_interval_sec: 300, sample_cancel_enabled: true, sample_cancel_max_batch_size: 64 }
    }
}

/// `GET healthz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// `POST create_session`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreateSession {
    /// The client's tags.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub tags: Vec<String>,
    /// The user's notes.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub user_metadata: BTreeMap<String, Value>,
    /// The client's version.
    #[serde(default)]
    pub sdk_version: Option<String>,
    /// The project to file it under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// A name to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// The session's name, of a client that chooses one itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// The answer to [`CreateSession`]; messages are logged by the client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionCreated {
    /// `create_session`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
    /// The session.
    pub session_id: String,
    /// Something to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info_message: Option<String>,
    /// Something to mind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning_message: Option<String>,
    /// Something that went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// `POST session_heartbeat`; the answer has the same form with the type only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Heartbeat {
    /// The session.
    pub session_id: String,
}

/// `POST sessions/{id}/finish`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FinishSession {
    /// How it ended.
    #[serde(default)]
    pub reason: Option<FinishReason>,
    /// More about it.
    #[serde(default)]
    pub detail: Option<String>,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FinishReason {
    /// `success`, `errored` or `interrupted`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// The answer to `POST telemetry`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TelemetryAnswer {
    /// `accepted`.
    pub status: String,
}
