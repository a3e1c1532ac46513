//! Templates for the protocol fronts: loaded once, used by everyone, off the runtime.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moka::sync::Cache;
use tokio::sync::Semaphore;
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::{Input, InputFeature};

use crate::encode::{Template, TemplateSpec};
use crate::limits::check_inputs;
use crate::tokenizer::ModelTokenizer;

/// Tokenizers in memory at once; a large one takes some hundred megabytes.
const MOST_TOKENIZERS: u64 = 16;

/// The tokenizers and chat templates of model folders; a cheap handle.
#[derive(Clone)]
pub struct Templates {
    shared: Arc<Shared>,
}

struct Shared {
    tokenizers: Cache<PathBuf, Arc<ModelTokenizer>>,
    workers: Semaphore,
}

impl Default for Templates {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Shared { tokenizers: Cache::new(MOST_TOKENIZERS), workers: Semaphore::new(workers) };
        Self { shared: Arc::new(shared) }
    }
}

impl Templates {
    /// A template of the model in this folder. The folder is read the first time only.
    pub async fn load(&self, folder: &Path, spec: &TemplateSpec) -> Result<Template> {
        Ok(Template::new(self.tokenizer(folder).await?, spec.clone()))
    }

    /// The tokenizer of the model in this folder.
    pub async fn tokenizer(&self, folder: &Path) -> Result<Arc<ModelTokenizer>> {
        if let Some(loaded) = self.shared.tokenizers.get(folder) {
            return Ok(loaded);
        }
        let (shared, folder) = (Arc::clone(&self.shared), folder.to_owned());
        let load = move || {
            let loaded = shared.tokenizers.try_get_with(folder.clone(), || ModelTokenizer::load(&folder).map(Arc::new));
            loaded.map_err(|error: Arc<Error>| Error::clone(&error))
        };
        self.off_runtime(load).await?
    }

    /// Each input as examples, in order; see [`Template::encode`]. An error names the input.
    pub async fn encode(
        &self,
        template: &Template,
        inputs: Vec<Input>,
        add_generation_prompt: bool,
    ) -> Result<Vec<Vec<InputFeature>>> {
        check_inputs(inputs.len())?;
        if inputs.iter().all(|input| matches!(input, Input::Feature(_))) {
            // Nothing is to be done, so nobody's conversations are waited for.
            return encode_all(template, inputs, add_generation_prompt);
        }
        let template = template.clone();
        let work = move || encode_all(&template, inputs, add_generation_prompt);
        self.off_runtime(work).await?
    }

    /// Runs `work` on a blocking thread, as many at once as the machine has cores.
    pub async fn off_runtime<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let shut = |_| Error::internal("no thread does text work any more");
        let _permit = self.shared.workers.acquire().await.map_err(shut)?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| Error::internal(format!("text work was interrupted: {error}")))
    }
}

impl std::fmt::Debug for Templates {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Templates").field("tokenizers", &self.shared.tokenizers.entry_count()).finish()
    }
}

fn encode_all(template: &Template, inputs: Vec<Input>, is_prompt: bool) -> Result<Vec<Vec<InputFeature>>> {
    let count = inputs.len();
    let mut encoded = Vec::with_capacity(count);
    for (number, input) in inputs.into_iter().enumerate() {
        let features = template.encode_input(input, is_prompt).map_err(|mut error| {
            if count > 1 {
                error.message = format!("input {number}: {}", error.message);
            }
            error
        })?;
        encoded.push(features);
    }
    Ok(encoded)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use twinkle_core::error::ErrorCode;
    use twinkle_core::wire::twinkle::Inputs;

    use super::*;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
    }

    #[tokio::test]
    async fn a_folder_is_loaded_once_and_a_broken_one_again_and_again() {
        let templates = Templates::default();
        let first = templates.tokenizer(&fixtures()).await.unwrap();
        let again = templates.clone().tokenizer(&fixtures()).await.unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let empty = tempfile::tempdir().unwrap();
        let spec = TemplateSpec::default();
        assert_eq!(templates.load(empty.path(), &spec).await.unwrap_err().code, ErrorCode::NotFound);
        std::fs::copy(fixtures().join("tokenizer.json"), empty.path().join("tokenizer.json")).unwrap();
        templates.load(empty.path(), &spec).await.unwrap();
    }

    #[tokio::test]
    async fn tokens_pass_as_they_are_and_a_mistake_names_its_input() {
        let templates = Templates::default();
        let template = templates.load(&fixtures(), &TemplateSpec::default()).await.unwrap();
        let inputs = |value| serde_json::from_value::<Inputs>(value).unwrap().0;
        let tokens = inputs(json!([{"input_ids": [1]}, {"input_ids": [2], "labels": [-100], "id": 3}]));
        let encoded = templates.encode(&template, tokens.clone(), false).await.unwrap();
        let encoded: Vec<Input> = encoded.into_iter().flatten().map(Input::Feature).collect();
        assert_eq!(encoded, tokens);
        let mixed = inputs(json!([{"input_ids": [1]}, {"messages": [{"role": "user", "content": "a"}]}]));
        let error = templates.encode(&template, mixed, false).await.unwrap_err();
        assert_eq!(error.message, "input 1: the model has no chat template");
        let many = vec![Input::Feature(InputFeature::prompt(vec![1])); 5000];
        assert_eq!(templates.encode(&template, many, false).await.unwrap_err().code, ErrorCode::TooLarge);
    }
}
