//! Deletes what a stopped node recorded.

use std::fs;
use std::io;
use std::path::Path;

use twinkle_core::config::Persistence;
use twinkle_core::error::{Error, Result};
use twinkle_core::state::StateStore;

use super::applications::open_store;
use super::folders::Folders;

/// Forgets the records of a stopped node and deletes the files that belong to them; answers the number of records.
///
/// The files of checkpoints stay: they are the users'.
pub(crate) async fn clear_persistence(persistence: &Persistence) -> Result<u64> {
    let folders = Folders::open(persistence)?;
    let store = open_store(&folders).await?;
    let cleared = store.clear().await;
    store.close().await;
    let cleared = cleared?;
    // Records first: files without a record are harmless, the other way round is not.
    for folder in [&folders.snapshots, &folders.live] {
        empty(folder)
            .map_err(|error| Error::internal(format!("`{}` could not be emptied: {error}", folder.display())))?;
    }
    Ok(cleared)
}

/// Opens the records of a node that does not run, to look at them or to change them.
pub(crate) async fn open_records(persistence: &Persistence) -> Result<StateStore> {
    open_store(&Folders::open(persistence)?).await
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
