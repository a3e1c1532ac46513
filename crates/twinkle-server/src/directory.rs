//! What this node serves, by public model name. The protocol fronts look here for where to send a call.

use std::path::PathBuf;
use std::sync::Arc;

use twinkle_core::component::BoxComponent;
use twinkle_core::config::TrainMode;
use twinkle_core::error::{Error, Result, suggestion};
use twinkle_core::middleware::journal::Journal;

/// One base model and the components that train and sample it.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// Its public name, as clients write it.
    pub name: String,
    /// Longest sequence, in tokens.
    pub max_context: usize,
    /// Number of token ids; valid ids are below it.
    pub vocabulary: usize,
    /// Whether runs are adapters, or one run trains all weights.
    pub train_mode: TrainMode,
    /// Largest LoRA rank a run may ask for.
    pub max_rank: u32,
    /// How many runs are held in memory at once; 0 of a model that is only sampled.
    pub max_loras: u32,
    /// The LoRA alpha of runs that do not name one.
    pub default_alpha: f64,
    /// The folder with `tokenizer.json`: a client on this machine can load its tokenizer from it.
    pub tokenizer: PathBuf,
    /// The training component inside its stack, when a `model` application serves this model.
    pub trainer: Option<BoxComponent>,
    /// The journal inside that stack: a front tells it the numbers of requests that it refused.
    pub journal: Option<Journal>,
    /// The sampling component inside its stack, when a `sampler` application serves this model.
    pub sampler: Option<BoxComponent>,
}

/// All models this node serves: a cheap handle, fixed once the node is ready.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    models: Arc<[ServedModel]>,
}

impl Directory {
    /// A directory of these models, in the order they are listed to clients.
    #[must_use]
    pub fn new(models: Vec<ServedModel>) -> Self {
        Self { models: models.into() }
    }

    /// Every served model.
    #[must_use]
    pub fn models(&self) -> &[ServedModel] {
        &self.models
    }

    /// The model of this name; an error names the nearest one.
    pub fn model(&self, name: &str) -> Result<&ServedModel> {
        self.models.iter().find(|model| model.name == name).ok_or_else(|| self.unknown(name))
    }

    /// The training stack of this model.
    pub fn trainer(&self, name: &str) -> Result<&BoxComponent> {
        self.model(name)?
            .trainer
            .as_ref()
            .ok_or_else(|| Error::unsupported(format!("base model `{name}` can be sampled here, but not trained")))
    }

    /// The sampling stack of this model.
    pub fn sampler(&self, name: &str) -> Result<&BoxComponent> {
        self.model(name)?
            .sampler
            .as_ref()
            .ok_or_else(|| Error::unsupported(format!("base model `{name}` can be trained here, but not sampled")))
    }

    fn unknown(&self, name: &str) -> Error {
        let known: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        let error = Error::unsupported(format!("base model `{name}` is not served here"));
        if known.is_empty() {
            return error.hint("this node serves no model: its configuration has no `model` or `sampler` application");
        }
        error.hint(suggestion(name, "models", &known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(name: &str) -> ServedModel {
        ServedModel {
            name: name.to_owned(),
            max_context: 128,
            vocabulary: 256,
            train_mode: TrainMode::Lora,
            max_rank: 32,
            max_loras: 8,
            default_alpha: 32.0,
            tokenizer: PathBuf::from("models/tiny"),
            trainer: None,
            journal: None,
            sampler: None,
        }
    }

    #[test]
    fn an_unknown_model_is_answered_with_the_nearest_name() {
        let directory = Directory::new(vec![served("Qwen/Qwen3-8B"), served("meta-llama/Llama-3.2-1B")]);
        let error = directory.model("Qwen/Qwen3-8b").unwrap_err();
        assert_eq!(error.message, "base model `Qwen/Qwen3-8b` is not served here");
        assert!(error.hint.unwrap().starts_with("did you mean `Qwen/Qwen3-8B`?"));
    }

    #[test]
    fn a_model_without_a_trainer_says_what_it_can_do() {
        let directory = Directory::new(vec![served("tiny")]);
        assert_eq!(
            directory.trainer("tiny").unwrap_err().message,
            "base model `tiny` can be sampled here, but not trained"
        );
    }
}
