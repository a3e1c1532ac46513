//! The objects that clients make on a server and call: data sets, loaders, preprocessors, rewards, advantages.
//!
//! [`Registry`] keeps them, by tenant and session. A call has two steps: [`calls`](self) reads its arguments, finds what
//! is to be read from elsewhere and answers a piece of [`Work`]; that is then done on a blocking thread.

mod arguments;
mod calls;
mod data_calls;
mod hands;
mod loader_calls;
mod plain_calls;
mod registry;

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::Mutex;
use twinkle_core::error::Result;

use crate::data::raw;
use crate::dataset::Dataset;
use crate::encode::Template;
use crate::loader::{DataLoader, InputProcessor};
use crate::preprocess::Preprocess;
use crate::reward::Reward;

pub use arguments::Arguments;
pub(crate) use arguments::decoded;
pub use calls::{call, create};
pub use hands::Hands;
pub use registry::{Limits, Registry};

/// Something a client made.
#[derive(Debug)]
pub enum Object {
    /// Of type `dataset`.
    Dataset(Dataset),
    /// Of type `dataloader`, with the data set it loads from.
    Loader(Box<DataLoader>, Shared),
    /// Of type `processor`.
    Processor(InputProcessor),
    /// Of type `preprocessor`.
    Preprocessor(Arc<dyn Preprocess>),
    /// Of type `reward`.
    Reward(Reward),
    /// Of type `advantage`.
    Advantage(crate::advantage::Advantage),
    /// Of type `template`.
    Template(Template),
}

/// An object that several calls wait for.
pub type Shared = Arc<Mutex<Object>>;

/// What a call answers.
#[derive(Clone, Debug)]
pub enum Answered {
    /// A value, as JSON.
    Value(Box<RawValue>),
    /// An iterator has no further element.
    Exhausted,
}

/// What is left of a call when its arguments are read: done on a blocking thread.
type Work = Box<dyn FnOnce(&mut Object) -> Result<Answered> + Send>;

impl Answered {
    /// A value.
    fn value(value: &impl Serialize) -> Result<Self> {
        raw(value).map(Self::Value)
    }

    /// Nothing to tell.
    fn nothing() -> Result<Self> {
        Self::value(&())
    }
}

#[cfg(test)]
mod tests;
