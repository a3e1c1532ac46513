//! The directory of a tenant's checkpoints.

use jiff::{SignedDuration, Timestamp};
use twinkle_core::call::ServeOutcome;
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};
use twinkle_core::state::StateStore;

/// Most checkpoints in one page; a larger wish gets this many.
const LARGEST_PAGE: u32 = 1_000;

/// One page of the checkpoints of one run, which must exist, or of all runs.
pub(crate) async fn list(
    store: &StateStore,
    tenant: &TenantId,
    run: Option<&RunId>,
    limit: u32,
    offset: u32,
) -> Result<ServeOutcome> {
    if let Some(run) = run {
        store.run(tenant, run).await?;
    }
    let (checkpoints, total) = store.list_checkpoints(tenant, run, limit.min(LARGEST_PAGE), offset).await?;
    Ok(ServeOutcome::Checkpoints { checkpoints, total })
}

/// The newest checkpoint of each kind of one run.
pub(crate) async fn latest(store: &StateStore, tenant: &TenantId, run: &RunId) -> Result<ServeOutcome> {
    let mut checkpoints = Vec::new();
    for kind in [CheckpointKind::Weights, CheckpointKind::SamplerWeights] {
        checkpoints.extend(store.latest_checkpoint(tenant, run, kind).await?);
    }
    let total = checkpoints.len() as u64;
    Ok(ServeOutcome::Checkpoints { checkpoints, total })
}

/// Sets when a checkpoint is removed: so many seconds from now, or never.
pub(crate) async fn keep(
    store: &StateStore,
    tenant: &TenantId,
    path: &CheckpointPath,
    ttl_seconds: Option<u64>,
) -> Result<ServeOutcome> {
    let expires_at = ttl_seconds.map(|seconds| expiry(Timestamp::now(), seconds)).transpose()?;
    store.keep_checkpoint_until(tenant, path, expires_at).await?;
    Ok(ServeOutcome::Done)
}

/// The end of a lifetime that begins at `from`.
pub(super) fn expiry(from: Timestamp, seconds: u64) -> Result<Timestamp> {
    let lifetime = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    from.checked_add(lifetime)
        .map_err(|_| Error::invalid(format!("a lifetime of {seconds} seconds is beyond the calendar")))
}

/// Deletes a checkpoint's files, then its record: interrupted in between, the delete can be repeated.
pub(crate) async fn delete(
    store: &StateStore,
    files: &CheckpointStore,
    tenant: TenantId,
    path: CheckpointPath,
) -> Result<ServeOutcome> {
    store.checkpoint(&tenant, &path).await?;
    let files = files.clone();
    let (owner, removed) = (tenant.clone(), path.clone());
    let deleted = tokio::task::spawn_blocking(move || files.delete(&owner, &removed)).await;
    match deleted.map_err(|error| Error::internal(format!("deleting `{path}` failed: {error}")))? {
        Ok(()) => {}
        Err(error) if error.code == ErrorCode::NotFound => {}
        Err(error) => return Err(error),
    }
    store.delete_checkpoint(&tenant, &path).await?;
    Ok(ServeOutcome::Done)
}
