//! Snapshots: a run's whole state beside its journal, so that a restart replays only the tail.
//!
//! One folder per snapshot, `<snapshots>/<run>/<after>-<arrival>/`, written aside, fsynced and renamed;
//! the store learns of it only then, and older ones are removed only after that.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::warn;
use twinkle_core::Result;
use twinkle_core::call::Position;
use twinkle_core::ids::{RunId, TenantId};
use twinkle_core::state::SnapshotRecord;
use twinkle_core::telemetry::labels::{Attempt, TaskStatus, Whole};
use twinkle_core::telemetry::metrics::{SNAPSHOT_BYTES, SNAPSHOT_DURATION, SNAPSHOTS};

use crate::engine::EngineContext;
use crate::files::{self, Extent, io_error};
use crate::residents::Disk;
use crate::run::Run;

/// Snapshots of one application, on disk and in the store.
pub(crate) struct Snapshots<'a> {
    pub(crate) context: &'a EngineContext,
    pub(crate) runtime: &'a Handle,
}

impl Disk for Snapshots<'_> {
    fn write(&self, id: &RunId, run: &Run, position: Position) -> Result<PathBuf> {
        let began = Instant::now();
        let written = write(self.context, self.runtime, id, run, position);
        SNAPSHOTS.add(1, Attempt { status: TaskStatus::of(&written) });
        if let Ok(folder) = &written {
            SNAPSHOT_DURATION.record(began.elapsed(), Whole);
            SNAPSHOT_BYTES.record(bytes_in(folder), Whole);
        }
        written
    }

    fn read(&self, snapshot: &Path, tenant: &TenantId) -> Result<Run> {
        let read = files::read_run(snapshot, tenant.clone(), &self.context.base_model, &self.context.base, true)?;
        Ok(read.run)
    }
}

/// Writes a snapshot of `run` as it is after `position` and registers it.
fn write(context: &EngineContext, runtime: &Handle, id: &RunId, run: &Run, position: Position) -> Result<PathBuf> {
    let folder = folder(context, id);
    let target = folder.join(format!("{}-{}", position.after, position.arrival));
    let aside = folder.join(".writing");
    remove(&aside);
    fs::create_dir_all(&aside).map_err(|error| io_error("created", &aside, &error))?;
    files::write_run(&aside, run, Extent { gradients: true, ..Extent::default() })?;
    sync_files(&aside)?;
    remove(&target);
    fs::rename(&aside, &target).map_err(|error| io_error("renamed", &aside, &error))?;
    sync(&folder)?;
    let record = SnapshotRecord { directory: target.clone(), through: position };
    runtime.block_on(context.store.record_snapshot(id, &record))?;
    remove_others(&folder, &target);
    Ok(target)
}

/// The bytes of a folder's files; 0 for what cannot be read, since this is for a metric.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Removes every snapshot of a run that no longer exists.
pub(crate) fn remove_all(context: &EngineContext, id: &RunId) {
    remove(&folder(context, id));
}

fn folder(context: &EngineContext, id: &RunId) -> PathBuf {
    context.snapshots.join(id.as_str())
}

fn remove_others(folder: &Path, keep: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.path() != keep {
            remove(&entry.path());
        }
    }
}

/// A leftover costs disk space and nothing else.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "an old snapshot could not be removed");
    }
}

fn sync_files(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|error| io_error("listed", folder, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| io_error("listed", folder, &error))?.path();
        sync(&path)?;
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| io_error("synced", path, &error))
}
