//! From a `model_id` to a folder that can be loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};
use twinkle_core::config::{Hub, HubModel, ModelLocation, ModelSource};
use twinkle_core::{Error, ErrorCode, Result};

use crate::download::{Client, Failure, Patience};
use crate::environment::Environment;
use crate::folder::Holds;
use crate::gguf::GgufCache;
use crate::hubs::{BeforeWeights, HuggingFace, Looked, ModelScope, Remote, download};

/// What a library needs to know.
#[derive(Clone)]
pub struct LibraryOptions {
    /// The variables it obeys.
    pub environment: Environment,
    /// The folder that relative paths are below.
    pub current: PathBuf,
    /// How patient it is with a hub.
    pub patience: Patience,
    /// Asked with a model's folder when everything but its weights is downloaded; an error ends the download.
    pub before_weights: Option<fn(&Path) -> Result<()>>,
}

/// Every place a model can come from.
pub struct ModelLibrary {
    huggingface: Arc<HuggingFace>,
    modelscope: Arc<ModelScope>,
    /// `TWINKLE_FORBID_HF`.
    huggingface_forbidden: bool,
    gguf: GgufCache,
    client: Client,
    environment: Environment,
    current: PathBuf,
    before_weights: Option<BeforeWeights>,
}

impl LibraryOptions {
    /// The environment and the current folder of this process.
    pub fn of_process() -> Result<Self> {
        let current = std::env::current_dir()
            .map_err(|error| Error::internal(format!("the current directory cannot be found: {error}")))?;
        Ok(Self {
            environment: Environment::of_process(),
            current,
            patience: Patience::default(),
            before_weights: None,
        })
    }
}

impl ModelLibrary {
    /// Fails if a variable says something impossible.
    pub fn new(options: LibraryOptions) -> Result<Self> {
        let environment = options.environment;
        Ok(Self {
            huggingface: Arc::new(HuggingFace::new(&environment)?),
            modelscope: Arc::new(ModelScope::new(&environment)?),
            huggingface_forbidden: environment.is_on("TWINKLE_FORBID_HF"),
            gguf: GgufCache::new(&environment),
            client: Client::new(options.patience)?,
            current: options.current,
            before_weights: options.before_weights,
            environment,
        })
    }

    /// The folder with the model's `config.json`, safetensors and tokenizer; downloaded or converted if need be.
    ///
    /// A model that is complete in a cache is taken as it is: no hub is asked, and a restart finds the same weights.
    pub async fn folder(&self, source: &ModelSource) -> Result<PathBuf> {
        match source.location()? {
            ModelLocation::Local(path) => {
                let path = self.absolute(path);
                self.local(&path).await?.ok_or_else(|| missing_locally(source, &path))
            }
            ModelLocation::Hub(Hub::HuggingFace, _) if self.huggingface_forbidden => {
                Err(Error::invalid(format!("`{source}` is on Hugging Face, which `TWINKLE_FORBID_HF` forbids"))
                    .hint("give the model as `ms://org/name` or as a folder"))
            }
            ModelLocation::Hub(Hub::HuggingFace, model) => {
                let mut search = Search::new(source, &model);
                let found = search.cache(&self.huggingface).await?;
                self.complete(search, &self.huggingface, found).await
            }
            ModelLocation::Hub(Hub::ModelScope, model) => {
                let mut search = Search::new(source, &model);
                let found = search.cache(&self.modelscope).await?;
                self.complete(search, &self.modelscope, found).await
            }
            ModelLocation::LocalOrHub(path, model) => {
                let path = self.absolute(path);
                if let Some(folder) = self.local(&path).await? {
                    return Ok(folder);
                }
                let mut search = Search::new(source, &model);
                search.looked(path.display().to_string(), "not there");
                let found = search.cache(&self.modelscope).await?;
                let is_whole = matches!(found, Some((_, Holds::Everything)));
                if !is_whole
                    && !self.huggingface_forbidden
                    && let Some((folder, Holds::Everything)) = search.cache(&self.huggingface).await?
                {
                    return Ok(folder);
                }
                self.complete(search, &self.modelscope, found).await
            }
        }
    }

    /// A folder, or a GGUF file converted to one; nothing if the path leads nowhere.
    async fn local(&self, path: &Path) -> Result<Option<PathBuf>> {
        let Ok(metadata) = tokio::fs::metadata(path).await else { return Ok(None) };
        if metadata.is_dir() {
            return Ok(Some(path.to_owned()));
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return self.gguf.folder(path).await.map(Some);
        }
        Err(Error::invalid(format!("`{}` is a file, and not a `.gguf` one", path.display()))
            .hint("give the folder that holds `config.json`, or a GGUF file"))
    }

    /// What the cache holds if that is enough, else what the hub has.
    async fn complete<H: Remote>(
        &self,
        mut search: Search<'_>,
        hub: &Arc<H>,
        cached: Option<(PathBuf, Holds)>,
    ) -> Result<PathBuf> {
        if let Some((folder, Holds::Everything)) = cached {
            return Ok(folder);
        }
        let endpoint = hub.endpoint().as_str().trim_end_matches('/').to_owned();
        let failure = match hub.silence() {
            Some(silence) => Failure::Unreachable(silence.to_owned()),
            None => match self.download(&search, hub).await {
                Ok(folder) => return Ok(folder),
                Err(failure) => failure,
            },
        };
        // A few models have no tokenizer of the usual form: what the network needs is enough while the hub is away.
        if let (Failure::Unreachable(why), Some((folder, Holds::TheNetwork))) = (&failure, cached) {
            warn!(model = %search.source, folder = %folder.display(), why, "taken from the cache without its tokenizer");
            return Ok(folder);
        }
        search.looked(endpoint, &failure.in_words());
        Err(search.missing(hub.as_ref(), failure))
    }

