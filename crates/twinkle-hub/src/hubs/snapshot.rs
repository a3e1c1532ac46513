//! Downloading what a model needs, and nothing else.

use std::fs;
use std::path::Path;

use futures::{StreamExt, TryStreamExt, stream};
use twinkle_core::config::HubModel;
use twinkle_core::{Error, Result};

use super::{Listing, Place, Remote, RemoteFile};
use crate::download::{Client, Failure, Progress, Transfer, file_error, lock, sha256};
use crate::folder::{INDEX, SINGLE_FILE, is_description, shards};

/// Files under way at once.
const AT_ONCE: usize = 4;

/// The most files of one kind a model may have.
const MOST_FILES: usize = 2_000;

/// Asked with the model's folder when everything but the weights is there; an error spares their download.
pub(crate) type BeforeWeights = fn(&Path) -> Result<()>;

/// Downloads what is missing of a model. Returns what its folder is called.
///
/// The weights come last, so a folder with weights has everything else.
pub(crate) async fn download<H: Remote>(
    hub: &H,
    client: &Client,
    model: &HubModel,
    before_weights: Option<BeforeWeights>,
) -> Result<String, Failure> {
    let listing = hub.list(client, model).await?;
    check_names(model, &listing)?;
    let snapshot = Snapshot { hub, client, model, version: &listing.version };
    let descriptions: Vec<&RemoteFile> = listing.files.iter().filter(|file| is_description(&file.path)).collect();
    let weights_exist = listing.files.iter().any(|file| file.path == INDEX || file.path == SINGLE_FILE);
    if !weights_exist || !descriptions.iter().any(|file| file.path == "config.json") {
        return Err(not_loadable(model, &listing).into());
    }
    snapshot.fetch(&descriptions).await?;
    if let Some(check) = before_weights {
        let folder = hub.folder(model, &listing.version);
        blocking(move || check(&folder)).await?;
    }
    let weights = snapshot.weights(&listing).await?;
    snapshot.fetch(&weights).await?;
    Ok(listing.version)
}

/// Downloads those of a repository's files that are not there.
pub(crate) async fn fetch_files<H: Remote>(
    hub: &H,
    client: &Client,
    repository: &HubModel,
    version: &str,
    files: &[&RemoteFile],
) -> Result<(), Failure> {
    Snapshot { hub, client, model: repository, version }.fetch(files).await
}

/// A version of a model that is being downloaded.
struct Snapshot<'a, H> {
    hub: &'a H,
    client: &'a Client,
    model: &'a HubModel,
    version: &'a str,
}

