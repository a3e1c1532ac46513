//! What survives a restart: sessions, runs, checkpoints and the journal of operations, in `SQLite`.
//!
//! One task owns the only writing connection and commits in groups: it takes every write that is
//! waiting, makes one transaction of them, and answers all of them once `SQLite` has synced its log
//! (`synchronous=FULL`). So a write that was answered is on the disk, and many concurrent writers
//! share one sync. Reads go through a few read-only connections, which WAL mode lets run beside it.
//!
//! An object of another tenant is answered exactly like one that does not exist.

mod adapters;
mod api_keys;
mod backend;
mod checkpoints;
mod clear;
mod codec;
mod connection;
mod copies;
mod counts;
mod custom_losses;
mod endings;
mod failure;
mod journal;
mod open;
mod outcomes;
mod postgres;
mod redis;
mod retention;
mod run_limits;
mod runs;
mod samples;
mod sampling_sessions;
mod session_parts;
mod session_search;
mod sessions;
mod snapshots;
mod sql;
mod sqlite;
#[cfg(test)]
mod tests;
mod uploads;
mod writer;

pub use api_keys::ApiKeyRecord;
pub use copies::NewCopy;
pub use counts::OpenRecords;
pub use custom_losses::no_custom_loss;
pub use endings::{DueRun, EndOfRuns, RunPage};
pub use journal::{Appended, Existing, JournaledOperation, NewOperation, RunOrder, Status};
pub use open::StateLocation;
pub use outcomes::{Finished, OperationState};
pub use retention::{Retention, Swept};
pub use run_limits::RunLimits;
pub use runs::NewRun;
pub use samples::AwaitedSample;
pub use snapshots::SnapshotRecord;
pub use uploads::UploadRecord;

pub(crate) use checkpoints::no_checkpoint;
pub(crate) use codec::{from_blob, to_blob};
use connection::Readers;
pub(crate) use endings::end_by;
pub(crate) use runs::{closed_run, no_run};
use writer::WriterHandle;

/// A cheap handle on the node's durable state.
#[derive(Clone, Debug)]
pub struct StateStore {
    writer: WriterHandle,
    readers: Readers,
}
