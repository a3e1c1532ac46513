//! The files of an upload, read once for their digests.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use twinkle_core::{Error, Result};

use crate::hubs::is_plain_name;

/// Files of at least this many bytes go beforehand, by their digest; smaller ones are in the commit.
const LARGE: u64 = 1 << 20;

/// Bytes of a file's beginning that a hub looks at.
const SAMPLE: usize = 512;

/// A file as the hubs want it described.
#[derive(Clone, Debug)]
pub(super) struct LocalFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    /// In hex.
    pub(super) sha256: String,
    /// Its beginning.
    pub(super) sample: Vec<u8>,
    /// All of it, when it is small and text.
    pub(super) content: Option<Vec<u8>>,
}

/// Describes these files of a folder.
pub(super) async fn read(folder: PathBuf, names: Vec<String>) -> Result<Vec<LocalFile>> {
    let reading = tokio::task::spawn_blocking(move || names.into_iter().map(|name| describe(&folder, name)).collect());
    reading.await.map_err(|error| Error::internal(format!("the files of an upload were not read: {error}")))?
}

fn describe(folder: &Path, name: String) -> Result<LocalFile> {
    if !is_plain_name(&name) {
        return Err(Error::invalid(format!("a file named `{name}` is not uploaded")));
    }
    let path = folder.join(&name);
    let failed = |error: std::io::Error| Error::internal(format!("`{name}` could not be read: {error}"));
    let mut file = File::open(&path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let (mut size, mut beginning) = (0_u64, Vec::new());
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
        size += read as u64;
        if (beginning.len() as u64) < LARGE {
            beginning.extend_from_slice(bytes);
        }
    }
    let is_small = size < LARGE && !name.ends_with(".safetensors");
    let sample = beginning.iter().take(SAMPLE).copied().collect();
    let content = is_small.then_some(beginning);
    Ok(LocalFile { name, path, size, sha256: hex::encode(hasher.finalize()), sample, content })
}
