//! What calls work with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use twinkle_core::error::{Error, ErrorCode, Result, suggestion};

use crate::data::Places;
use crate::encode::{Template, TemplateSpec};
use crate::templates::Templates;

/// What calls work with; a cheap handle.
#[derive(Clone, Debug)]
pub struct Hands {
    /// Where data sets may lie.
    pub places: Arc<Places>,
    /// Tokenizers and chat templates.
    pub templates: Templates,
    /// The folders of the served models, by public name.
    pub models: Arc<BTreeMap<String, PathBuf>>,
    /// Threads that work at once.
    pub workers: Arc<Semaphore>,
    /// How many those are.
    pub worker_count: usize,
    /// `TWINKLE_SEED`.
    pub seed: Option<u32>,
}

impl Hands {
    /// A template of a served model, by the class and settings of a request.
    pub async fn template(&self, class: &str, settings: Map<String, Value>) -> Result<Template> {
        let spec = TemplateSpec::named(class, &settings)?;
        let folder = self.model(settings.get("model_id").and_then(Value::as_str))?;
        self.templates.load(&folder, &spec).await
    }

    /// Waits for a thread to work on.
    pub async fn worker(&self) -> Result<OwnedSemaphorePermit> {
        let closed = |_| Error::new(ErrorCode::Draining, "the node is shutting down");
        Arc::clone(&self.workers).acquire_owned().await.map_err(closed)
    }

    /// The folder of a served model; without a name, of the only one.
    fn model(&self, name: Option<&str>) -> Result<PathBuf> {
        let known: Vec<&str> = self.models.keys().map(String::as_str).collect();
        let Some(name) = name else {
            return match self.models.values().next() {
                Some(only) if known.len() == 1 => Ok(only.clone()),
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
