//! The directory of a tenant's training runs.

use twinkle_core::call::ServeOutcome;
use twinkle_core::error::Result;
use twinkle_core::ids::TenantId;
use twinkle_core::state::StateStore;

/// Most runs in one page; a larger wish gets this many.
const LARGEST_PAGE: u32 = 1_000;

/// One page of the tenant's runs, of one project or of all, newest first.
pub(crate) async fn list(
    store: &StateStore,
    tenant: &TenantId,
    project: Option<&str>,
    limit: u32,
    offset: u32,
) -> Result<ServeOutcome> {
    let limit = limit.min(LARGEST_PAGE);
    let (runs, total) = match project {
        Some(project) => store.list_runs_of_project(tenant, project, limit, offset).await?,
        None => store.list_runs(tenant, limit, offset).await?,
    };
    Ok(ServeOutcome::Runs { runs, total })
}
