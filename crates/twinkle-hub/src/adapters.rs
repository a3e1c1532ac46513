//! Adapters of both hubs: a few files of a repository of models.
//!
//! Tenants name them, so nothing of this server is sent along. What the hubs' own tools have downloaded is found, and what
//! somebody has put in its place by hand.

use std::path::PathBuf;
use std::sync::Arc;

use twinkle_core::config::{Hub, HubModel, ModelLocation, ModelSource};
use twinkle_core::{Error, ErrorCode, Result};

use crate::download::{Client, Failure, Patience};
use crate::environment::Environment;
use crate::hubs::{HuggingFace, ModelScope, Remote, RemoteFile, check_names, fetch_files};

/// What describes an adapter.
const DESCRIPTION: &str = "adapter_config.json";
/// Its weights.
const WEIGHTS: &str = "adapter_model.safetensors";
/// What this server uploads besides: how far the training had come. Others have none of it.
const OF_TRAINING: [&str; 2] = ["run.json", "optimizer.safetensors"];
/// The most bytes that are fetched for one adapter.
const MOST_BYTES: u64 = 8 << 30;

/// Adapters of both hubs and their caches.
pub struct AdapterLibrary {
    huggingface: Arc<HuggingFace>,
    modelscope: Arc<ModelScope>,
    /// `TWINKLE_FORBID_HF`.
    huggingface_forbidden: bool,
    client: Client,
}

/// How much of an adapter is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterFiles {
    /// What it is.
    Description,
    /// Also its weights, and what its training needs to go on where the repository has that.
    Everything,
}

impl AdapterFiles {
    const fn needed(self) -> &'static [&'static str] {
        match self {
            Self::Description => &[DESCRIPTION],
            Self::Everything => &[DESCRIPTION, WEIGHTS],
        }
    }

    fn wants(self, path: &str) -> bool {
        match self {
            Self::Description => [DESCRIPTION, OF_TRAINING[0]].contains(&path),
            Self::Everything => self.needed().contains(&path) || OF_TRAINING.contains(&path),
        }
    }
}

impl AdapterLibrary {
    /// Fails if a variable says something impossible.
    pub fn new(environment: &Environment, patience: Patience) -> Result<Self> {
        Ok(Self {
            huggingface: Arc::new(HuggingFace::new(environment)?.anonymous()),
            modelscope: Arc::new(ModelScope::new(environment)?.anonymous()),
            huggingface_forbidden: environment.is_on("TWINKLE_FORBID_HF"),
            client: Client::new(patience)?,
        })
    }

    /// Whether a name can be one of a hub: `ms://org/name`, `hf://org/name` or `org/name`, each perhaps with `@revision`.
    #[must_use]
    pub fn is_id(name: &str) -> bool {
        place(name).is_ok()
    }

    /// The folder with an adapter's files: of a hub's cache, else fetched into it.
    ///
    /// An id without a scheme is one of `ModelScope`; of Hugging Face only the cache is looked at for it. Errors: `NotFound`
    /// when it cannot be had, with the folder that its files may be put into.
    pub async fn folder(&self, id: &str, wanted: AdapterFiles) -> Result<PathBuf> {
        let (hub, model) = place(id)?;
        let (modelscope, huggingface) = (&self.modelscope, &self.huggingface);
        match hub {
            Some(Hub::HuggingFace) if self.huggingface_forbidden => {
                Err(Error::invalid(format!("`{id}` is on Hugging Face, which `TWINKLE_FORBID_HF` forbids")))
            }
            Some(Hub::HuggingFace) => match cached(huggingface, &model, wanted).await? {
                Some(folder) => Ok(folder),
                None => self.fetched(huggingface, &model, id, wanted).await,
            },
            Some(Hub::ModelScope) | None => {
                if let Some(folder) = cached(modelscope, &model, wanted).await? {
                    return Ok(folder);
                }
                if hub.is_none()
                    && !self.huggingface_forbidden
                    && let Some(folder) = cached(huggingface, &model, wanted).await?
                {
                    return Ok(folder);
                }
                self.fetched(modelscope, &model, id, wanted).await
            }
        }
    }

    async fn fetched<H: Remote>(
        &self,
        hub: &Arc<H>,
        model: &HubModel,
        id: &str,
        wanted: AdapterFiles,
    ) -> Result<PathBuf> {
        let fetched = match hub.silence() {
            Some(silence) => Err(Failure::Unreachable(silence.to_owned())),
            None => self.fetch(hub, model, wanted).await,
        };
        let why = match fetched {
            Ok(folder) => return Ok(folder),
            Err(Failure::Fatal(error)) => return Err(error),
            Err(failure) => failure.in_words(),
        };
        let endpoint = hub.endpoint().as_str().trim_end_matches('/').to_owned();
        let error =
            Error::not_found(format!("the adapter `{id}` is in no cache, and `{endpoint}` does not give it: {why}"));
        let (asked, of) = (Arc::clone(hub), model.clone());
        let candidates = blocking(move || Ok(asked.candidates(&of))).await?;
        Err(match candidates.first() {
            Some(folder) => {
                error.hint(format!("its `{DESCRIPTION}` and `{WEIGHTS}` may be put into `{}`", folder.display()))
            }
            None => error,
        })
    }

