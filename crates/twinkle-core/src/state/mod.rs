//! What survives a restart: sessions, runs, checkpoints and the journal of operations, in `SQLite`.
//!
//! One task owns the only writing connection and commits in groups: it takes every write that is
//! waiting, makes one transaction of them, and answers all of them once `SQLite` has synced its log
//! (`synchronous=FULL`). So a write that was answered is on the disk, and many concurrent writers
//! share one sync. Reads go through a few read-only connections, which WAL mode lets run beside it.
//!
//! An object of another tenant is answered exactly like one that does not exist.

mod api_keys;
mod checkpoints;
mod codec;
mod failure;
mod journal;
mod open;
mod outcomes;
mod retention;
mod runs;
mod sampling_sessions;
mod sessions;
mod snapshots;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use sqlx::SqlitePool;

pub use api_keys::ApiKeyRecord;
pub use journal::{Appended, Existing, JournaledOperation, NewOperation, RunOrder, Status};
pub use outcomes::{Finished, OperationState};
pub use retention::{Retention, Swept};
pub use runs::NewRun;
pub use snapshots::SnapshotRecord;

pub(crate) use checkpoints::no_checkpoint;
pub(crate) use codec::{from_blob, to_blob};
pub(crate) use runs::{closed_run, no_run};
use writer::WriterHandle;

/// A cheap handle on the node's durable state.
#[derive(Clone, Debug)]
pub struct StateStore {
    writer: WriterHandle,
    readers: SqlitePool,
    /// Set for a store that lives in a folder of its own and goes with its last handle.
    _temporary: Option<Arc<tempfile::TempDir>>,
}
