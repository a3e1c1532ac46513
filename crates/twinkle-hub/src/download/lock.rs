//! One download of a file at a time on a machine: locks on files, the same that the hubs' tools take.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use tracing::info;
use twinkle_core::{Error, Result};

use super::failure::file_error;

/// How often a lock that somebody else holds is tried.
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// A lock, held until it is dropped or its process ends.
pub(crate) struct FileLock {
    _file: File,
}

/// Takes the lock of this file, waiting for whoever has it. Dropping the future gives up.
pub(crate) async fn lock(path: &Path) -> Result<FileLock> {
    let mut told = false;
    loop {
        let owned = path.to_owned();
        let tried = tokio::task::spawn_blocking(move || try_lock(&owned)).await;
        let tried = tried.map_err(|error| Error::internal(format!("locking a file failed: {error}")))??;
        if let Some(file) = tried {
            return Ok(FileLock { _file: file });
        }
        if !told {
            told = true;
            info!(lock = %path.display(), "another process is at work on this file; waiting for it");
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

fn try_lock(path: &Path) -> Result<Option<File>> {
    let failed = |error: &std::io::Error| file_error("lock", path, error);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| file_error("create", folder, &error))?;
    }
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(|error| failed(&error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        // A file system without locks: the checksum still finds what two writers would do to a file.
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => Ok(Some(file)),
        Err(TryLockError::Error(error)) => Err(failed(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_second_waits_until_the_first_lets_go() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/a.lock");
        let first = lock(&path).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_mins(1), lock(&path)).await.is_err());
        drop(first);
        lock(&path).await.unwrap();
    }
}
