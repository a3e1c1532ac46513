//! `DataLoader`: rows in batches, again and again, from where a training run left off.
//!
//! As the original has it: a batch is a list of rows, a last batch that is smaller than `min_batch_size` (the batch size
//! unless told otherwise) is left out, rows that cannot be had are replaced by others, and `consumed_train_samples` grows
//! by the batch size with every batch.

mod collate;
mod order;

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::value::RawValue;
use tracing::warn;
use twinkle_core::error::{Error, Result};

use crate::data::{Row, Rows};
use crate::dataset::{Dataset, Indexed, Streamed};
use crate::objects::Arguments;

pub use collate::InputProcessor;

/// The largest batch.
const LARGEST_BATCH: i64 = 1 << 20;
/// The seed of orders where none is given; the original's.
const STANDARD_SEED: u32 = 42;

/// Settings of torch's loader that change nothing here: rows are made when they are asked for, by this server's threads.
const OF_TORCH: &[&str] = &[
    "num_workers",
    "pin_memory",
    "pin_memory_device",
    "prefetch_factor",
    "persistent_workers",
    "timeout",
    "multiprocessing_context",
    "in_order",
    "device_mesh",
    "remote_group",
];

/// How a loader makes batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Rows of a batch.
    pub batch_size: usize,
    /// A last batch with fewer rows is left out.
    pub min_batch_size: usize,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
    /// Whether every pass has an order of its own.
    pub shuffle: bool,
    /// What orders are made from: pass `n`, from 0, takes `numpy.random.RandomState(seed + n).permutation`.
    pub seed: u32,
    /// Rows in a row that may fail before it is an error.
    pub max_retries: usize,
}

impl Settings {
    /// Reads them from the arguments of a request. `seed` is the one of `TWINKLE_SEED`.
    pub fn read(given: &mut Arguments, seed: Option<u32>) -> Result<Self> {
        let batch_size = given.integer("batch_size", 1..=LARGEST_BATCH)?;
        let batch_size =
            batch_size.ok_or_else(|| Error::invalid("`DataLoader` needs the argument `batch_size`"))? as usize;
        let seed = given.integer("seed", 0..=i64::from(u32::MAX))?.map(|seed| seed as u32).or(seed);
        let settings = Self {
            batch_size,
            min_batch_size: given
                .integer("min_batch_size", 0..=LARGEST_BATCH)?
                .map_or(batch_size, |least| least as usize),
            drop_last: given.flag("drop_last")?.unwrap_or(false),
            shuffle: given.flag("shuffle")?.unwrap_or(false),
            seed: seed.unwrap_or(STANDARD_SEED),
            max_retries: given.integer("max_retries", 1..=10_000)?.unwrap_or(20) as usize,
        };
        given.without_effect(OF_TORCH);
        Ok(settings)
    }

    /// Whether a last batch of so many rows is given.
    fn gives(&self, rows: usize) -> bool {
        rows > 0 && (rows == self.batch_size || (!self.drop_last && rows >= self.min_batch_size))
    }

    /// The batches that a pass over so many rows gives.
    fn batches(&self, rows: usize) -> usize {
        rows / self.batch_size + usize::from(self.gives(rows % self.batch_size))
    }
}

/// Makes batches of a data set, which is lent to it for every call.
#[derive(Debug)]
pub struct DataLoader {
    settings: Settings,
    processor: Option<InputProcessor>,
    /// Passes that were begun.
    passes: u32,
    consumed: u64,
    /// Samples that the next passes leave out.
    skip: u64,
    pass: Option<Pass>,
}

/// What is left of a pass.
enum Pass {
    Indexed(Indexes),
    Streamed { rows: Rows, failed: usize },
    Over,
}

/// The numbers of the rows that are left.
#[derive(Debug)]
struct Indexes {
    left: VecDeque<usize>,
    /// Rows that could not be had and have not been replaced.
    lacking: usize,
    /// What rows are replaced from; made when the first is needed.
    replacements: Option<VecDeque<usize>>,
    count: usize,
    failed: usize,
}

