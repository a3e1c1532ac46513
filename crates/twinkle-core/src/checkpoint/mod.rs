//! Files that outlive a run: written aside, checked, synced and renamed into place.
//!
//! A checkpoint is the folder `<root>/<tenant>/<run>/<kind>/<name>/` with a [`Manifest`]. It is there
//! completely or not at all, whatever moment the process dies at; a damaged one is refused and named.
//! Folders that begin with a dot are in the making or on their way out.
//!
//! Every function here blocks: call them from an engine thread or `spawn_blocking`.

mod disk;
mod draft;
mod encryption;
mod manifest;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use uuid::Uuid;

pub use draft::{CheckpointMeta, CommittedCheckpoint, Draft};
pub use encryption::{MOST_RECIPIENTS, Recipients};
pub use manifest::{FileEntry, MANIFEST, Manifest};

use crate::error::{Error, Result};
use crate::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};
use crate::state::no_checkpoint;
use disk::{failed, sync_folder};

/// Prefix of a checkpoint in the making.
const DRAFT: &str = ".draft-";
/// Prefix of a checkpoint that is being replaced; followed by its name.
const REPLACED: &str = ".replaced-";
/// Prefix of a checkpoint that is being deleted.
const DELETED: &str = ".deleted-";

/// A cheap handle on the folder of all checkpoints.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    root: Arc<PathBuf>,
    /// Held while names change, so that two commits to one name come one after the other.
    renaming: Arc<Mutex<()>>,
}

/// A checkpoint whose files were found to be as they were written.
#[derive(Clone, Debug)]
pub struct OpenCheckpoint {
    directory: PathBuf,
    manifest: Manifest,
}

