//! Data sets: `Dataset`, `LazyDataset`, `PackingDataset`, `IterableDataset` and `IterablePackingDataset`.
//!
//! Everything that is done to rows is an [`Operation`], which takes one row and gives any number. [`Indexed`] has its
//! rows in memory and does operations at once, or, when it is lazy, each time a row is taken. [`Streamed`] reads its
//! files from the beginning and does operations on the way.

mod indexed;
mod mix;
mod operation;
mod packing;
mod parallel;
mod streamed;

pub use indexed::{Indexed, Kind};
pub use mix::Mix;
pub use operation::Operation;
pub use streamed::{Packs, Streamed};

use twinkle_core::error::{Error, Result};

/// A data set of either kind.
#[derive(Debug)]
pub enum Dataset {
    /// Rows in memory, by number.
    Indexed(Box<Indexed>),
    /// Rows out of files, one after another.
    Streamed(Box<Streamed>),
}

/// The part of a data set that a key names; the only one when there is no key.
fn place_of(keys: &[&str], key: Option<&str>) -> Result<usize> {
    match (key, keys.len()) {
        (_, 0) => Err(Error::invalid("the data set is empty").hint("add one with `add_dataset`")),
        (None, 1) => Ok(0),
        (None, several) => Err(Error::invalid(format!("the data set has {several} parts"))
            .hint("say which one with `dataset_meta`, or mix them with `mix_dataset` first")),
        (Some(key), _) => keys.iter().position(|known| *known == key).ok_or_else(|| {
            let id = key.split('\n').next().unwrap_or_default();
            Error::invalid(format!("the data set has no part `{id}` with this subset and split"))
                .hint("give the `dataset_meta` that it was made or added with")
        }),
    }
}

fn unmixed(parts: usize) -> Error {
    Error::invalid(format!("the data set has {parts} parts that are not mixed")).hint("call `mix_dataset` first")
}
