//! Files that belong to nobody any more: live adapters of sessions that are over, snapshots of closed runs.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tracing::debug;
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{RunId, SamplingSessionId, SessionId};
use twinkle_core::state::StateStore;
use twinkle_nn::PublishedAdapters;

use super::endings::before;

/// Folders looked at at once.
const BATCH: usize = 256;
/// How long a session's live adapters can still be sampled from after it is over.
const ADAPTERS_KEPT: Duration = Duration::from_mins(30);

/// Goes round a list of names, a batch at a time.
#[derive(Debug, Default)]
struct Round {
    last: Option<String>,
}

impl Round {
    /// The next batch, in order; after the last one it begins again.
    fn next(&mut self, mut names: Vec<String>) -> Vec<String> {
        names.sort_unstable();
        let from = self.last.as_ref().map_or(0, |last| names.partition_point(|name| name <= last));
        let batch: Vec<String> = names.into_iter().skip(from).take(BATCH).collect();
        self.last = batch.last().filter(|_| batch.len() == BATCH).cloned();
        batch
    }
}

/// Adapters published for sampling without a checkpoint.
pub(super) struct LiveAdapters {
    store: StateStore,
    published: PublishedAdapters,
    round: Round,
}

impl LiveAdapters {
    pub(super) fn new(store: StateStore, published: PublishedAdapters) -> Self {
        Self { store, published, round: Round::default() }
    }

    pub(super) async fn look(&mut self, now: Timestamp) -> Result<()> {
        let published = self.published.clone();
        let saved = blocking(move || published.saved()).await?;
        let names = saved.iter().map(|session| session.as_str().to_owned()).collect();
        for name in self.round.next(names) {
            // `<session>:sample:<number>`; nothing else is ever published.
            let Some((session, _)) = name.split_once(":sample:") else { continue };
            if self.store.is_over(&SessionId::new(session), before(now, ADAPTERS_KEPT)).await? {
                let (published, id) = (self.published.clone(), SamplingSessionId::new(name.as_str()));
                blocking(move || published.remove(&id)).await?;
                debug!(sampling_session = name, "a live adapter of a session that is over was removed");
            }
        }
        Ok(())
    }
}

/// Snapshots of runs.
pub(super) struct Snapshots {
    store: StateStore,
    folder: PathBuf,
    round: Round,
}

impl Snapshots {
    pub(super) fn new(store: StateStore, folder: PathBuf) -> Self {
        Self { store, folder, round: Round::default() }
    }

    pub(super) async fn look(&mut self) -> Result<()> {
        let folder = self.folder.clone();
        let names = blocking(move || list(&folder)).await?;
        for name in self.round.next(names) {
            if !self.store.is_open(&RunId::new(name.as_str())).await? {
                let leftover = self.folder.join(&name);
                blocking(move || remove(&leftover)).await?;
                debug!(run = name, "the snapshot of a closed run was removed");
            }
        }
        Ok(())
    }
}

fn list(folder: &std::path::Path) -> Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::internal(format!("`{}` could not be listed: {error}", folder.display()))),
    }
}

fn remove(folder: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::internal(format!("`{}` could not be removed: {error}", folder.display())))
        }
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.map_err(|error| Error::internal(format!("housekeeping was interrupted: {error}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_turn_and_the_round_begins_again() {
        let names: Vec<String> = (0..BATCH + 3).map(|number| format!("{number:05}")).collect();
        let mut round = Round::default();
        assert_eq!(round.next(names.clone()), names[..BATCH]);
        assert_eq!(round.next(names.clone()), names[BATCH..]);
        assert_eq!(round.next(names.clone()), names[..BATCH]);
        assert_eq!(round.next(Vec::new()), Vec::<String>::new());
    }
}