impl<H: Remote> Snapshot<'_, H> {
    /// The files with weights: those the index names, or the only one.
    async fn weights<'a>(&self, listing: &'a Listing) -> Result<Vec<&'a RemoteFile>> {
        let find = |name: &str| listing.files.iter().find(|file| file.path == name);
        if find(INDEX).is_none() {
            return Ok(find(SINGLE_FILE).into_iter().collect());
        }
        let path = self.hub.folder(self.model, self.version).join(INDEX);
        let index = tokio::fs::read(&path).await.map_err(|error| file_error("read", &path, &error))?;
        let named = shards(&index).ok_or_else(|| {
            Error::invalid(format!("`{}` does not say which file holds which weight", path.display()))
        })?;
        let missing = |name: &String| Error::invalid(format!("`{}` lacks `{name}`, which its index names", self.model));
        let beside = |name: &&String| !name.contains('/');
        named
            .iter()
            .map(|name| Some(name).filter(beside).and_then(|name| find(name)).ok_or_else(|| missing(name)))
            .collect()
    }

    /// Fetches those of the files that are not there, a few at a time.
    async fn fetch(&self, files: &[&RemoteFile]) -> Result<(), Failure> {
        if files.len() > MOST_FILES {
            let text = format!("`{}` has {} files, more than {MOST_FILES}", self.model, files.len());
            return Err(Error::invalid(text).into());
        }
        let mut missing = Vec::new();
        for file in files {
            let file = self.hub.described(self.client, file).await?;
            let place = self.hub.place(self.model, self.version, &file)?;
            if !is_there(&place, &file).await? {
                missing.push((file, place));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let bytes = missing.iter().filter_map(|(file, _)| file.expected.size).sum();
        let progress = Progress::new("downloading", &self.model.to_string(), missing.len(), bytes);
        let fetches: Vec<_> = missing.iter().map(|(file, place)| self.fetch_one(file, place, &progress)).collect();
        stream::iter(fetches).buffer_unordered(AT_ONCE).try_collect::<()>().await
    }

    async fn fetch_one(&self, file: &RemoteFile, place: &Place, progress: &Progress) -> Result<(), Failure> {
        let _lock = lock(&place.lock).await?;
        // Whoever had the lock may have fetched it.
        if is_there(place, file).await? {
            return Ok(());
        }
        let progress = progress.file(&file.path, file.expected.size.unwrap_or(0));
        let transfer = Transfer {
            client: self.client,
            url: &file.url,
            headers: self.hub.headers(),
            expected: &file.expected,
            partial: &place.partial,
            progress: &progress,
        };
        transfer.run().await?;
        let place = place.clone();
        blocking(move || {
            fs::rename(&place.partial, &place.file).map_err(|error| file_error("write", &place.file, &error))?;
            link(&place)
        })
        .await?;
        Ok(())
    }
}

/// Whether the file is in the model's folder, or its content in the cache: then it is linked.
async fn is_there(place: &Place, file: &RemoteFile) -> Result<bool> {
    let (place, expected) = (place.clone(), file.expected.clone());
    blocking(move || {
        let Ok(metadata) = fs::metadata(&place.file) else { return Ok(false) };
        if expected.size.is_some_and(|size| size != metadata.len()) {
            return Ok(false);
        }
        if let Some(expected) = expected.sha256.filter(|_| !place.named_by_content) {
            let hash = sha256(&place.file).map_err(|error| file_error("read", &place.file, &error))?;
            if hash != expected {
                return Ok(false);
            }
        }
        link(&place)?;
        Ok(true)
    })
    .await
}

/// Makes the model's folder show the file: a relative link, as its tool makes them, so that a cache can be moved.
fn link(place: &Place) -> Result<()> {
    let Some(link) = &place.link else { return Ok(()) };
    if link.exists() {
        return Ok(());
    }
    let failed = |error: &std::io::Error| file_error("link", link, error);
    let folder = link.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| file_error("create", folder, &error))?;
    let content = place.file.file_name().unwrap_or_default();
    // From `snapshots/<commit>/<file>` up to the folder that holds `blobs`, and `snapshots`.
    let root = place.file.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    let depth = folder.strip_prefix(root).map_or(2, |below| below.components().count());
    let target = Path::new(&"../".repeat(depth)).join("blobs").join(content);
    // A link that leads nowhere is in the way.
    if link.is_symlink() {
        fs::remove_file(link).map_err(|error| failed(&error))?;
    }
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(&target, link);
    #[cfg(not(unix))]
    let linked = fs::hard_link(&place.file, link);
    match linked {
        Err(_) if link.exists() => Ok(()),
        // File systems without links get the bytes twice, as from the hub's own tool.
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            fs::copy(&place.file, link).map(drop).map_err(|error| failed(&error))
        }
        linked => linked.map_err(|error| failed(&error)),
    }
}

/// A hub's list must not name files outside the model's folder.
pub(crate) fn check_names(model: &HubModel, listing: &Listing) -> Result<()> {
    let is_safe = |path: &str| {
        let parts_are_names = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        path.len() <= 1_024 && parts_are_names && !path.chars().any(|letter| letter.is_control() || letter == '\\')
    };
    match listing.files.iter().find(|file| !is_safe(&file.path)) {
        Some(file) => {
            let shown: String = file.path.escape_default().take(200).collect();
            Err(Error::invalid(format!("`{model}` lists a file `{shown}`, which could lie outside its folder"))
                .hint("nothing was downloaded; do not trust this model"))
        }
        None => Ok(()),
    }
}

fn not_loadable(model: &HubModel, listing: &Listing) -> Error {
    let has = |ending: &str| listing.files.iter().any(|file| file.path.ends_with(ending));
    let error = Error::unsupported(format!(
        "`{model}` is there, but has no `config.json` with `{SINGLE_FILE}` or `{INDEX}` beside it"
    ));
    if has(".gguf") {
        error.hint("it holds GGUF files: download the one you want and give it as `model_id: ./name.gguf`")
    } else if has(".bin") || has(".pt") || has(".pth") {
        error.hint("pickled weights can carry code and are never read; look for a version with safetensors")
    } else {
        error.hint("give a model that can be loaded on its own, not an adapter or a part of one")
    }
}

/// File work, off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("work on the model's files failed: {error}")))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::download::Expected;

    fn listing(paths: &[&str]) -> Listing {
        let url = reqwest::Url::parse("http://hub").unwrap();
        let file = |path: &&str| RemoteFile {
            path: (*path).to_owned(),
            url: url.clone(),
            expected: Expected::default(),
            content: None,
        };
        Listing { version: "main".into(), files: paths.iter().map(file).collect() }
    }

    #[test]
    fn a_list_that_leads_outside_is_refused_whole() {
        let model = HubModel { organisation: "a".into(), name: "b".into(), revision: None };
        check_names(&model, &listing(&["config.json", "onnx/model.onnx"])).unwrap();
        for path in ["../../.ssh/config", "/etc/config.json", "a//b", "..\\config.json", "a\nb", "", "./x"] {
            assert!(check_names(&model, &listing(&["config.json", path])).is_err(), "{path:?}");
        }
    }
}
