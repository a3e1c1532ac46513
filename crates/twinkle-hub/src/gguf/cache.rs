//! GGUF files that were converted before.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};
use tracing::info;
use twinkle_core::{Error, Result};

use super::convert;
use crate::download::{file_error, lock};
use crate::environment::Environment;
use crate::folder::{Holds, inspect};

/// Raised whenever the conversion changes what it writes.
const CONVERSION: u32 = 1;

/// The folder of conversions: `gguf` below `TWINKLE_CACHE`, else below `twinkle` in the user's cache folder.
pub(crate) struct GgufCache {
    root: PathBuf,
}

/// One version of a file, as its conversion is named.
struct Entry {
    /// What all versions of the file share.
    file: String,
    /// The folder of this one.
    folder: String,
}

impl GgufCache {
    pub(crate) fn new(environment: &Environment) -> Self {
        let cache = environment.path("TWINKLE_CACHE").unwrap_or_else(|| environment.caches().join("twinkle"));
        Self { root: cache.join("gguf") }
    }

    /// The converted model. A file is converted once, and again when it has changed.
    pub(crate) async fn folder(&self, path: &Path) -> Result<PathBuf> {
        let (root, path) = (self.root.clone(), path.to_owned());
        let named = path.clone();
        let entry = blocking(&path, move || Entry::of(&named)).await?;
        let folder = root.join(&entry.folder);
        if inspect(&folder) == Holds::Everything {
            return Ok(folder);
        }
        let _lock = lock(&root.join(format!("{}.lock", entry.file))).await?;
        let target = folder.clone();
        let source = path.clone();
        blocking(&path, move || {
            if inspect(&target) == Holds::Everything {
                return Ok(());
            }
            make(&source, &target, &entry, &root)
        })
        .await?;
        Ok(folder)
    }
}

impl Entry {
    fn of(path: &Path) -> Result<Self> {
        let failed = |error: &std::io::Error| file_error("read", path, error);
        let path = fs::canonicalize(path).map_err(|error| failed(&error))?;
        let metadata = fs::metadata(&path).map_err(|error| failed(&error))?;
        let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or("model");
        let stem: String =
            stem.chars().filter(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(*letter)).take(60).collect();
        let file = format!("{}-{}", stem.trim_start_matches('.'), short_hash(path.as_os_str().as_encoded_bytes()));
        let version = format!("{CONVERSION} {} {:?}", metadata.len(), changed);
        Ok(Self { folder: format!("{file}-{}", short_hash(version.as_bytes())), file })
    }
}

/// Converts beside the target, puts it in place, and removes what older versions of the file left.
fn make(source: &Path, target: &Path, entry: &Entry, root: &Path) -> Result<()> {
    info!(gguf = %source.display(), folder = %target.display(), "converting once");
    remove_others(root, entry)?;
    let draft = tempfile::Builder::new()
        .prefix(&format!("{}-draft-", entry.file))
        .tempdir_in(root)
        .map_err(|error| file_error("create a folder in", root, &error))?;
    let folder = draft.path().join("model");
    convert(source, &folder)?;
    if target.exists() {
        fs::remove_dir_all(target).map_err(|error| file_error("remove", target, &error))?;
    }
    fs::rename(&folder, target).map_err(|error| file_error("write", target, &error))
}

/// Removes other versions and what an interrupted conversion left. A server that has one mapped keeps its pages.
fn remove_others(root: &Path, entry: &Entry) -> Result<()> {
    let prefix = format!("{}-", entry.file);
    let entries = fs::read_dir(root).map_err(|error| file_error("read", root, &error))?;
    for other in entries.flatten() {
        let name = other.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(&prefix) && name != entry.folder {
            fs::remove_dir_all(other.path()).map_err(|error| file_error("remove", &other.path(), &error))?;
        }
    }
    Ok(())
}

fn short_hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes)).chars().take(12).collect()
}

/// Work on a GGUF file, off the async threads. A file candle chokes on is an error of that file.
async fn blocking<T: Send + 'static>(path: &Path, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::invalid(format!("`{}` cannot be converted: {error}", path.display())))?
}
