//! The kinds of store that the contract holds for.

use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use twinkle_core::state::{StateLocation, StateStore};

use crate::databases::Database;

/// A kind of store, and as many empty ones of it as a test needs.
pub(crate) struct Lab {
    kind: Kind,
    given: AtomicUsize,
}

enum Kind {
    Memory,
    File(TempDir),
    Postgres(Database),
    Redis(Database),
}

impl Lab {
    pub(crate) fn memory() -> Self {
        Self::new(Kind::Memory)
    }

    pub(crate) fn file() -> Self {
        Self::new(Kind::File(tempfile::tempdir().unwrap()))
    }

    /// `None` where `PostgreSQL` is not installed.
    pub(crate) fn postgres() -> Option<Self> {
        Database::postgres().map(Kind::Postgres).map(Self::new)
    }

    /// `None` where Redis is not installed.
    pub(crate) fn redis() -> Option<Self> {
        Database::redis().map(Kind::Redis).map(Self::new)
    }

    /// A place where no store has been yet.
    pub(crate) fn location(&self) -> StateLocation {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        match &self.kind {
            Kind::Memory => StateLocation::Memory,
            Kind::File(folder) => StateLocation::File(folder.path().join(format!("below/{number}/state.sqlite"))),
            Kind::Postgres(server) => {
                StateLocation::Postgres { url: server.url(), key_prefix: format!("test-{number}") }
            }
            Kind::Redis(server) => StateLocation::Redis { url: server.url(), key_prefix: format!("test-{number}:") },
        }
    }

    /// An empty store.
    pub(crate) async fn store(&self) -> StateStore {
        StateStore::open(self.location()).await.unwrap()
    }

    /// Whether a store outlives its last handle.
    pub(crate) fn is_lasting(&self) -> bool {
        !matches!(self.kind, Kind::Memory)
    }

    /// The server behind it.
    pub(crate) fn database(&mut self) -> Option<&mut Database> {
        match &mut self.kind {
            Kind::Postgres(server) | Kind::Redis(server) => Some(server),
            Kind::Memory | Kind::File(_) => None,
        }
    }

    fn new(kind: Kind) -> Self {
        Self { kind, given: AtomicUsize::new(0) }
    }
}
