//! What the server has: models, training runs, checkpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer to `GET get_server_capabilities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServerCapabilities {
    /// What can be trained or sampled.
    pub supported_models: Vec<SupportedModel>,
}

/// A base model on offer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SupportedModel {
    /// Its public name.
    pub model_name: String,
    /// Most tokens of prompt and continuation together.
    #[serde(default)]
    pub max_context_length: Option<u64>,
    /// Whether runs can be created on it.
    #[serde(default)]
    pub trainable: Option<bool>,
    /// Whether it can be sampled.
    #[serde(default)]
    pub sampleable: Option<bool>,
    /// Which engine samples it: an addition of this server, ignored by the SDK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler_engine: Option<String>,
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TrainingRun {
    /// Its id, which is the model's.
    pub training_run_id: String,
    /// The base model's public name.
    pub base_model: String,
    /// Who owns it.
    pub model_owner: String,
    /// Whether it trains an adapter.
    pub is_lora: bool,
    /// Whether its state is damaged.
    #[serde(default)]
    pub corrupted: bool,
    /// The adapter's rank.
    #[serde(default)]
    pub lora_rank: Option<u32>,
    /// When it was last used, RFC 3339.
    pub last_request_time: jiff::Timestamp,
    /// Its newest training checkpoint.
    #[serde(default)]
    pub last_checkpoint: Option<Checkpoint>,
    /// Its newest sampler checkpoint.
    #[serde(default)]
    pub last_sampler_checkpoint: Option<Checkpoint>,
    /// The user's notes.
    #[serde(default)]
    pub user_metadata: Option<BTreeMap<String, String>>,
}

/// A page of training runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TrainingRuns {
    /// The page.
    pub training_runs: Vec<TrainingRun>,
    /// Where it is.
    pub cursor: Cursor,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cursor {
    /// How many come before it.
    pub offset: u64,
    /// How many it has at most.
    pub limit: u64,
    /// How many there are in all.
    pub total_count: u64,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Checkpoint {
    /// `weights/<name>` or `sampler_weights/<name>`.
    pub checkpoint_id: String,
    /// What it is for.
    pub checkpoint_type: CheckpointType,
    /// When it was saved, RFC 3339.
    pub time: jiff::Timestamp,
    /// Its full path.
    pub tinker_path: String,
    /// Bytes on disk.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Whether others may read it.
    #[serde(default)]
    pub public: bool,
    /// The user's notes.
    #[serde(default)]
    pub user_metadata: Option<BTreeMap<String, String>>,
    /// When it will be removed, RFC 3339.
    #[serde(default)]
    pub expires_at: Option<jiff::Timestamp>,
}

/// What a checkpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckpointType {
    /// Training can continue from it.
    Training,
    /// Sampling only.
    Sampler,
    /// To be downloaded.
    External,
}

/// Checkpoints, all of a run's or a page of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Checkpoints {
    /// The checkpoints.
    pub checkpoints: Vec<Checkpoint>,
    /// Where the page is.
    #[serde(default)]
    pub cursor: Option<Cursor>,
}