impl DataLoader {
    /// A loader with these settings.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self { settings, processor: None, passes: 0, consumed: 0, skip: 0, pass: None }
    }

    /// Makes tensors of batches from the next one on.
    pub fn set_processor(&mut self, processor: InputProcessor) {
        self.processor = Some(processor);
    }

    /// The number of batches, as torch counts them: with the last one, also where it is left out for being small.
    pub fn len(&self, dataset: &Dataset) -> Result<usize> {
        let Dataset::Indexed(dataset) = dataset else {
            return Err(Error::invalid("a loader of a stream has no length").hint("count batches as they come"));
        };
        let (rows, size) = (dataset.len()?, self.settings.batch_size);
        Ok(if self.settings.drop_last { rows / size } else { rows.div_ceil(size) })
    }

    /// The samples that were given, over all passes: what a later run passes to [`DataLoader::resume`].
    #[must_use]
    pub const fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Leaves out samples that an earlier run had: passes that it had wholly are empty, and the next begins behind what
    /// it had of it, in the same order.
    pub fn resume(&mut self, consumed: u64) {
        (self.skip, self.consumed) = (consumed, consumed);
    }

    /// Begins a pass. Blocking.
    pub fn begin(&mut self, dataset: &Dataset) -> Result<()> {
        let pass = self.passes;
        match dataset {
            Dataset::Indexed(dataset) => {
                let count = dataset.len()?;
                let order = if self.settings.shuffle {
                    order::permutation(self.settings.seed.wrapping_add(pass), count)
                } else {
                    (0..count).collect()
                };
                let whole = (self.settings.batches(count) * self.settings.batch_size) as u64;
                let skipped = self.skip.min(whole);
                self.skip -= skipped;
                let mut left = VecDeque::from(order);
                left.drain(..count.min(skipped as usize));
                self.pass = Some(Pass::Indexed(Indexes { left, lacking: 0, replacements: None, count, failed: 0 }));
            }
            Dataset::Streamed(dataset) => {
                if self.settings.shuffle {
                    return Err(
                        Error::invalid("a stream cannot be shuffled").hint("use `Dataset`, or leave `shuffle` out")
                    );
                }
                let mut rows = dataset.rows()?;
                let mut passed = 0_u64;
                while passed < self.skip && rows.by_ref().find_map(Result::ok).is_some() {
                    passed += 1;
                }
                let whole = (self.settings.batches(passed as usize) * self.settings.batch_size) as u64;
                let is_over = passed < self.skip;
                self.skip = if is_over { self.skip.saturating_sub(whole.max(1)) } else { 0 };
                self.pass = Some(if is_over { Pass::Over } else { Pass::Streamed { rows, failed: 0 } });
            }
        }
        self.passes = self.passes.wrapping_add(1);
        Ok(())
    }

    /// The next batch as JSON; `None` at the end of the pass, again and again. Blocking.
    pub fn next(&mut self, dataset: &mut Dataset) -> Result<Option<Box<RawValue>>> {
        let size = self.settings.batch_size;
        let mut rows: Vec<Arc<str>> = Vec::new();
        let retries = self.settings.max_retries;
        let pass = self.pass.as_mut();
        let pass = pass.ok_or_else(|| Error::invalid("nothing is being loaded").hint("call `__iter__` first"))?;
        while rows.len() < size {
            let row = match (&mut *pass, &mut *dataset) {
                (Pass::Indexed(indexes), Dataset::Indexed(dataset)) => {
                    indexes.next(dataset, self.settings.seed, retries)?
                }
                (Pass::Streamed { rows, failed }, Dataset::Streamed(dataset)) => {
                    next_of(rows, failed, dataset, retries)?
                }
                _ => None,
            };
            match row {
                Some(row) => rows.push(row),
                None => break,
            }
        }
        if !self.settings.gives(rows.len()) {
            self.pass = Some(Pass::Over);
            return Ok(None);
        }
        self.consumed += size as u64;
        let batch = match &self.processor {
            Some(processor) => {
                let rows = rows.iter().map(|row| Row::parse(row)).collect::<Result<Vec<_>>>()?;
                crate::data::raw(&processor.collate(&rows)?)?
            }
            None => RawValue::from_string(format!("[{}]", rows.join(",")))
                .map_err(|error| Error::internal(format!("a batch cannot be written: {error}")))?,
        };
        Ok(Some(batch))
    }
}

impl Indexes {
    /// The next row that can be had.
    fn next(&mut self, dataset: &mut Indexed, seed: u32, retries: usize) -> Result<Option<Arc<str>>> {
        loop {
            let index = match self.left.pop_front() {
                Some(index) => index,
                None if self.lacking == 0 => return Ok(None),
                None => {
                    let count = self.count;
                    let others = self.replacements.get_or_insert_with(|| order::permutation(seed, count).into());
                    let Some(index) = others.pop_front() else { return Ok(None) };
                    self.lacking -= 1;
                    index
                }
            };
            let row = dataset.row(index);
            match usable(row) {
                Ok(row) => {
                    self.failed = 0;
                    return Ok(Some(row));
                }
                Err(error) => {
                    warn!(row = index, %error, "a row is replaced by another");
                    self.lacking += 1;
                    self.failed += 1;
                    if self.failed >= retries.min(self.count.max(1)) {
                        return Err(self.given_up(index, &error));
                    }
                }
            }
        }
    }

    fn given_up(&self, index: usize, error: &Error) -> Error {
        let text = format!("{} rows one after another cannot be had; row {index}: {}", self.failed, error.message);
        Error { message: text, ..error.clone() }
    }
}

/// A row that holds something.
fn usable(row: Result<Option<Arc<str>>>) -> Result<Arc<str>> {
    match row? {
        Some(row) if &*row != "{}" => Ok(row),
        _ => Err(Error::invalid("it is empty")),
    }
}

/// The next row of a stream that can be had.
fn next_of(rows: &mut Rows, failed: &mut usize, dataset: &mut Streamed, retries: usize) -> Result<Option<Arc<str>>> {
    loop {
        match rows.next() {
            None => return Ok(None),
            Some(Ok(row)) => {
                *failed = 0;
                dataset.taken(&row)?;
                return Ok(Some(row.to_text()?.into()));
            }
            Some(Err(error)) => {
                warn!(%error, "a row is passed over");
                *failed += 1;
                if *failed >= retries {
                    let text = format!("{failed} rows one after another cannot be had: {}", error.message);
                    return Err(Error { message: text, ..error });
                }
            }
        }
    }
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Indexed(indexes) => indexes.fmt(formatter),
            Self::Streamed { failed, .. } => {
                formatter.debug_struct("Streamed").field("failed", failed).finish_non_exhaustive()
            }
            Self::Over => formatter.write_str("Over"),
        }
    }
}

#[cfg(test)]
mod tests;
