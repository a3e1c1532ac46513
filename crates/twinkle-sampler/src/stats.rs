//! What an engine tells of itself while it works.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What the engine holds right now, for metrics and tests; written after every step.
#[derive(Debug, Default)]
pub struct EngineStats {
    pub(crate) requests: AtomicUsize,
    pub(crate) waiting: AtomicUsize,
    pub(crate) cache_bytes: AtomicU64,
    pub(crate) generated: AtomicU64,
}

impl EngineStats {
    /// Requests that wait or run.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }

    /// Samples without a place in the batch.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Memory of all KV caches, in bytes.
    #[must_use]
    pub fn cache_bytes(&self) -> u64 {
        self.cache_bytes.load(Ordering::Acquire)
    }

    /// Tokens drawn since the start.
    #[must_use]
    pub fn generated(&self) -> u64 {
        self.generated.load(Ordering::Acquire)
    }
}