    async fn fetch<H: Remote>(&self, hub: &Arc<H>, model: &HubModel, wanted: AdapterFiles) -> Result<PathBuf, Failure> {
        let listing = hub.list(&self.client, model).await?;
        check_names(model, &listing)?;
        let files: Vec<&RemoteFile> = listing.files.iter().filter(|file| wanted.wants(&file.path)).collect();
        if let Some(missing) = wanted.needed().iter().find(|name| !files.iter().any(|file| file.path == **name)) {
            return Err(Error::invalid(format!("`{model}` holds no adapter: it has no `{missing}`"))
                .hint("an adapter is `adapter_config.json` with `adapter_model.safetensors`; pickled weights are never read")
                .into());
        }
        let bytes: u64 = files.iter().filter_map(|file| file.expected.size).sum();
        if bytes > MOST_BYTES {
            let text = format!("the files of `{model}` take {} GiB, more than {}", bytes >> 30, MOST_BYTES >> 30);
            return Err(Error::new(ErrorCode::TooLarge, text).into());
        }
        fetch_files(hub.as_ref(), &self.client, model, &listing.version, &files).await?;
        let folder = hub.folder(model, &listing.version);
        let (hub, model) = (Arc::clone(hub), model.clone());
        blocking(move || hub.finish(&model, &listing.version)).await?;
        Ok(folder)
    }
}

/// The hub that an id names, if it names one, and the repository.
fn place(id: &str) -> Result<(Option<Hub>, HubModel)> {
    match ModelSource::new(id).location()? {
        ModelLocation::Hub(hub, model) => Ok((Some(hub), model)),
        ModelLocation::LocalOrHub(_, model) => Ok((None, model)),
        ModelLocation::Local(_) => Err(Error::invalid(format!("`{id}` is not the id of an adapter on a hub"))),
    }
}

/// The folder of the cache that has what is wanted.
async fn cached<H: Remote>(hub: &Arc<H>, model: &HubModel, wanted: AdapterFiles) -> Result<Option<PathBuf>> {
    let (hub, model) = (Arc::clone(hub), model.clone());
    let has_all = move |folder: &PathBuf| wanted.needed().iter().all(|name| folder.join(name).is_file());
    blocking(move || Ok(hub.candidates(&model).into_iter().find(has_all))).await
}

/// File work, off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("work on an adapter's files failed: {error}")))?
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn library(root: &std::path::Path, more: &[(&str, &str)]) -> AdapterLibrary {
        let root = root.display().to_string();
        let places = [("HF_HUB_CACHE", root.as_str()), ("MODELSCOPE_CACHE", &root), ("TWINKLE_OFFLINE", "1")];
        let variables = places.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        AdapterLibrary::new(&Environment::new(variables), Patience::default()).unwrap()
    }

    fn put(folder: &std::path::Path, names: &[&str]) {
        fs::create_dir_all(folder).unwrap();
        for name in names {
            fs::write(folder.join(name), "{}").unwrap();
        }
    }

    #[tokio::test]
    async fn an_adapter_is_found_where_either_hubs_tool_has_put_it() {
        let root = tempfile::tempdir().unwrap();
        let library = library(root.path(), &[]);
        let of_ms = root.path().join("models/me--math/snapshots/master");
        let of_hf = root.path().join("models--me--words/snapshots/main");
        put(&of_ms, &[DESCRIPTION, WEIGHTS]);
        put(&of_hf, &[DESCRIPTION, WEIGHTS]);
        let found = async |id: &str| library.folder(id, AdapterFiles::Everything).await;
        for id in ["me/math", "ms://me/math"] {
            assert_eq!(found(id).await.unwrap(), of_ms, "{id}");
        }
        for id in ["me/words", "hf://me/words"] {
            assert_eq!(found(id).await.unwrap(), of_hf, "{id}");
        }
        assert!(found("hf://me/math").await.is_err() && found("ms://me/words").await.is_err());
    }

    #[tokio::test]
    async fn one_that_cannot_be_had_is_told_with_the_place_for_its_files() {
        let root = tempfile::tempdir().unwrap();
        let library = library(root.path(), &[]);
        let folder = root.path().join("models/me--math/snapshots/master");
        let error = library.folder("me/math", AdapterFiles::Everything).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains("`TWINKLE_OFFLINE` is set"), "{error}");
        assert!(error.hint.unwrap().contains(&folder.display().to_string()));
        // A description alone is no adapter, but tells what one is.
        put(&folder, &[DESCRIPTION]);
        assert!(library.folder("me/math", AdapterFiles::Everything).await.is_err());
        assert_eq!(library.folder("me/math", AdapterFiles::Description).await.unwrap(), folder);
    }

    #[tokio::test]
    async fn a_hub_that_is_forbidden_is_not_read_from_its_cache_either() {
        let root = tempfile::tempdir().unwrap();
        let library = library(root.path(), &[("TWINKLE_FORBID_HF", "1")]);
        put(&root.path().join("models--me--words/snapshots/main"), &[DESCRIPTION, WEIGHTS]);
        for id in ["me/words", "hf://me/words"] {
            assert!(library.folder(id, AdapterFiles::Everything).await.is_err(), "{id}");
        }
    }

    #[test]
    fn what_is_an_id_of_a_hub() {
        for id in ["ms://org/name", "hf://org/name@v1", "org/name"] {
            assert!(AdapterLibrary::is_id(id), "{id}");
        }
        for name in ["/etc/passwd", "./a", "../..", "twinkle://run/weights/x", "a", "a/b/c", "~/x", ""] {
            assert!(!AdapterLibrary::is_id(name), "{name}");
        }
    }
}
