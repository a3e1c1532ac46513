//! Adapters that runs have published for sampling: handed over by pointer, kept on disk for later.
//!
//! The trainer puts a pointer, so a sampler can use the adapter at once; then it saves the same adapter to a folder,
//! off that path. So memory holds the most recent ones only, and a restarted node still has them all.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tch::{Device, Kind, Tensor};
use twinkle_core::ids::SamplingSessionId;
use twinkle_core::{Error, ErrorCode, Result};

use crate::config::ModelConfig;
use crate::lora::{Adapter, AdapterLayout, peft};

/// Published adapters held in memory; older ones are read back from disk when they are asked for.
const MOST_IN_MEMORY: usize = 64;

/// Live adapters by sampling session: the trainer puts, the sampler gets. A cheap handle to one shared table.
///
/// A sampler that has fetched an adapter keeps it alive, so a removal or replacement never disturbs a running sequence.
#[derive(Clone, Debug)]
pub struct PublishedAdapters {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    /// Most recently used first.
    recent: Mutex<VecDeque<(SamplingSessionId, Arc<Adapter>)>>,
}

impl PublishedAdapters {
    /// An empty table that keeps its adapters in `folder`, one PEFT folder for each sampling session.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { shared: Arc::new(Shared { folder, recent: Mutex::default() }) }
    }

    /// Publishes `adapter` under `session`, replacing what was there. [`Self::save`] makes it last.
    pub fn put(&self, session: SamplingSessionId, adapter: Arc<Adapter>) {
        let mut recent = self.shared.recent.lock();
        recent.retain(|(known, _)| *known != session);
        recent.push_front((session, adapter));
        recent.truncate(MOST_IN_MEMORY);
    }

    /// Writes the adapter of `session` to disk from its flat fp32 parameters `[P]`. Blocks.
    pub fn save(
        &self,
        session: &SamplingSessionId,
        layout: &AdapterLayout,
        parameters: &Tensor,
        base_model: &str,
    ) -> Result<()> {
        let target = self.shared.folder_of(session)?;
        let aside = target.with_extension("writing");
        remove(&aside)?;
        fs::create_dir_all(&aside).map_err(|error| io_error("created", &aside, &error))?;
        peft::write(&aside, layout, parameters, base_model)?;
        sync_files(&aside)?;
        remove(&target)?;
        fs::rename(&aside, &target).map_err(|error| io_error("renamed", &aside, &error))?;
        sync(&self.shared.folder)
    }

    /// The adapter published under `session`, if it is in memory.
    #[must_use]
    pub fn get(&self, session: &SamplingSessionId) -> Option<Arc<Adapter>> {
        let mut recent = self.shared.recent.lock();
        let place = recent.iter().position(|(known, _)| known == session)?;
        let entry = recent.remove(place)?;
        let adapter = Arc::clone(&entry.1);
        recent.push_front(entry);
        Some(adapter)
    }

    /// The adapter published under `session`, read back from disk if need be. Blocks then.
    ///
    /// # Errors
    /// `NotFound` when nothing was published under it, `InvalidArgument` when the files are damaged.
    pub fn get_or_load(
        &self,
        session: &SamplingSessionId,
        config: &ModelConfig,
        kind: Kind,
        device: Device,
    ) -> Result<Arc<Adapter>> {
        if let Some(adapter) = self.get(session) {
            return Ok(adapter);
        }
        let folder = self.shared.folder_of(session)?;
        if !folder.is_dir() {
            return Err(Error::not_found(format!("sampling session `{session}` holds no weights")));
        }
        let (spec, parameters) = peft::read(&folder, config)?;
        let layout = Arc::new(AdapterLayout::new(config, &spec)?);
        let adapter = Arc::new(Adapter::from_parameters(&layout, &parameters, kind, device));
        self.put(session.clone(), Arc::clone(&adapter));
        Ok(adapter)
    }

    /// The sampling sessions whose adapters are on disk.
    pub fn saved(&self) -> Result<Vec<SamplingSessionId>> {
        let folder = &self.shared.folder;
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("listed", folder, &error)),
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(SamplingSessionId::new)
            .collect())
    }

    /// Withdraws the adapter of `session`, in memory and on disk.
    pub fn remove(&self, session: &SamplingSessionId) -> Result<()> {
        self.shared.recent.lock().retain(|(known, _)| known != session);
        remove(&self.shared.folder_of(session)?)
    }
}

impl Shared {
    /// Session names come from clients: one that is not a plain folder name names nothing.
    fn folder_of(&self, session: &SamplingSessionId) -> Result<PathBuf> {
        let name = session.as_str();
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
            return Err(Error::not_found(format!("sampling session `{session}` holds no weights")));
        }
        Ok(self.folder.join(name))
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removed", folder, &error)),
        _ => Ok(()),
    }
}

fn sync_files(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|error| io_error("listed", folder, &error))?.flatten() {
        sync(&entry.path())?;
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| io_error("synced", path, &error))
}

fn io_error(what: &str, path: &Path, error: &io::Error) -> Error {
    let message = format!("`{}` could not be {what}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(ErrorCode::ResourceExhausted, message),
        _ => Error::internal(message),
    }
}
