//! Which runs are in memory, and which wait on disk.
//!
//! At most `limit` runs keep their tensors in memory. One more, and the run that was idle longest goes to its
//! snapshot; its next operation brings it back in the same bits. Being on disk is slower, never an error.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{debug, warn};
use twinkle_core::call::Position;
use twinkle_core::ids::{RunId, TenantId};
use twinkle_core::{Error, ErrorCode, Result};

use crate::run::Run;

/// A run in memory, with what the engine must remember about it.
#[derive(Debug)]
pub struct ResidentRun {
    /// Its tensors.
    pub run: Run,
    /// The last operation it contains.
    pub position: Position,
    /// Computing time since the last snapshot: what a replay would take.
    pub unsaved: Duration,
    /// The snapshot that holds exactly this state, if there is one.
    pub saved: Option<PathBuf>,
    /// When it was last used, in operations of the engine.
    last_used: u64,
}

/// A run on disk.
#[derive(Debug)]
struct Spilled {
    tenant: TenantId,
    snapshot: PathBuf,
    position: Position,
}

/// What the table needs of the disk.
pub trait Disk {
    /// Writes a snapshot of the run after `position`: its folder.
    fn write(&self, id: &RunId, run: &Run, position: Position) -> Result<PathBuf>;

    /// Reads a snapshot back.
    fn read(&self, snapshot: &std::path::Path, tenant: &TenantId) -> Result<Run>;
}

/// All runs of one engine.
#[derive(Debug)]
pub struct Residents {
    limit: usize,
    /// Whether runs were lost with their tensors. A run that is not here may be one of them, to be rebuilt.
    has_lost_runs: bool,
    clock: u64,
    resident: HashMap<RunId, ResidentRun>,
    spilled: HashMap<RunId, Spilled>,
}

impl Residents {
    /// A table that keeps at most `limit` runs in memory (at least one).
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), has_lost_runs: false, clock: 0, resident: HashMap::new(), spilled: HashMap::new() }
    }

    /// The table of an engine that follows one that was lost with all its runs.
    #[must_use]
    pub fn after_a_loss(limit: usize) -> Self {
        Self { has_lost_runs: true, ..Self::new(limit) }
    }

    /// Adds a run that is new or was rebuilt up to `position`, making room for it.
    pub fn insert(&mut self, disk: &impl Disk, id: &RunId, run: Run, position: Position, saved: Option<PathBuf>) {
        self.clock += 1;
        let resident = ResidentRun { run, position, unsaved: Duration::ZERO, saved, last_used: self.clock };
        self.spilled.remove(id);
        self.resident.insert(id.clone(), resident);
        self.make_room(disk, id);
    }

    /// The tenant's run, brought back from disk if it is there.
    ///
    /// Errors: `NotFound` when there is none; `Interrupted` when it may be one that was lost.
    pub fn get(&mut self, disk: &impl Disk, tenant: &TenantId, id: &RunId) -> Result<&mut Run> {
        self.bring_back(disk, tenant, id)?;
        self.clock += 1;
        match self.resident.get_mut(id) {
            Some(resident) if resident.run.tenant == *tenant => {
                resident.last_used = self.clock;
                Ok(&mut resident.run)
            }
            None if self.has_lost_runs && !self.spilled.contains_key(id) => {
                Err(Error::new(ErrorCode::Interrupted, format!("the engine has lost run `{id}`")))
            }
            _ => Err(Error::not_found(format!("model `{id}` does not exist"))),
        }
    }

    /// A run that is in memory.
    pub fn in_memory(&mut self, id: &RunId) -> Option<&mut ResidentRun> {
        self.resident.get_mut(id)
    }

    /// How many runs are in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.resident.len()
    }

    /// Whether no run is in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.resident.is_empty()
    }

    /// How many runs wait on disk.
    #[must_use]
    pub fn on_disk(&self) -> usize {
        self.spilled.len()
    }

    /// The names of all runs in memory.
    #[must_use]
    pub fn names(&self) -> Vec<RunId> {
        self.resident.keys().cloned().collect()
    }

    /// Throws a run away whose tensors cannot be trusted: it must be created or restored before it can be used again.
    pub fn lose(&mut self, id: &RunId) {
        self.has_lost_runs = true;
        self.remove(id);
    }

    /// Forgets a run, wherever it is.
    pub fn remove(&mut self, id: &RunId) {
        self.resident.remove(id);
        self.spilled.remove(id);
    }

    fn bring_back(&mut self, disk: &impl Disk, tenant: &TenantId, id: &RunId) -> Result<()> {
        let Some(spilled) = self.spilled.get(id).filter(|spilled| spilled.tenant == *tenant) else { return Ok(()) };
        let (snapshot, position) = (spilled.snapshot.clone(), spilled.position);
        let run = disk.read(&snapshot, tenant)?;
        debug!(run = %id, "brought back from disk");
        self.insert(disk, id, run, position, Some(snapshot));
        Ok(())
    }

    fn make_room(&mut self, disk: &impl Disk, newcomer: &RunId) {
        while self.resident.len() > self.limit {
            let idle = self.resident.iter().filter(|(id, _)| *id != newcomer).min_by_key(|(_, run)| run.last_used);
            let Some(id) = idle.map(|(id, _)| id.clone()) else { return };
            if let Err(reason) = self.spill(disk, &id) {
                // Too much memory is better than a lost run.
                warn!(run = %id, %reason, "an idle run could not be moved to disk");
                return;
            }
        }
    }

    /// Moves a run that is in memory to disk.
    pub fn spill(&mut self, disk: &impl Disk, id: &RunId) -> Result<()> {
        let Some(resident) = self.resident.get(id) else { return Ok(()) };
        let position = resident.position;
        let snapshot = match &resident.saved {
            Some(snapshot) => snapshot.clone(),
            None => disk.write(id, &resident.run, position)?,
        };
        let tenant = resident.run.tenant.clone();
        self.resident.remove(id);
        self.spilled.insert(id.clone(), Spilled { tenant, snapshot, position });
        debug!(run = %id, "moved to disk");
        Ok(())
    }
}
