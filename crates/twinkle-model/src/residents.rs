//! Which runs are in memory, and which wait on disk.
//!
//! Runs live in three tiers: registered (on disk), resident (in memory) and active (held by a pass). A [`Capacity`]
//! bounds the residents by count and by bytes. One more, and the run that was idle longest goes to its snapshot; its
//! next operation brings it back in the same bits. An active run stays. Being on disk is slower, never an error.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use tracing::{debug, warn};
use twinkle_core::call::Position;
use twinkle_core::ids::{RunId, TenantId};
use twinkle_core::{ByteSize, Error, ErrorCode, Result};

use crate::run::Run;

/// How much of the memory runs may take together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Most runs (`max_loras`), at least one.
    pub runs: usize,
    /// Most bytes of parameters, gradients and optimizer state.
    pub bytes: u64,
}

impl Capacity {
    /// No bound at all.
    pub const UNBOUNDED: Self = Self { runs: usize::MAX, bytes: u64::MAX };
}

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
    /// What it takes in memory.
    bytes: u64,
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
    capacity: Capacity,
    /// Whether runs were lost with their tensors. A run that is not here may be one of them, to be rebuilt.
    has_lost_runs: bool,
    clock: u64,
    resident: HashMap<RunId, ResidentRun>,
    spilled: HashMap<RunId, Spilled>,
    /// Residents that a pass works on.
    active: HashSet<RunId>,
}

impl Residents {
    /// A table that keeps at most so many runs in memory.
    #[must_use]
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity: Capacity { runs: capacity.runs.max(1), ..capacity },
            has_lost_runs: false,
            clock: 0,
            resident: HashMap::new(),
            spilled: HashMap::new(),
            active: HashSet::new(),
        }
    }

    /// The table of an engine that follows one that was lost with all its runs.
    #[must_use]
    pub fn after_a_loss(capacity: Capacity) -> Self {
        Self { has_lost_runs: true, ..Self::new(capacity) }
    }

    /// Adds a run that is new or was rebuilt up to `position`, making room for it.
    ///
    /// Errors: `ResourceExhausted` when there is no room for it; it is then not in the table.
    pub fn insert(
        &mut self,
        disk: &impl Disk,
        id: &RunId,
        run: Run,
        position: Position,
        saved: Option<PathBuf>,
    ) -> Result<()> {
        self.resident.remove(id);
        self.make_room(disk, run.bytes())?;
        self.clock += 1;
        let resident = ResidentRun { run, position, unsaved: Duration::ZERO, saved, last_used: self.clock };
        self.spilled.remove(id);
        self.resident.insert(id.clone(), resident);
        Ok(())
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

    /// Of these runs those that are in memory, in this order; each once.
    pub fn several(&mut self, ids: &[&RunId]) -> Vec<&mut ResidentRun> {
        let place = |id: &RunId| ids.iter().position(|wanted| *wanted == id);
        let found = self.resident.iter_mut().filter_map(|(id, resident)| Some((place(id)?, resident)));
        let mut found: Vec<(usize, &mut ResidentRun)> = found.collect();
        found.sort_unstable_by_key(|(place, _)| *place);
        found.into_iter().map(|(_, resident)| resident).collect()
    }

    /// Keeps these runs in memory until [`Residents::release`], whatever else needs room.
    pub fn hold(&mut self, ids: impl IntoIterator<Item = RunId>) {
        self.active.extend(ids);
    }

    /// Ends every [`Residents::hold`].
    pub fn release(&mut self) {
        self.active.clear();
    }

    /// How many of these runs, from the first, fit into memory together: at least one.
    #[must_use]
    pub fn fit_together<'a>(&self, ids: impl IntoIterator<Item = &'a RunId>) -> usize {
        let mut bytes = 0_u64;
        let fitting = ids.into_iter().take(self.capacity.runs).take_while(|id| {
            bytes = bytes.saturating_add(self.bytes_of(id));
            bytes <= self.capacity.bytes
        });
        fitting.count().max(1)
    }

    /// What a run takes in memory, wherever it is; 0 of one that is not in the table.
    fn bytes_of(&self, id: &RunId) -> u64 {
        let resident = self.resident.get(id).map(|resident| resident.run.bytes());
        resident.or_else(|| self.spilled.get(id).map(|spilled| spilled.bytes)).unwrap_or(0)
    }

    /// Bytes of all runs in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.resident.values().map(|resident| resident.run.bytes()).sum()
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

    /// The names of all runs, wherever they are.
    #[must_use]
    pub fn all_names(&self) -> Vec<RunId> {
        self.resident.keys().chain(self.spilled.keys()).cloned().collect()
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
        let (snapshot, position, bytes) = (spilled.snapshot.clone(), spilled.position, spilled.bytes);
        // Room before it is read: there is never one run too many in memory.
        self.make_room(disk, bytes)?;
        let run = disk.read(&snapshot, tenant)?;
        debug!(run = %id, "brought back from disk");
        self.insert(disk, id, run, position, Some(snapshot))
    }

    /// Moves the runs that were idle longest to disk until one more of so many bytes fits.
    fn make_room(&mut self, disk: &impl Disk, bytes: u64) -> Result<()> {
        loop {
            let is_full = self.resident.len() >= self.capacity.runs;
            let is_over = self.bytes().saturating_add(bytes) > self.capacity.bytes;
            if !is_full && !is_over {
                return Ok(());
            }
            let idle = self.resident.iter().filter(|(id, _)| !self.active.contains(id));
            let spilling = match idle.min_by_key(|(_, run)| run.last_used).map(|(id, _)| id.clone()) {
                Some(id) => self.spill(disk, &id).inspect_err(|reason| {
                    warn!(run = %id, %reason, "an idle run could not be moved to disk");
                }),
                None => Err(Error::new(ErrorCode::ResourceExhausted, "none of them can be moved to disk now")),
            };
            match spilling {
                Ok(()) => {}
                Err(reason) if is_over => return Err(self.no_room(bytes, &reason)),
                // One run too many is better than a lost one.
                Err(_) => return Ok(()),
            }
        }
    }

    fn no_room(&self, bytes: u64, reason: &Error) -> Error {
        Error::new(
            ErrorCode::ResourceExhausted,
            format!(
                "the run needs {} of memory; runs may take {} and {} of them take {} now ({})",
                ByteSize(bytes),
                ByteSize(self.capacity.bytes),
                self.resident.len(),
                ByteSize(self.bytes()),
                reason.message
            ),
        )
        .hint("use a smaller rank, or give the application a larger `memory_limit`")
    }

    /// Moves a run that is in memory to disk.
    pub fn spill(&mut self, disk: &impl Disk, id: &RunId) -> Result<()> {
        let Some(resident) = self.resident.get(id) else { return Ok(()) };
        let position = resident.position;
        let snapshot = match &resident.saved {
            Some(snapshot) => snapshot.clone(),
            None => disk.write(id, &resident.run, position)?,
        };
        let (tenant, bytes) = (resident.run.tenant.clone(), resident.run.bytes());
        self.resident.remove(id);
        self.spilled.insert(id.clone(), Spilled { tenant, snapshot, position, bytes });
        debug!(run = %id, "moved to disk");
        Ok(())
    }
}
