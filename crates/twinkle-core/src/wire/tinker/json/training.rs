//! Models, training operations and their futures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Datum, Tag, TensorData};
use crate::call::AdamParams;

/// `POST create_model`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreateModel {
    /// The session it belongs to.
    pub session_id: String,
    /// Its number within the session: the model is `<session_id>:train:<model_seq_id>`.
    pub model_seq_id: u64,
    /// The base model's public name.
    pub base_model: String,
    /// The user's notes.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub user_metadata: BTreeMap<String, Value>,
    /// The adapter; absent asks for full fine-tuning.
    #[serde(default)]
    pub lora_config: Option<LoraConfig>,
    /// The kind of optimizer.
    #[serde(default)]
    pub optimizer_config: Option<OptimizerConfig>,
}

/// The shape of an adapter. A setting that is not here would change the adapter: it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Its rank.
    pub rank: u32,
    /// Seed of its initial values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<super::Seed>,
    /// Whether the output head is adapted.
    #[serde(default = "yes")]
    pub train_unembed: bool,
    /// Whether the MLP projections are adapted.
    #[serde(default = "yes")]
    pub train_mlp: bool,
    /// Whether the attention projections are adapted.
    #[serde(default = "yes")]
    pub train_attn: bool,
}

const fn yes() -> bool {
    true
}

/// The kind of optimizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OptimizerConfig {
    /// `adamw`, the only one of this server.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A request whose result is fetched later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Future {
    /// Ask for the result with this.
    pub request_id: String,
    /// The model it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// One per requested sample; required by SDKs since 0.30 on `asample`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_sequence_ids: Option<Vec<String>>,
}

/// `POST retrieve_future`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RetrieveFuture {
    /// From [`Future`].
    pub request_id: String,
    /// Whether the size of a result may be answered in its place.
    #[serde(default)]
    pub allow_metadata_only: bool,
}

/// The body of status 408: not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pending {
    /// `active`.
    pub queue_state: String,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_state_reason: Option<String>,
}

/// The result of a request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestFailed {
    /// What happened.
    pub error: String,
    /// `user` or `server`.
    pub category: String,
}

/// The result of `create_model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelCreated {
    /// The model.
    pub model_id: String,
    /// `create_model`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
}

/// `POST get_info` and `POST unload_model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelRequest {
    /// The model.
    pub model_id: String,
}

/// `POST get_info`.
pub type GetInfo = ModelRequest;

/// The answer to `get_info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelInfo {
    /// `get_info`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
    /// The model.
    pub model_id: String,
    /// About its base model.
    pub model_data: ModelData,
    /// The kind of optimizer.
    #[serde(default)]
    pub optimizer_config: Option<OptimizerConfig>,
    /// Whether it is an adapter.
    #[serde(default)]
    pub is_lora: Option<bool>,
    /// The adapter's rank.
    #[serde(default)]
    pub lora_rank: Option<u32>,
    /// The base model's public name.
    #[serde(default)]
    pub model_name: Option<String>,
}

/// About a base model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelData {
    /// Its public name.
    pub model_name: String,
    /// Where its tokenizer is found: a local folder or a hub id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_id: Option<String>,
}

/// `POST forward_backward` of SDKs before protobuf.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ForwardBackward {
    /// What to compute.
    pub forward_backward_input: ForwardBackwardInput,
    /// The model.
    pub model_id: String,
    /// Its number in the model's order.
    #[serde(default)]
    pub seq_id: Option<u64>,
}

/// `POST forward` of SDKs before protobuf.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Forward {
    /// What to compute.
    pub forward_input: ForwardBackwardInput,
    /// The model.
    pub model_id: String,
    /// Its number in the model's order.
    #[serde(default)]
    pub seq_id: Option<u64>,
}

/// Examples and loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ForwardBackwardInput {
    /// The examples.
    pub data: Vec<Datum>,
    /// Which loss.
    pub loss_fn: String,
    /// Its settings.
    #[serde(default)]
    pub loss_fn_config: Option<BTreeMap<String, LossSetting>>,
}

/// One setting of a loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "a loss setting is a number or a text")]
pub enum LossSetting {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// The result of a forward or forward-backward.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ForwardBackwardOutput {
    /// Free text.
    pub loss_fn_output_type: String,
    /// Per datum its arrays by name.
    pub loss_fn_outputs: Vec<BTreeMap<String, TensorData>>,
    /// Sums and such; each key is `name:reduction`.
    pub metrics: BTreeMap<String, f64>,
}

/// `POST optim_step`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OptimStep {
    /// `AdamW`'s settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adam_params: Option<AdamParams>,
    /// The settings of any optimizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer_params: Option<AnyOptimizerParams>,
    /// The model.
    pub model_id: String,
    /// Its number in the model's order.
    #[serde(default)]
    pub seq_id: Option<u64>,
}

/// The settings of any optimizer, by its type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AnyOptimizerParams {
    /// Which optimizer.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its settings.
    #[serde(flatten)]
    pub settings: BTreeMap<String, Value>,
}

/// The result of `optim_step`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OptimStepOutput {
    /// `grad_norm` and such.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub metrics: BTreeMap<String, f64>,
}

/// The result of `unload_model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelUnloaded {
    /// The model.
    pub model_id: String,
    /// `unload_model`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
}
