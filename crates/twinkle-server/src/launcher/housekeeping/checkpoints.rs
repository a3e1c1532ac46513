//! Checkpoints whose lifetime is over, and what an interrupted save left behind.

use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, warn};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::state::StateStore;

use super::{is_over, ticks};

/// The time between two looks for expired checkpoints, whose lifetime users choose by the second.
const EVERY: Duration = Duration::from_mins(1);
/// Checkpoints deleted at once: each is a folder to remove.
const BATCH: u32 = 100;

/// Removes what a process that died in the middle of a save left behind.
pub(crate) async fn remove_leftovers(checkpoints: &CheckpointStore) -> Result<()> {
    let checkpoints = checkpoints.clone();
    let removal = tokio::task::spawn_blocking(move || checkpoints.remove_leftovers()).await;
    let removed = removal.map_err(|error| Error::internal(format!("tidying the checkpoints failed: {error}")))??;
    if removed > 0 {
        warn!(removed, "unfinished checkpoints of an earlier run of this server were removed");
    }
    Ok(())
}

/// Deletes expired checkpoints again and again, until the node stops.
pub(super) async fn delete_periodically(store: StateStore, checkpoints: CheckpointStore) {
    let mut ticks = ticks(EVERY);
    loop {
        ticks.tick().await;
        let deleted = delete_expired(&store, &checkpoints, Timestamp::now()).await;
        if is_over(deleted, "expired checkpoints could not be deleted") {
            return;
        }
    }
}

/// Deletes a batch of checkpoints whose lifetime is over.
async fn delete_expired(store: &StateStore, checkpoints: &CheckpointStore, now: Timestamp) -> Result<()> {
    let deleted = delete_batch(store, checkpoints, now).await?;
    if deleted > 0 {
        debug!(deleted, "expired checkpoints deleted");
    }
    Ok(())
}

/// Deletes files first: what an interruption leaves is found again by its record.
async fn delete_batch(store: &StateStore, checkpoints: &CheckpointStore, now: Timestamp) -> Result<usize> {
    let expired = store.expired_checkpoints(now, BATCH).await?;
    for record in &expired {
        let (files, tenant, path) = (checkpoints.clone(), record.tenant.clone(), record.path.clone());
        let deleted = tokio::task::spawn_blocking(move || files.delete(&tenant, &path)).await;
        match deleted.map_err(|error| Error::internal(format!("deleting `{}` failed: {error}", record.path)))? {
            Ok(()) => {}
            Err(error) if error.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error),
        }
        store.delete_checkpoint(&record.tenant, &record.path).await?;
    }
    Ok(expired.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use twinkle_core::call::{CheckpointRecord, LoraSpec, Position};
    use twinkle_core::checkpoint::CheckpointMeta;
    use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};

    use super::*;

    fn record(name: &str, expires_at: Option<Timestamp>) -> CheckpointRecord {
        CheckpointRecord {
            path: CheckpointPath::new(RunId::new("s:train:0"), CheckpointKind::Weights, name).unwrap(),
            tenant: TenantId::new("alice"),
            base_model: "tiny".to_owned(),
            lora: LoraSpec { rank: 4, train_unembed: false, ..LoraSpec::default() },
            size_bytes: 4,
            user_metadata: BTreeMap::new(),
            created_at: Timestamp::UNIX_EPOCH,
            expires_at,
            public: false,
        }
    }

    /// Saves a checkpoint with a file.
    async fn save(store: &StateStore, checkpoints: &CheckpointStore, record: &CheckpointRecord) {
        let draft = checkpoints.draft(&record.tenant, &record.path).unwrap();
        std::fs::write(draft.directory().join("a"), "data").unwrap();
        let meta = CheckpointMeta {
            base_model: record.base_model.clone(),
            lora: record.lora.clone(),
            user_metadata: BTreeMap::new(),
            created_at: record.created_at,
            position: Position::default(),
            optimizer_steps: None,
        };
        draft.commit(&meta, false).unwrap();
        store.insert_checkpoint(record).await.unwrap();
    }

    #[tokio::test]
    async fn a_lifetime_that_was_cut_short_ends_at_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let store = StateStore::open_in_memory().await.unwrap();
        let checkpoints = CheckpointStore::new(folder.path().to_path_buf());
        let record = record("kept", None);
        save(&store, &checkpoints, &record).await;
        let looking = tokio::spawn(delete_periodically(store.clone(), checkpoints.clone()));
        store.keep_checkpoint_until(&record.tenant, &record.path, Some(Timestamp::UNIX_EPOCH)).await.unwrap();
        tokio::time::pause();
        // The store works on a thread of its own, which no clock knows of.
        while checkpoints.open(&record.tenant, &record.path).is_ok() {
            tokio::time::advance(EVERY).await;
            tokio::task::yield_now().await;
        }
        looking.abort();
    }

    #[tokio::test]
    async fn an_expired_checkpoint_goes_with_its_files_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let store = StateStore::open_in_memory().await.unwrap();
        let checkpoints = CheckpointStore::new(folder.path().to_path_buf());
        let (old, lasting) = (record("old", Some(Timestamp::UNIX_EPOCH)), record("lasting", None));
        for record in [&old, &lasting] {
            save(&store, &checkpoints, record).await;
        }

        assert_eq!(delete_batch(&store, &checkpoints, Timestamp::now()).await.unwrap(), 1);
        assert_eq!(checkpoints.open(&old.tenant, &old.path).unwrap_err().code, ErrorCode::NotFound);
        checkpoints.open(&lasting.tenant, &lasting.path).unwrap();
        assert_eq!(delete_batch(&store, &checkpoints, Timestamp::now()).await.unwrap(), 0);
    }
}
