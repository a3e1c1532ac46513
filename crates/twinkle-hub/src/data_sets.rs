//! Data sets of both hubs, file by file.
//!
//! Unlike a model, a data set is not needed whole: a client asks for one split of one subset. So it is listed first, and
//! the wanted files are then fetched. What the hubs' own tools have downloaded is found, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use twinkle_core::config::{Hub, HubModel, ModelLocation, ModelSource};
use twinkle_core::{Error, ErrorCode, Result};

use crate::download::{Client, Failure, Patience};
use crate::environment::Environment;
use crate::hubs::{HuggingFace, ModelScope, Remote, RemoteFile, check_names, fetch_files};

/// The most bytes that one request may bring.
const MOST_BYTES: u64 = 64 << 30;
/// The most files of a cached data set that are looked at, and the deepest folder.
const MOST_FILES: usize = 100_000;
const DEEPEST: usize = 8;

/// Data sets of both hubs and their caches.
pub struct DataSetLibrary {
    huggingface: Arc<HuggingFace>,
    modelscope: Arc<ModelScope>,
    /// `TWINKLE_FORBID_HF`.
    huggingface_forbidden: bool,
    client: Arc<Client>,
}

/// A data set that was found.
pub struct DataSet {
    paths: Vec<String>,
    fetch: Fetch,
}

/// Brings files here; answers the folder that they are below.
type Fetch = Box<dyn Fn(Vec<String>) -> BoxFuture<'static, Result<PathBuf>> + Send + Sync>;

impl DataSetLibrary {
    /// Fails if a variable says something impossible.
    pub fn new(environment: &Environment, patience: Patience) -> Result<Self> {
        Ok(Self {
            huggingface: Arc::new(HuggingFace::new(environment)?.of_data_sets()),
            modelscope: Arc::new(ModelScope::new(environment)?.of_data_sets()),
            huggingface_forbidden: environment.is_on("TWINKLE_FORBID_HF"),
            client: Arc::new(Client::new(patience)?),
        })
    }

    /// Whether an id can be one of a hub.
    #[must_use]
    pub fn is_id(id: &str) -> bool {
        Self::place(id, None).is_ok()
    }

    /// What the cache holds of a data set; `None` when it holds nothing.
    pub async fn cached(&self, id: &str, revision: Option<&str>) -> Result<Option<DataSet>> {
        let (hub, model) = Self::place(id, revision)?;
        let (huggingface, modelscope) = (Arc::clone(&self.huggingface), Arc::clone(&self.modelscope));
        let look = move || {
            let candidates = match hub {
                Hub::HuggingFace => huggingface.candidates(&model),
                Hub::ModelScope => modelscope.candidates(&model),
            };
            candidates.into_iter().find_map(in_folder)
        };
        let found = tokio::task::spawn_blocking(look).await;
        found.map_err(|error| Error::internal(format!("reading a cache failed: {error}")))
    }

    /// What the hub has of a data set.
    pub async fn listed(&self, id: &str, revision: Option<&str>) -> Result<DataSet> {
        let (hub, model) = Self::place(id, revision)?;
        match hub {
            Hub::HuggingFace if self.huggingface_forbidden => {
                Err(Error::invalid(format!("`{id}` is on Hugging Face, which `TWINKLE_FORBID_HF` forbids")))
            }
            Hub::HuggingFace => listed(&self.huggingface, &self.client, model).await,
            Hub::ModelScope => listed(&self.modelscope, &self.client, model).await,
        }
    }

    /// The hub of an id and its name there.
    fn place(id: &str, revision: Option<&str>) -> Result<(Hub, HubModel)> {
        let id = match revision {
            Some(revision) if !id.contains('@') => format!("{id}@{revision}"),
            _ => id.to_owned(),
        };
        match ModelSource::new(id).location()? {
            ModelLocation::Hub(hub, model) => Ok((hub, model)),
            ModelLocation::LocalOrHub(_, model) => Ok((Hub::ModelScope, model)),
            ModelLocation::Local(path) => {
                Err(Error::invalid(format!("`{}` is not the id of a data set on a hub", path.display())))
            }
        }
    }
}

