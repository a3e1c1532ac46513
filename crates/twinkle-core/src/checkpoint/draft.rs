//! A checkpoint in the making.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::disk::{failed, sync_file, sync_folder};
use super::manifest::{MANIFEST, Manifest};
use super::{CheckpointStore, REPLACED, parent};
use crate::call::{LoraSpec, Position};
use crate::error::{Error, Result};
use crate::ids::CheckpointPath;

/// What a checkpoint's manifest says besides its files.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointMeta {
    /// The base model's public name.
    pub base_model: String,
    /// The adapter's shape.
    pub lora: LoraSpec,
    /// The user's notes.
    pub user_metadata: BTreeMap<String, String>,
    /// When it is saved.
    pub created_at: Timestamp,
    /// The operation that saves it: when it is executed again after a restart, its own files are no obstacle.
    pub position: Position,
    /// How many optimizer steps its run has taken.
    pub optimizer_steps: Option<u64>,
}

/// A checkpoint that is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommittedCheckpoint {
    /// Bytes of its files together.
    pub size_bytes: u64,
}

/// A folder beside the final one. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    store: CheckpointStore,
    directory: PathBuf,
    target: PathBuf,
    path: CheckpointPath,
}

impl Draft {
    pub(super) fn new(store: CheckpointStore, directory: PathBuf, target: PathBuf, path: CheckpointPath) -> Self {
        Self { store, directory, target, path }
    }

    /// Where the files are written; plain files only, no folders.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Puts the checkpoint in place, durably.
    ///
    /// Without `overwrite` a name that is taken is refused (`InvalidArgument`), unless it was taken by
    /// this very operation before a restart. A full disk is `ResourceExhausted`, and nothing is left behind.
    pub fn commit(self, meta: &CheckpointMeta, overwrite: bool) -> Result<CommittedCheckpoint> {
        let manifest = Manifest::of_folder(&self.directory, meta)?;
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| Error::internal(format!("a manifest could not be written: {error}")))?;
        let manifest_path = self.directory.join(MANIFEST);
        fs::write(&manifest_path, text).map_err(|error| failed("write", &manifest_path, &error))?;
        for name in manifest.files.keys() {
            sync_file(&self.directory.join(name))?;
        }
        sync_file(&manifest_path)?;
        sync_folder(&self.directory)?;

        let _renaming = self.store.renaming.lock();
        if self.target.exists() {
            if !overwrite {
                return self.keep_own_files(meta);
            }
            self.replace()?;
        } else {
            fs::rename(&self.directory, &self.target).map_err(|error| failed("make", &self.target, &error))?;
        }
        self.sync_way_to_root()?;
        Ok(CommittedCheckpoint { size_bytes: manifest.size_bytes() })
    }

    /// The name is taken: fine if the same operation took it, else an error.
    fn keep_own_files(&self, meta: &CheckpointMeta) -> Result<CommittedCheckpoint> {
        let path = &self.path;
        let same_operation =
            Manifest::read(&self.target, path).ok().filter(|existing| existing.position == meta.position);
        match same_operation {
            Some(existing) if existing.verify(&self.target, path).is_ok() => {
                Ok(CommittedCheckpoint { size_bytes: existing.size_bytes() })
            }
            _ => Err(Error::invalid(format!("checkpoint `{path}` exists already"))
                .hint("choose another name, or save with `overwrite`")),
        }
    }

    /// Moves the old one away, the new one in. Dying in between is mended by `remove_leftovers`.
    fn replace(&self) -> Result<()> {
        let folder = parent(&self.target)?;
        let aside = folder.join(format!("{REPLACED}{}", self.path.name));
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", &aside, &error)),
            _ => {}
        }
        fs::rename(&self.target, &aside).map_err(|error| failed("replace", &self.target, &error))?;
        if let Err(error) = fs::rename(&self.directory, &self.target) {
            fs::rename(&aside, &self.target).map_err(|error| failed("restore", &self.target, &error))?;
            return Err(failed("replace", &self.target, &error));
        }
        sync_folder(folder)?;
        if let Err(error) = fs::remove_dir_all(&aside) {
            tracing::warn!(path = %aside.display(), %error, "a replaced checkpoint could not be removed");
        }
        Ok(())
    }

    /// The folders above may be new as well: kind, run, tenant, root.
    fn sync_way_to_root(&self) -> Result<()> {
        for folder in self.target.ancestors().skip(1).take(4) {
            sync_folder(folder)?;
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a commit it has been renamed and is not there any more.
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %self.directory.display(), %error, "an unfinished checkpoint could not be removed");
        }
    }
}
