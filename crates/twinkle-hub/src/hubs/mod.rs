//! The two hubs: what they list, and how their own tools lay out what was downloaded.

mod huggingface;
mod modelscope;
mod snapshot;

use std::path::PathBuf;

use reqwest::Url;
use reqwest::header::HeaderMap;
use twinkle_core::config::{Hub, HubModel};
use twinkle_core::{Error, Result};

use crate::download::{Client, Expected, Failure};
use crate::folder::Holds;

pub(crate) use huggingface::HuggingFace;
pub(crate) use modelscope::ModelScope;
pub(crate) use snapshot::{BeforeWeights, check_names, download, fetch_files};

/// What a repository of a hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A model.
    Model,
    /// A data set.
    DataSet,
}

impl Kind {
    /// As addresses and folders have it.
    pub(crate) const fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::DataSet => "datasets",
        }
    }
}

/// A model of a hub, as the hub lists it.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    /// What the folder of this version is called: a commit, or a branch where the hub tells none.
    pub(crate) version: String,
    pub(crate) files: Vec<RemoteFile>,
}

/// One of its files.
#[derive(Clone, Debug)]
pub(crate) struct RemoteFile {
    /// Its path in the repository.
    pub(crate) path: String,
    pub(crate) url: Url,
    pub(crate) expected: Expected,
    /// The name of its content, for a cache that is ordered by it.
    pub(crate) content: Option<String>,
}

/// Where a file goes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Its bytes.
    pub(crate) file: PathBuf,
    /// Its bytes while they arrive.
    pub(crate) partial: PathBuf,
    /// Who has this lock may write the former.
    pub(crate) lock: PathBuf,
    /// The link in the model's folder, if the bytes are not there themselves.
    pub(crate) link: Option<PathBuf>,
    /// Whether the file's name says what is in it.
    pub(crate) named_by_content: bool,
}

/// A place where a model was looked for.
#[derive(Clone, Debug)]
pub(crate) struct Looked {
    pub(crate) place: String,
    pub(crate) found: String,
}

/// What a cache holds of a model.
#[derive(Debug, Default)]
pub(crate) struct Cached {
    pub(crate) folder: Option<(PathBuf, Holds)>,
    pub(crate) looked: Vec<Looked>,
}

impl Cached {
    /// Notes a folder; the fullest one is kept, of equal ones the first.
    fn consider(&mut self, folder: PathBuf) {
        let holds = if folder.is_dir() { Some(crate::folder::inspect(&folder)) } else { None };
        let better = match (holds, &self.folder) {
            (None | Some(Holds::TooLittle), _) | (_, Some((_, Holds::Everything))) => false,
            (Some(Holds::TheNetwork), found) => found.is_none(),
            (Some(Holds::Everything), _) => true,
        };
        let found = if holds.is_some() { "incomplete" } else { "not there" };
        self.looked.push(Looked { place: folder.display().to_string(), found: found.to_owned() });
        if let Some(holds) = holds.filter(|_| better) {
            self.folder = Some((folder, holds));
        }
    }
}

/// A hub and its cache.
pub(crate) trait Remote: Send + Sync + 'static {
    /// Which one.
    const HUB: Hub;

    /// Where it answers.
    fn endpoint(&self) -> &Url;

    /// Why it must not be asked, if so.
    fn silence(&self) -> Option<&str>;

    /// What every request carries: the credential, if there is one.
    fn headers(&self) -> &HeaderMap;

    /// Folders of the cache that may hold the repository, the best first. Reads files: blocks.
    fn candidates(&self, model: &HubModel) -> Vec<PathBuf>;

    /// What the cache holds. Reads folders: blocks.
    fn cached(&self, model: &HubModel) -> Cached;

    /// What the hub has.
    fn list(&self, client: &Client, model: &HubModel) -> impl Future<Output = Result<Listing, Failure>> + Send;

    /// The file with all that the hub tells only about single files.
    fn described(&self, client: &Client, file: &RemoteFile)
    -> impl Future<Output = Result<RemoteFile, Failure>> + Send;

    /// Where the model's folder is.
    fn folder(&self, model: &HubModel, version: &str) -> PathBuf;

    /// Where one of its files goes.
    fn place(&self, model: &HubModel, version: &str, file: &RemoteFile) -> Result<Place>;

    /// Notes that this version is there. Writes a file: blocks.
    fn finish(&self, model: &HubModel, version: &str) -> Result<()>;
}

/// The address of a hub from a variable: the scheme may be missing.
pub(crate) fn endpoint(text: &str, variable: &str) -> Result<Url> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = Url::parse(with_scheme.trim_end_matches('/')).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some()).ok_or_else(|| {
        Error::invalid(format!("`{variable}` is `{text}`, which is not the address of a hub"))
            .hint("write it as `https://host`")
    })
}

/// The address below another; every part is escaped.
pub(crate) fn below(endpoint: &Url, parts: &[&str]) -> Url {
    let mut url = endpoint.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(parts);
    }
    url
}

/// A credential as a header, marked so that it is never printed.
pub(crate) fn secret(text: &str, variable: &str) -> Result<reqwest::header::HeaderValue> {
    let mut value = reqwest::header::HeaderValue::from_str(text)
        .map_err(|_| Error::invalid(format!("the token in `{variable}` has characters no token has")))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whether a text of a hub can be the name of a file here.
pub(crate) fn is_plain_name(name: &str) -> bool {
    (1..=200).contains(&name.len())
        && !name.starts_with('.')
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
}

/// The checksum, if the text is one.
pub(crate) fn sha256_of(text: &str) -> Option<String> {
    (text.len() == 64 && text.chars().all(|letter| letter.is_ascii_hexdigit())).then(|| text.to_lowercase())
}
