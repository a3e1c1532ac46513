//! Sampling sessions and samples.

use std::fmt;

use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::{ModelInput, Tag, TensorData};
use crate::call::WeightVersion;
use crate::data::TokenIds;

/// `POST create_sampling_session`: weights of a checkpoint, or of a base model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreateSamplingSession {
    /// The session it belongs to.
    pub session_id: String,
    /// Its number within the session.
    pub sampling_session_seq_id: u64,
    /// The base model's public name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// The checkpoint's full path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_path: Option<String>,
}

/// The answer to [`CreateSamplingSession`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SamplingSessionCreated {
    /// `create_sampling_session`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
    /// The sampling session.
    pub sampling_session_id: String,
}

/// `GET samplers/{sampling_session_id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sampler {
    /// The sampling session.
    pub sampler_id: String,
    /// The base model's public name.
    pub base_model: String,
    /// The checkpoint's full path.
    #[serde(default)]
    pub model_path: Option<String>,
}

/// `POST asample`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sample {
    /// Where to sample.
    #[serde(default)]
    pub sampling_session_id: Option<String>,
    /// Its number within the sampling session: a repeated number is the same request.
    #[serde(default)]
    pub seq_id: Option<u64>,
    /// How many independent continuations.
    #[serde(default = "one")]
    pub num_samples: u32,
    /// The prompt.
    pub prompt: ModelInput,
    /// How to draw.
    #[serde(default)]
    pub sampling_params: SamplingParams,
    /// Whether the logprob of every prompt token is wanted.
    #[serde(default)]
    pub prompt_logprobs: Option<bool>,
    /// How many likely tokens per prompt position are wanted.
    #[serde(default)]
    pub topk_prompt_logprobs: Option<u32>,
    /// How many likely tokens per new token are wanted.
    #[serde(default)]
    pub topk_sample_logprobs: Option<u32>,
    /// Candidates whose logprobs at each prompt position are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_prompt_logprobs: Option<TensorData>,
    /// How many tokens to draw in place of each prompt token.
    #[serde(default)]
    pub prompt_alt_tokens_k: Option<u32>,
    /// How many prompt tokens from the end are to be scored.
    #[serde(default)]
    pub prompt_logprobs_last_n: Option<u32>,
    /// Whether the server keeps what the `stable_reinforce` loss needs.
    #[serde(default)]
    pub record_stability_info: Option<bool>,
}

const fn one() -> u32 {
    1
}

/// How tokens are drawn. A setting that is not here would change what is drawn: it is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Most new tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Same seed, same tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// When to stop early; absent: at the model's end of sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// 0 is greedy.
    pub temperature: f64,
    /// -1 and 0 keep all tokens.
    pub top_k: i64,
    /// 1 keeps all tokens.
    pub top_p: f64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { max_tokens: None, seed: None, stop: None, temperature: 1.0, top_k: -1, top_p: 1.0 }
    }
}

/// When to stop early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "`stop` must be a text, a list of texts or a list of token ids")]
pub enum Stop {
    /// At this text.
    Text(String),
    /// At any of these tokens; an empty list: never.
    Tokens(Vec<u32>),
    /// At any of these texts.
    Texts(Vec<String>),
}

/// A 64-bit seed that clients write as a signed or an unsigned number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// Its bits: -1 is `u64::MAX`.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The seed with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Seed {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Seed".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A 64-bit seed, as a signed or an unsigned number.",
            "type": "integer",
            "minimum": i64::MIN,
            "maximum": u64::MAX,
        })
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SeedVisitor;

        impl Visitor<'_> for SeedVisitor {
            type Value = Seed;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a seed of at most 64 bits")
            }

            fn visit_u64<E: serde::de::Error>(self, bits: u64) -> Result<Seed, E> {
                Ok(Seed(bits))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Seed, E> {
                Ok(Seed(number.cast_unsigned()))
            }
        }

        deserializer.deserialize_any(SeedVisitor).map_err(D::Error::custom)
    }
}

/// Per position the likeliest tokens and their logprobs, likeliest first; null where there are none.
pub type TopkLogprobs = Vec<Option<Vec<(u32, f32)>>>;

/// The result of a sampling request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SampleResponse {
    /// `sample`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
    /// One per requested sample.
    pub sequences: Vec<SampledSequence>,
    /// One per prompt token, null where there is none.
    #[serde(default)]
    pub prompt_logprobs: Option<Vec<Option<f32>>>,
    /// Per prompt token the likeliest ones in its place.
    #[serde(default)]
    pub topk_prompt_logprobs: Option<TopkLogprobs>,
    /// The logprobs of the candidates, in their layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_prompt_logprobs: Option<TensorData>,
    /// Tokens drawn in place of the prompt's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_alt_tokens: Option<PromptAltTokens>,
}

/// Tokens drawn in place of each prompt token but the first, `[prompt - 1, k]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptAltTokens {
    /// int64 ids.
    pub tokens: TensorData,
    /// float32.
    pub logprobs: TensorData,
}

/// One continuation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SampledSequence {
    /// Why it ended.
    pub stop_reason: StopReason,
    /// The new tokens.
    pub tokens: TokenIds,
    /// One per token.
    #[serde(default)]
    pub logprobs: Option<Vec<f32>>,
    /// Per token the likeliest ones in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topk_logprobs: Option<TopkLogprobs>,
    /// The weights that produced the tokens, in order; an extension of this server.
    #[serde(default)]
    pub weight_spans: Vec<WeightSpan>,
}

/// Tokens that the same weights produced; an extension of this server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WeightSpan {
    /// How many tokens.
    pub length: u32,
    /// Which weights.
    #[serde(flatten)]
    pub weights: WeightVersion,
}

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A stop token or text, or end-of-sequence.
    Stop,
    /// The token limit or the end of the context.
    Length,
}
