//! Saving and loading weights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{OptimizerConfig, Tag};

/// `POST save_weights`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SaveWeights {
    /// The model.
    pub model_id: String,
    /// The checkpoint's name.
    #[serde(default)]
    pub path: Option<String>,
    /// Its number in the model's order.
    #[serde(default)]
    pub seq_id: Option<u64>,
    /// Seconds until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Whether a checkpoint of that name is replaced.
    #[serde(default)]
    pub overwrite: bool,
    /// The user's notes.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub user_metadata: BTreeMap<String, String>,
}

/// The result of [`SaveWeights`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WeightsSaved {
    /// The checkpoint's full path.
    pub path: String,
    /// `save_weights`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
}

/// `POST save_weights_for_sampler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SaveWeightsForSampler {
    /// The model.
    pub model_id: String,
    /// The checkpoint's name; absent: a sampling session that lives in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The number of that sampling session within the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_session_seq_id: Option<u64>,
    /// `snapshot`, or `inflight` for weights that change under their samplers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its number in the model's order.
    #[serde(default)]
    pub seq_id: Option<u64>,
    /// Seconds until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// The user's notes.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub user_metadata: BTreeMap<String, String>,
}

/// The result of [`SaveWeightsForSampler`]: one of the two is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WeightsSavedForSampler {
    /// The checkpoint's full path.
    #[serde(default)]
    pub path: Option<String>,
    /// The sampling session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_session_id: Option<String>,
    /// `save_weights_for_sampler`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
}

/// `POST load_weights`: makes a model out of a checkpoint, or loads one into a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LoadWeights {
    /// The checkpoint's full path.
    pub path: String,
    /// Whether the optimizer continues.
    pub optimizer: bool,
    /// Makes a model in this session …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// … with this number,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_seq_id: Option<u64>,
    /// or loads into this model
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// at this place in its order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<u64>,
    /// The base model the checkpoint must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// The user's notes.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub user_metadata: BTreeMap<String, Value>,
    /// The kind of optimizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer_config: Option<OptimizerConfig>,
    /// The secret of another account's checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_access_token: Option<String>,
}

/// The result of [`LoadWeights`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WeightsLoaded {
    /// The checkpoint's full path.
    #[serde(default)]
    pub path: Option<String>,
    /// The model.
    #[serde(default)]
    pub model_id: Option<String>,
    /// `load_weights`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
}

/// `POST weights_info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WeightsInfoRequest {
    /// The checkpoint's full path.
    pub tinker_path: String,
}

/// The answer to [`WeightsInfoRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WeightsInfo {
    /// The base model's public name.
    pub base_model: String,
    /// Whether it is an adapter.
    pub is_lora: bool,
    /// The adapter's rank.
    #[serde(default)]
    pub lora_rank: Option<u32>,
    /// Whether the output head is adapted.
    #[serde(default)]
    pub train_unembed: Option<bool>,
    /// Whether the MLP projections are adapted.
    #[serde(default)]
    pub train_mlp: Option<bool>,
    /// Whether the attention projections are adapted.
    #[serde(default)]
    pub train_attn: Option<bool>,
    /// The kind of optimizer.
    #[serde(default)]
    pub optimizer_config: Option<OptimizerConfig>,
}

/// `POST save_weights_external`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SaveWeightsExternal {
    /// The model.
    pub model_id: String,
    /// The checkpoint's name.
    #[serde(default)]
    pub path: Option<String>,
    /// Its number in the model's order.
    #[serde(default)]
    pub seq_id: Option<u64>,
    /// Seconds until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Whom every file is encrypted for; absent: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_encryption_recipients: Option<Vec<String>>,
}

/// The answer to `GET …/external_weights_urls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExternalWeightsUrls {
    /// Where each file can be fetched, by its name.
    pub urls: BTreeMap<String, String>,
    /// Until when, RFC 3339.
    pub expires: jiff::Timestamp,
}

/// `PUT …/ttl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CheckpointLifetime {
    /// Seconds from now until it is removed; null: never.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
}

/// `POST copy_weights`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CopyWeights {
    /// The checkpoint's full path.
    pub source_path: String,
    /// The project that is to own the copy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_project_id: Option<String>,
    /// or the session
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// and the number of a run in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_seq_id: Option<u64>,
    /// Seconds until the copy is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// The secret of another account's checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_access_token: Option<String>,
}

/// The answer to [`CopyWeights`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WeightsCopied {
    /// The copy's full path.
    pub tinker_path: String,
}
