//! The directory of a tenant's training runs.

use twinkle_core::call::ServeOutcome;
use twinkle_core::error::Result;
use twinkle_core::ids::TenantId;
use twinkle_core::state::StateStore;

/// Most runs in one page; a larger wish gets this many.
const LARGEST_PAGE: u32 = 1_000;

/// One page of the tenant's runs, newest first.
pub(crate) async fn list(store: &StateStore, tenant: &TenantId, limit: u32, offset: u32) -> Result<ServeOutcome> {
    let (runs, total) = store.list_runs(tenant, limit.min(LARGEST_PAGE), offset).await?;
    Ok(ServeOutcome::Runs { runs, total })
}
