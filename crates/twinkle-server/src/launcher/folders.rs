//! Where the node keeps what survives a restart.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use twinkle_core::config::Persistence;
use twinkle_core::error::{Error, Result};
use twinkle_core::state::StateLocation;

/// Overrides where checkpoints lie.
const SAVE_DIRECTORY_VARIABLE: &str = "TWINKLE_DEFAULT_SAVE_DIR";

/// The file with the key of download links.
const DOWNLOAD_KEY: &str = "download.key";

/// The node's folders; held for as long as it runs.
#[derive(Debug)]
pub(super) struct Folders {
    /// Where the records are.
    pub(super) records: StateLocation,
    /// Snapshots of training runs.
    pub(super) snapshots: PathBuf,
    /// Adapters of live sampling sessions.
    pub(super) live: PathBuf,
    /// Checkpoints, by tenant.
    pub(super) checkpoints: PathBuf,
    /// The key that download links are signed with.
    pub(super) download_key: PathBuf,
    /// Data sets that tenants saved, by tenant; made when the first is saved.
    pub(super) data_sets: PathBuf,
    /// Removed with everything in it when the node stops.
    _temporary: Option<TempDir>,
}

impl Folders {
    /// Makes the folders `persistence` asks for.
    pub(super) fn open(persistence: &Persistence) -> Result<Self> {
        let given = std::env::var_os(SAVE_DIRECTORY_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        match persistence {
            Persistence::Memory => Self::passing(given),
            Persistence::File { directory } => {
                Self::lasting(directory, given, |directory| StateLocation::File(directory.join("state.sqlite")))
            }
            Persistence::Redis { url, key_prefix, directory } => Self::lasting(directory, given, |_| {
                StateLocation::Redis { url: url.clone(), key_prefix: key_prefix.clone() }
            }),
            Persistence::Postgres { url, key_prefix, directory } => Self::lasting(directory, given, |_| {
                StateLocation::Postgres { url: url.clone(), key_prefix: key_prefix.clone() }
            }),
        }
    }

    fn lasting(
        directory: &Path,
        checkpoints: Option<PathBuf>,
        records: impl FnOnce(&Path) -> StateLocation,
    ) -> Result<Self> {
        let directory = make(directory)?;
        Ok(Self {
            records: records(&directory),
            snapshots: make(&directory.join("snapshots"))?,
            live: make(&directory.join("live"))?,
            checkpoints: make(&checkpoints.unwrap_or_else(|| directory.join("checkpoints")))?,
            download_key: directory.join(DOWNLOAD_KEY),
            data_sets: directory.join("datasets"),
            _temporary: None,
        })
    }

    fn passing(checkpoints: Option<PathBuf>) -> Result<Self> {
        let temporary = tempfile::Builder::new()
            .prefix("twinkle-")
            .tempdir()
            .map_err(|error| Error::internal(format!("a temporary folder could not be made: {error}")))?;
        Ok(Self {
            records: StateLocation::Memory,
            snapshots: make(&temporary.path().join("snapshots"))?,
            live: make(&temporary.path().join("live"))?,
            checkpoints: make(&checkpoints.unwrap_or_else(|| temporary.path().join("checkpoints")))?,
            download_key: temporary.path().join(DOWNLOAD_KEY),
            data_sets: temporary.path().join("datasets"),
            _temporary: Some(temporary),
        })
    }
}

/// Makes a folder and its parents; answers its absolute path, because the current directory may change.
fn make(directory: &Path) -> Result<PathBuf> {
    let shown = directory.display();
    fs::create_dir_all(directory)
        .map_err(|error| Error::invalid(format!("the folder `{shown}` could not be made: {error}")))?;
    directory.canonicalize().map_err(|error| Error::invalid(format!("the folder `{shown}` cannot be used: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lasting_folders_are_absolute_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let persistence = Persistence::File { directory: folder.path().join("a/state") };
        let folders = Folders::open(&persistence).unwrap();
        assert!(matches!(&folders.records, StateLocation::File(path) if path.is_absolute()));
        let snapshots = folders.snapshots.clone();
        drop(folders);
        assert!(snapshots.is_dir());
    }

    #[test]
    fn nothing_is_left_of_a_node_without_persistence() {
        let folders = Folders::open(&Persistence::Memory).unwrap();
        let snapshots = folders.snapshots.clone();
        assert!(snapshots.is_dir());
        drop(folders);
        assert!(!snapshots.exists());
    }
}
