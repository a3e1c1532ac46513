//! What the methods of the clients can be told, each with its defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::retry::RetryPolicy;

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// How patient to be with a server that does not answer.
    pub retry: RetryPolicy,
    /// Pause between signs of life; a server frees the runs of a session that is silent for minutes.
    pub heartbeat_interval: Duration,
    /// Labels of the session.
    pub tags: Vec<String>,
    /// Notes on the session.
    pub user_metadata: BTreeMap<String, String>,
    /// The project that the session and its runs are filed under.
    pub project_id: Option<String>,
    /// A name of the session, to be shown.
    pub display_name: Option<String>,
    /// Headers of every request, for a proxy on the way.
    pub headers: BTreeMap<String, String>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            heartbeat_interval: Duration::from_secs(10),
            tags: Vec::new(),
            user_metadata: BTreeMap::new(),
            project_id: None,
            display_name: None,
            headers: BTreeMap::new(),
        }
    }
}

/// The shape of a new LoRA adapter (Hu et al. 2021). A number alone is its rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraOptions {
    /// Its rank.
    pub rank: u32,
    /// Seed of its initial values; `None`: the server's choice.
    pub seed: Option<u64>,
    /// Adapt the attention projections.
    pub train_attn: bool,
    /// Adapt the MLP projections.
    pub train_mlp: bool,
    /// Adapt the output head.
    pub train_unembed: bool,
    /// Notes on the run.
    pub user_metadata: BTreeMap<String, String>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 32,
            seed: None,
            train_attn: true,
            train_mlp: true,
            train_unembed: true,
            user_metadata: BTreeMap::new(),
        }
    }
}

impl From<u32> for LoraOptions {
    fn from(rank: u32) -> Self {
        Self { rank, ..Self::default() }
    }
}

/// Under which name a checkpoint is saved, and how. A text alone is its name.
///
/// ```
/// use twinkle_client::SaveOptions;
///
/// let plain = SaveOptions::from("last");
/// let short_lived = SaveOptions { ttl_seconds: Some(86_400), ..SaveOptions::from("nightly") };
/// assert!(plain.ttl_seconds.is_none() && short_lived.name == "nightly");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// One segment: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Seconds until the server may delete it; `None` keeps it.
    pub ttl_seconds: Option<u64>,
    /// Replace a checkpoint of the same name. Training checkpoints only.
    pub overwrite: bool,
    /// Notes on the checkpoint.
    pub user_metadata: BTreeMap<String, String>,
}

impl From<&str> for SaveOptions {
    fn from(name: &str) -> Self {
        name.to_owned().into()
    }
}

impl From<String> for SaveOptions {
    fn from(name: String) -> Self {
        Self { name, ..Self::default() }
    }
}

/// The weights a sampling client reads. A text is a checkpoint when it begins with `tinker://` or `twinkle://`, else the
/// name of a base model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weights {
    /// The frozen base model of this name.
    Base(String),
    /// The adapter that was saved at this path.
    Checkpoint(String),
}

impl From<&str> for Weights {
    fn from(text: &str) -> Self {
        let is_path = ["tinker://", "twinkle://"].iter().any(|scheme| text.starts_with(scheme));
        if is_path { Self::Checkpoint(text.to_owned()) } else { Self::Base(text.to_owned()) }
    }
}

impl From<&String> for Weights {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<String> for Weights {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_a_checkpoint_or_a_base_model() {
        for path in ["tinker://s:train:0/sampler_weights/a", "twinkle://s:train:0/weights/a"] {
            assert_eq!(Weights::from(path), Weights::Checkpoint(path.to_owned()));
        }
        for name in ["Qwen/Qwen3-4B", "tinker", "http://tinker://x"] {
            assert_eq!(Weights::from(name), Weights::Base(name.to_owned()));
        }
    }
}
