//! Hashing, syncing, and what the disk says in words for a user.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorCode, Result};

/// The error for a file operation: `cannot <action> `<path>`: …`.
pub(super) fn failed(action: &str, path: &Path, error: &io::Error) -> Error {
    let message = format!("cannot {action} `{}`: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::new(ErrorCode::ResourceExhausted, message).hint("free some space; nothing was left behind")
        }
        _ => Error::internal(message),
    }
}

/// Size in bytes and SHA-256 in hex.
pub(super) fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((size, hex::encode(hasher.finalize())));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

/// Makes `target` a file like `source`: the same one where the file system allows that, else a copy.
pub(super) fn share(source: &Path, target: &Path) -> Result<()> {
    if fs::hard_link(source, target).is_ok() {
        return Ok(());
    }
    fs::copy(source, target).map(|_| ()).map_err(|error| failed("copy", source, &error))
}

/// Makes a file's contents durable.
pub(super) fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed("sync", path, &error))
}

/// Makes a folder's names durable.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    sync_file(path)
}

/// What is in a folder; nothing when it does not exist.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", folder, &error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|error| failed("list", folder, &error))?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_from_a_defect() {
        let full = failed("write", Path::new("x"), &io::Error::from(ErrorKind::StorageFull));
        assert_eq!(full.code, ErrorCode::ResourceExhausted);
        let denied = failed("write", Path::new("x"), &io::Error::from(ErrorKind::PermissionDenied));
        assert_eq!(denied.code, ErrorCode::Internal);
    }
}
