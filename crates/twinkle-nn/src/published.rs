//! Adapters that runs have published for sampling: handed over by pointer, kept on disk for later.
//!
//! The trainer puts a pointer, so a sampler can use the adapter at once; then it saves the same adapter to a folder,
//! off that path. So memory holds the most recent ones only, and a restarted node still has them all.
//!
//! A name may be published under again, with newer weights. A replay repeats old publications in order: those never take
//! the place of a newer one.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use twinkle_core::call::Position;
use twinkle_core::ids::SamplingSessionId;
use twinkle_core::{Error, ErrorCode, Result};

use crate::config::ModelConfig;
use crate::lora::{Adapter, AdapterLayout, peft};

/// Published adapters held in memory; older ones are read back from disk when they are asked for.
const MOST_IN_MEMORY: usize = 64;

/// Beside the adapter's own files.
const PUBLICATION: &str = "publication.json";

/// Which publication of a run an adapter is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// The operation that published it.
    pub position: Position,
    /// How many optimizer steps the run had taken.
    pub optimizer_steps: u64,
}

/// An adapter and which one it is.
#[derive(Clone, Debug)]
pub struct Published {
    /// The weights.
    pub adapter: Arc<Adapter>,
    /// Which they are.
    pub publication: Publication,
}

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
    recent: Mutex<VecDeque<(SamplingSessionId, Published)>>,
    /// Held for reading while a folder is read, and for writing while one takes another's place.
    replacing: RwLock<()>,
}

impl PublishedAdapters {
    /// An empty table that keeps its adapters in `folder`, one PEFT folder for each sampling session.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { shared: Arc::new(Shared { folder, recent: Mutex::default(), replacing: RwLock::default() }) }
    }

    /// Publishes an adapter under `session`, unless what is there, in memory or on disk, is newer. [`Self::save`] makes it
    /// last.
    pub fn put(&self, session: SamplingSessionId, adapter: Arc<Adapter>, publication: Publication) {
        let saved = self.saved_publication(&session);
        let mut recent = self.shared.recent.lock();
        let held = recent.iter().find(|(known, _)| *known == session).map(|(_, held)| held.publication);
        if held.or(saved).is_some_and(|there| there.position > publication.position) {
            return;
        }
        recent.retain(|(known, _)| *known != session);
        recent.push_front((session, Published { adapter, publication }));
        recent.truncate(MOST_IN_MEMORY);
    }

    /// Which publication the folder of `session` holds, if there is one.
    fn saved_publication(&self, session: &SamplingSessionId) -> Option<Publication> {
        let file = self.shared.folder_of(session).ok()?.join(PUBLICATION);
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// Writes the adapter of `session` to disk from its flat fp32 parameters `[P]`, unless a newer one is there. Blocks.
    pub fn save(
        &self,
        session: &SamplingSessionId,
        layout: &AdapterLayout,
        parameters: &Tensor,
        base_model: &str,
        publication: Publication,
    ) -> Result<()> {
        let target = self.shared.folder_of(session)?;
        if self.saved_publication(session).is_some_and(|there| there.position > publication.position) {
            return Ok(());
        }
        let aside = target.with_extension("writing");
        remove(&aside)?;
        fs::create_dir_all(&aside).map_err(|error| io_error("created", &aside, &error))?;
        peft::write(&aside, layout, parameters, base_model)?;
        let note = serde_json::to_vec(&publication).map_err(|error| Error::internal(error.to_string()))?;
        fs::write(aside.join(PUBLICATION), note).map_err(|error| io_error("written", &aside, &error))?;
        sync_files(&aside)?;
        let _alone = self.shared.replacing.write();
        remove(&target)?;
        fs::rename(&aside, &target).map_err(|error| io_error("renamed", &aside, &error))?;
        sync(&self.shared.folder)
    }

    /// The adapter published under `session`, if it is in memory.
    #[must_use]
    pub fn get(&self, session: &SamplingSessionId) -> Option<Published> {
        let mut recent = self.shared.recent.lock();
        let place = recent.iter().position(|(known, _)| known == session)?;
        let entry = recent.remove(place)?;
        let published = entry.1.clone();
        recent.push_front(entry);
        Some(published)
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
    ) -> Result<Published> {
        if let Some(published) = self.get(session) {
            return Ok(published);
        }
        let folder = self.shared.folder_of(session)?;
        let whole = self.shared.replacing.read();
        if !folder.is_dir() {
            return Err(Error::not_found(format!("sampling session `{session}` holds no weights")));
        }
        // Folders of earlier versions of this program have no note.
        let publication = self.saved_publication(session).unwrap_or_default();
        let (spec, parameters) = peft::read(&folder, config)?;
        drop(whole);
        let layout = Arc::new(AdapterLayout::new(config, &spec)?);
        let adapter = Arc::new(Adapter::from_parameters(&layout, &parameters, kind, device));
        self.put(session.clone(), Arc::clone(&adapter), publication);
        // A newer one may have been published meanwhile.
        Ok(self.get(session).unwrap_or(Published { adapter, publication }))
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