    async fn download<H: Remote>(&self, search: &Search<'_>, hub: &Arc<H>) -> Result<PathBuf, Failure> {
        let version = download(hub.as_ref(), &self.client, search.model, self.before_weights).await?;
        let folder = hub.folder(search.model, &version);
        let (hub, model) = (Arc::clone(hub), search.model.clone());
        let finished = tokio::task::spawn_blocking(move || hub.finish(&model, &version)).await;
        finished.map_err(|error| Error::internal(format!("work on the model's files failed: {error}")))??;
        info!(model = %search.source, folder = %folder.display(), "downloaded");
        Ok(folder)
    }

    fn absolute(&self, path: PathBuf) -> PathBuf {
        self.current.join(self.environment.expand(path))
    }
}

/// The search for one model on the hubs.
struct Search<'a> {
    source: &'a ModelSource,
    model: &'a HubModel,
    looked: Vec<Looked>,
}

impl<'a> Search<'a> {
    fn new(source: &'a ModelSource, model: &'a HubModel) -> Self {
        Self { source, model, looked: Vec::new() }
    }

    fn looked(&mut self, place: String, found: &str) {
        self.looked.push(Looked { place, found: found.to_owned() });
    }

    /// What a hub's cache holds.
    async fn cache<H: Remote>(&mut self, hub: &Arc<H>) -> Result<Option<(PathBuf, Holds)>> {
        let (hub, model) = (Arc::clone(hub), self.model.clone());
        let cached = tokio::task::spawn_blocking(move || hub.cached(&model)).await;
        let cached = cached.map_err(|error| Error::internal(format!("reading a cache failed: {error}")))?;
        self.looked.extend(cached.looked);
        if let Some((folder, Holds::Everything)) = &cached.folder {
            info!(model = %self.source, folder = %folder.display(), hub = H::HUB.name(), "taken from the hub's cache");
        }
        Ok(cached.folder)
    }

    /// One error that says where the model was looked for, what was there, and what to do.
    fn missing<H: Remote>(&self, hub: &H, failure: Failure) -> Error {
        let status = match failure {
            Failure::Fatal(error) => return error,
            Failure::Unreachable(_) => None,
            Failure::Refused { status, .. } => Some(status.as_u16()),
        };
        let places: Vec<String> =
            self.looked.iter().map(|looked| format!("`{}` ({})", looked.place, looked.found)).collect();
        let code = if matches!(status, Some(401 | 403)) { ErrorCode::Unauthenticated } else { ErrorCode::NotFound };
        let text = format!("the model `{}` cannot be had; looked at {}", self.source, places.join(", "));
        Error::new(code, text).hint(self.advice(hub, status))
    }

    fn advice<H: Remote>(&self, hub: &H, status: Option<u16>) -> String {
        let id = self.model.id();
        let page = format!("{}/{}{id}", hub.endpoint().as_str().trim_end_matches('/'), page_prefix(H::HUB));
        let log_in = match (H::HUB, hub.headers().is_empty()) {
            (Hub::HuggingFace, true) => "set `HF_TOKEN`, or log in with `hf auth login`",
            (Hub::HuggingFace, false) => "the token of `HF_TOKEN` or of `hf auth login` must be allowed to read it",
            (Hub::ModelScope, true) => "set `MODELSCOPE_API_TOKEN`",
            (Hub::ModelScope, false) => "the token in `MODELSCOPE_API_TOKEN` must be allowed to read it",
        };
        let mirror = match H::HUB {
            Hub::HuggingFace => "HF_ENDPOINT",
            Hub::ModelScope => "MODELSCOPE_ENDPOINT",
        };
        match status {
            Some(401) => format!("check the name; if the model is private, {log_in}"),
            Some(403) => format!("the model is private or gated: accept its terms at `{page}`, and {log_in}"),
            Some(404) if H::HUB == Hub::ModelScope => {
                format!("check the name and the revision at `{page}`; if it is on Hugging Face, write `hf://{id}`")
            }
            Some(404) => format!("check the name and the revision at `{page}`"),
            Some(_) => format!("try again later, or set `{mirror}` to a mirror, or give the model's folder"),
            None if hub.silence().is_some() => {
                "go online once, or download it elsewhere and give its folder as `model_id`".to_owned()
            }
            None => format!(
                "check the network; behind a proxy set `HTTPS_PROXY`, for a mirror set `{mirror}`, or give the model's folder"
            ),
        }
    }
}

/// Where a hub's pages about models are.
const fn page_prefix(hub: Hub) -> &'static str {
    match hub {
        Hub::ModelScope => "models/",
        Hub::HuggingFace => "",
    }
}

fn missing_locally(source: &ModelSource, path: &Path) -> Error {
    Error::not_found(format!("the model `{source}` cannot be had; looked at `{}` (not there)", path.display())).hint(
        "give the folder that holds `config.json`, a `.gguf` file, or a model on a hub: `ms://org/name`, `hf://org/name`",
    )
}