impl DataSet {
    /// The paths of its files, with `/`.
    #[must_use]
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// Brings those of its files here that are not; answers the folder that they are below.
    #[must_use]
    pub fn fetch(&self, paths: Vec<String>) -> BoxFuture<'static, Result<PathBuf>> {
        (self.fetch)(paths)
    }
}

async fn listed<H: Remote>(hub: &Arc<H>, client: &Arc<Client>, model: HubModel) -> Result<DataSet> {
    if let Some(silence) = hub.silence() {
        return Err(unreachable(hub.as_ref(), &model, silence));
    }
    let listing = hub.list(client, &model).await.map_err(|failure| told(hub.as_ref(), &model, failure))?;
    check_names(&model, &listing)?;
    let paths = listing.files.iter().map(|file| file.path.clone()).collect();
    let (hub, client, listing) = (Arc::clone(hub), Arc::clone(client), Arc::new(listing));
    let fetch = move |paths: Vec<String>| -> BoxFuture<'static, Result<PathBuf>> {
        let (hub, client, listing, model) =
            (Arc::clone(&hub), Arc::clone(&client), Arc::clone(&listing), model.clone());
        Box::pin(async move {
            let files: Vec<&RemoteFile> = listing.files.iter().filter(|file| paths.contains(&file.path)).collect();
            let bytes: u64 = files.iter().filter_map(|file| file.expected.size).sum();
            if bytes > MOST_BYTES {
                let text = format!("its files take {} GiB, more than {}", bytes >> 30, MOST_BYTES >> 30);
                return Err(Error::new(ErrorCode::TooLarge, text).hint("name a smaller subset or split"));
            }
            let fetched = fetch_files(hub.as_ref(), &client, &model, &listing.version, &files).await;
            fetched.map_err(|failure| told(hub.as_ref(), &model, failure))?;
            let folder = hub.folder(&model, &listing.version);
            let version = listing.version.clone();
            let noted = tokio::task::spawn_blocking(move || hub.finish(&model, &version)).await;
            noted.map_err(|error| Error::internal(format!("work on the data set's files failed: {error}")))??;
            Ok(folder)
        })
    };
    Ok(DataSet { paths, fetch: Box::new(fetch) })
}

/// A folder of a cache with files in it.
fn in_folder(folder: PathBuf) -> Option<DataSet> {
    let mut paths = Vec::new();
    list(&folder, "", 0, &mut paths);
    if paths.iter().all(|path| path == "README.md") {
        return None;
    }
    let fetch = move |_| -> BoxFuture<'static, Result<PathBuf>> {
        let folder = folder.clone();
        Box::pin(async move { Ok(folder) })
    };
    Some(DataSet { paths, fetch: Box::new(fetch) })
}

/// The files of a folder; links that lead nowhere are passed over.
fn list(folder: &Path, prefix: &str, depth: usize, paths: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || name.ends_with(".incomplete") || paths.len() >= MOST_FILES {
            continue;
        }
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        match fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_dir() && depth < DEEPEST => list(&entry.path(), &path, depth + 1, paths),
            Ok(metadata) if metadata.is_file() => paths.push(path),
            _ => {}
        }
    }
}

fn told<H: Remote>(hub: &H, model: &HubModel, failure: Failure) -> Error {
    match failure {
        Failure::Fatal(error) => error,
        Failure::Unreachable(why) => unreachable(hub, model, &why),
        Failure::Refused { status, .. } if matches!(status.as_u16(), 401 | 403 | 404) => {
            Error::not_found(format!("{} has no public data set `{model}`", H::HUB.name()))
        }
        refused @ Failure::Refused { .. } => unreachable(hub, model, &refused.in_words()),
    }
}

fn unreachable<H: Remote>(hub: &H, model: &HubModel, why: &str) -> Error {
    let endpoint = hub.endpoint().as_str().trim_end_matches('/');
    Error::not_found(format!("`{model}` is in no folder or cache, and `{endpoint}` could not be asked ({why})"))
}
