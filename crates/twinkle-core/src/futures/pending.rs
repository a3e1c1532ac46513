//! Operations whose results are not there yet, and who waits for them.

use std::collections::HashMap;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Shared;
use crate::component::BoxComponent;
use crate::ids::{RequestId, TenantId};

/// The unfinished operations of all tenants.
#[derive(Debug, Default)]
pub(super) struct PendingTable {
    pub(super) by_request: HashMap<RequestId, Pending>,
    per_tenant: HashMap<TenantId, usize>,
}

/// One unfinished operation.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) tenant: TenantId,
    pub(super) result: watch::Sender<Option<Shared>>,
    /// The task that works on it, if it has one of its own.
    pub(super) task: Option<AbortHandle>,
    /// The component that works on it, if its status can tell why it waits.
    pub(super) worker: Option<BoxComponent>,
}

impl PendingTable {
    /// How many of the tenant's operations are unfinished.
    pub(super) fn of_tenant(&self, tenant: &TenantId) -> usize {
        self.per_tenant.get(tenant).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, request: &RequestId, tenant: &TenantId) {
        if self.by_request.contains_key(request) {
            return;
        }
        let (result, _) = watch::channel(None);
        let pending = Pending { tenant: tenant.clone(), result, task: None, worker: None };
        self.by_request.insert(request.clone(), pending);
        *self.per_tenant.entry(tenant.clone()).or_default() += 1;
    }

    pub(super) fn remove(&mut self, request: &RequestId) -> Option<Pending> {
        let entry = self.by_request.remove(request)?;
        if let Some(count) = self.per_tenant.get_mut(&entry.tenant) {
            *count -= 1;
            if *count == 0 {
                self.per_tenant.remove(&entry.tenant);
            }
        }
        Some(entry)
    }
}
