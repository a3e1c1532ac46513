//! What calls work with.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use twinkle_core::error::{Error, ErrorCode, Result, suggestion};

use crate::data::Places;
use crate::encode::{Template, TemplateSpec};
use crate::tokenizer::ModelTokenizer;

/// A thread that may be worked on until this is dropped.
#[derive(Debug)]
pub struct Worker {
    _permits: Vec<OwnedSemaphorePermit>,
}

/// What calls work with; a cheap handle.
#[derive(Clone, Debug)]
pub struct Hands {
    /// Where data sets may lie.
    pub places: Arc<Places>,
    /// Tokenizers and chat templates of the served models, by public name.
    pub models: Arc<BTreeMap<String, Arc<ModelTokenizer>>>,
    /// Threads that work at once.
    pub workers: Arc<Semaphore>,
    /// Of those, the ones that work on whole data sets: fewer, so that one is left for rows and batches.
    pub long_work: Arc<Semaphore>,
    /// `TWINKLE_SEED`.
    pub seed: Option<u32>,
}

impl Hands {
    /// A template of a served model, by the class and settings of a request.
    pub fn template(&self, class: &str, settings: &Map<String, Value>) -> Result<Template> {
        let spec = TemplateSpec::named(class, settings)?;
        let model = self.model(settings.get("model_id").and_then(Value::as_str))?;
        Ok(Template::new(model, spec))
    }

    /// Waits for a thread to work on, for all of a data set or for a row or batch.
    pub async fn worker(&self, is_long: bool) -> Result<Worker> {
        let closed = |_| Error::new(ErrorCode::Draining, "the node is shutting down");
        let mut permits = Vec::new();
        for semaphore in [&self.long_work, &self.workers].into_iter().skip(usize::from(!is_long)) {
            permits.push(Arc::clone(semaphore).acquire_owned().await.map_err(closed)?);
        }
        Ok(Worker { _permits: permits })
    }

    /// A served model; without a name, the only one.
    fn model(&self, name: Option<&str>) -> Result<Arc<ModelTokenizer>> {
        let known: Vec<&str> = self.models.keys().map(String::as_str).collect();
        let Some(name) = name else {
            return match self.models.values().next() {
                Some(only) if known.len() == 1 => Ok(Arc::clone(only)),
                _ => {
                    Err(Error::invalid("the template needs the argument `model_id`")
                        .hint(suggestion("", "models", &known)))
                }
            };
        };
        let public = name.split_once("://").map_or(name, |(_, rest)| rest);
        self.models.get(public).cloned().ok_or_else(|| {
            Error::unsupported(format!("the model `{public}` is not served here, so its template is not known"))
                .hint(suggestion(public, "models", &known))
        })
    }
}