impl OpenCheckpoint {
    /// The folder with its files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What it says about itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl CheckpointStore {
    /// The checkpoints below `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root: Arc::new(root), renaming: Arc::new(Mutex::new(())) }
    }

    /// Begins a checkpoint. Its files are written into [`Draft::directory`]; [`Draft::commit`] puts it in place.
    pub fn draft(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<Draft> {
        let target = self.target(tenant, path)?;
        let folder = parent(&target)?;
        fs::create_dir_all(folder).map_err(|error| failed("make", folder, &error))?;
        let directory = folder.join(format!("{DRAFT}{}", Uuid::now_v7()));
        fs::create_dir(&directory).map_err(|error| failed("make", &directory, &error))?;
        Ok(Draft::new(self.clone(), directory, target, path.clone()))
    }

    /// Opens a checkpoint after reading every file of it and comparing its SHA-256.
    ///
    /// Errors: `NotFound` when it is absent or another tenant's, `InvalidArgument` naming the file that is damaged.
    pub fn open(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<OpenCheckpoint> {
        let directory = self.target(tenant, path)?;
        if !directory.is_dir() {
            return Err(no_checkpoint(path));
        }
        let manifest = Manifest::read(&directory, path)?;
        manifest.verify(&directory, path)?;
        Ok(OpenCheckpoint { directory, manifest })
    }

    /// A checkpoint's files as its manifest lists them, not read: for those who only pass them on.
    pub fn look(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<OpenCheckpoint> {
        let directory = self.target(tenant, path)?;
        if !directory.is_dir() {
            return Err(no_checkpoint(path));
        }
        Ok(OpenCheckpoint { manifest: Manifest::read(&directory, path)?, directory })
    }

    /// Copies a checkpoint after checking it. Files are shared where the file system can, for they never change.
    ///
    /// Repeated after an interruption, it finds the copy in place.
    pub fn copy(
        &self,
        source: (&TenantId, &CheckpointPath),
        target: (&TenantId, &CheckpointPath),
        created_at: Timestamp,
    ) -> Result<CommittedCheckpoint> {
        let source = self.open(source.0, source.1)?;
        let draft = self.draft(target.0, target.1)?;
        for name in source.manifest.files.keys() {
            disk::share(&source.directory.join(name), &draft.directory().join(name))?;
        }
        let Manifest { base_model, lora, user_metadata, position, optimizer_steps, .. } = source.manifest;
        let meta = CheckpointMeta { base_model, lora, user_metadata, created_at, position, optimizer_steps };
        draft.commit(&meta, false)
    }

    /// Deletes a checkpoint's files. `NotFound` when it is absent or another tenant's.
    pub fn delete(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<()> {
        let target = self.target(tenant, path)?;
        let folder = parent(&target)?;
        let aside = folder.join(format!("{DELETED}{}", Uuid::now_v7()));
        {
            let _renaming = self.renaming.lock();
            match fs::rename(&target, &aside) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(no_checkpoint(path)),
                Err(error) => return Err(failed("delete", &target, &error)),
            }
        }
        sync_folder(folder)?;
        fs::remove_dir_all(&aside).map_err(|error| failed("delete", &aside, &error))
    }

    /// Removes what a process that died left unfinished; for the start of a server, before any draft.
    ///
    /// Returns how many leftovers there were. A checkpoint that was just being replaced keeps its old files.
    pub fn remove_leftovers(&self) -> Result<usize> {
        let mut removed = 0;
        // <root>/<tenant>/<run>/<kind>/
        let mut folders = vec![self.root.as_ref().clone()];
        for _ in 0..3 {
            let mut below = Vec::new();
            for folder in &folders {
                below.extend(disk::list(folder)?.into_iter().filter(|entry| entry.is_dir()));
            }
            folders = below;
        }
        for folder in folders {
            for entry in disk::list(&folder)? {
                if remove_leftover(&folder, &entry)? {
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// The checkpoint whose files lie in `folder`, if that is one of the tenant's. Only names are looked at.
    #[must_use]
    pub fn path_of(&self, tenant: &TenantId, folder: &Path) -> Option<CheckpointPath> {
        let root = std::path::absolute(self.root.as_ref()).ok()?;
        let below = std::path::absolute(folder).ok()?;
        let below = below.strip_prefix(root.join(tenant.as_str())).ok()?;
        let parts: Vec<&str> = below.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
        let [run, kind, name] = parts[..] else { return None };
        let path = CheckpointPath::new(RunId::new(run), CheckpointKind::of_segment(kind)?, name).ok()?;
        self.target(tenant, &path).is_ok().then_some(path)
    }

    /// Where a checkpoint lives. Each part is one path segment, so nothing leads out of the tenant's folder.
    fn target(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<PathBuf> {
        crate::ids::validate_checkpoint_name(&path.name)?;
        let mut target = self.root.as_ref().clone();
        for segment in [tenant.as_str(), path.run.as_str(), path.kind.segment(), path.name.as_str()] {
            let is_safe = !segment.is_empty() && !segment.starts_with('.') && !segment.contains(['/', '\\', '\0']);
            if !is_safe {
                return Err(no_checkpoint(path));
            }
            target.push(segment);
        }
        Ok(target)
    }
}

fn remove_leftover(folder: &Path, entry: &Path) -> Result<bool> {
    let Some(name) = entry.file_name().and_then(|name| name.to_str()) else { return Ok(false) };
    if let Some(replaced) = name.strip_prefix(REPLACED) {
        let target = folder.join(replaced);
        if !target.exists() {
            // The process died between moving the old one away and the new one in.
            fs::rename(entry, &target).map_err(|error| failed("restore", &target, &error))?;
            sync_folder(folder)?;
            return Ok(true);
        }
    } else if !name.starts_with(DRAFT) && !name.starts_with(DELETED) {
        return Ok(false);
    }
    fs::remove_dir_all(entry).map_err(|error| failed("remove", entry, &error))?;
    Ok(true)
}

fn parent(target: &Path) -> Result<&Path> {
    target.parent().ok_or_else(|| Error::internal(format!("`{}` has no parent folder", target.display())))
}
