//! How much a graph may cost. What counts are operations and values, which every replay counts alike; the clock is only
//! the last resort.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use super::value::Fault;

/// Nodes of a graph.
pub const MAX_NODES: usize = 1024;
/// Bytes of a graph, as the store keeps it: it goes into the journal with every operation that uses it.
pub const MAX_GRAPH_BYTES: usize = 128 << 10;
/// Items of one list, numbers of one shape, characters of one text.
pub(super) const MAX_ITEMS: usize = 1024;
/// Lists in lists.
pub(super) const MAX_DEPTH: usize = 8;
/// Values that all results of one datum's graph may have together: at 8 bytes 512 MiB, and as much again on the way back.
pub const MAX_VALUES: u64 = 1 << 26;
/// Values that all operations of one request may read and write.
pub const MAX_WORK: u64 = 1 << 32;
/// Counted for an operation besides its values: what it costs to start one.
const OPERATION_WORK: u64 = 2048;
/// How long the graphs of one request may take. [`MAX_WORK`] takes a small part of it, so that no replay comes near.
pub const MAX_TIME: Duration = Duration::from_mins(5);

/// What is left for one request.
#[derive(Debug)]
pub(super) struct Budget {
    values: Cell<u64>,
    work: Cell<u64>,
    deadline: Instant,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { values: Cell::new(MAX_VALUES), work: Cell::new(MAX_WORK), deadline: Instant::now() + MAX_TIME }
    }

    /// Begins the next datum, whose results start from nothing.
    pub(super) fn next_datum(&self) {
        self.values.set(MAX_VALUES);
    }

    /// Accounts for an operation that reads so many values; what it writes is [`Budget::reserve`]d.
    pub(super) fn begin(&self, read: u64) -> Result<(), Fault> {
        if Instant::now() > self.deadline {
            return Err(Fault::new(format!("the loss took longer than {} s", MAX_TIME.as_secs())));
        }
        self.spend(read.saturating_add(OPERATION_WORK))
    }

    /// Accounts for values that are about to be written; `None` is more than can be counted.
    pub(super) fn reserve(&self, values: Option<u64>) -> Result<(), Fault> {
        let values = values.unwrap_or(u64::MAX);
        let left = self.values.get().checked_sub(values).ok_or_else(|| {
            Fault::new(format!("the values computed for one datum would be more than {MAX_VALUES} together"))
        })?;
        self.values.set(left);
        self.spend(values)
    }

    /// Accounts for work beyond reading and writing every value once.
    pub(super) fn spend(&self, work: u64) -> Result<(), Fault> {
        let left = self.work.get().checked_sub(work).ok_or_else(|| {
            Fault::new(format!("the loss needs more work than one request may take ({MAX_WORK} values)"))
        })?;
        self.work.set(left);
        Ok(())
    }
}
