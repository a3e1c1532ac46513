//! Adapters that runs have published for sampling without touching a disk.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use twinkle_core::ids::SamplingSessionId;

use crate::lora::Adapter;

/// Live adapters by sampling session: the trainer puts, the sampler gets. A cheap handle to one shared table.
///
/// A sampler that has fetched an adapter keeps it alive, so a removal or replacement never disturbs a running sequence.
#[derive(Clone, Debug, Default)]
pub struct PublishedAdapters {
    table: Arc<RwLock<HashMap<SamplingSessionId, Arc<Adapter>>>>,
}

impl PublishedAdapters {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes `adapter` under `session`, replacing what was there.
    pub fn put(&self, session: SamplingSessionId, adapter: Arc<Adapter>) {
        self.table.write().insert(session, adapter);
    }

    /// The adapter published under `session`.
    #[must_use]
    pub fn get(&self, session: &SamplingSessionId) -> Option<Arc<Adapter>> {
        self.table.read().get(session).map(Arc::clone)
    }

    /// Withdraws the adapter of `session`; returns it if there was one.
    pub fn remove(&self, session: &SamplingSessionId) -> Option<Arc<Adapter>> {
        self.table.write().remove(session)
    }

    /// How many adapters are published.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.read().len()
    }

    /// Whether no adapter is published.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.read().is_empty()
    }
}
