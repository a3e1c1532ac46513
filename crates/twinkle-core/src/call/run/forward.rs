//! How the network is used in a forward or forward-backward, and which loss is computed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::call::custom_loss::SharedGraph;

/// How the network is used in one forward or forward-backward, and what is returned besides logprobs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForwardOptions {
    /// Logits are divided by it before everything else; above 0.
    pub temperature: f64,
    /// Whether the base model computes without the run's adapter. Forward only: there is nothing to train.
    pub disable_lora: bool,
    /// What is returned besides logprobs.
    pub outputs: ForwardOutputs,
    /// From here on an update takes so many backward passes, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accumulation_steps: Option<u64>,
}

impl Default for ForwardOptions {
    fn default() -> Self {
        Self { temperature: 1.0, disable_lora: false, outputs: ForwardOutputs::default(), accumulation_steps: None }
    }
}

impl ForwardOptions {
    /// Whether it is what every operation has that says nothing.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What a forward or forward-backward returns besides logprobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForwardOutputs {
    /// Every logit of every position, divided by the temperature. They are large: a request may ask for so many only.
    pub logits: bool,
    /// The entropy of the distribution at every position.
    pub entropies: bool,
    /// Of each datum the row after its last token, of length 1.
    pub embeddings: bool,
}

/// A loss by name with its settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossSpec {
    /// `cross_entropy`, …
    pub name: String,
    /// Settings such as `clip_low_threshold`; yes and no are 1 and 0.
    pub config: BTreeMap<String, f64>,
    /// Settings that are words, such as `loss_type`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// What `custom` computes: taken along, so that a replay does not depend on a client's list of losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<SharedGraph>,
}

impl LossSpec {
    /// A loss with the settings it has by default.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}
