//! Getting bytes from a hub: requests that are tried again, files that are resumed and checked.

mod attempts;
mod client;
mod failure;
mod lock;
mod progress;
mod transfer;
mod writer;

pub use attempts::Patience;
pub(crate) use client::{Client, etag, header};
pub(crate) use failure::{Failure, file_error, with_causes};
pub(crate) use lock::lock;
pub(crate) use progress::{FileProgress, Progress};
pub(crate) use transfer::{Expected, Transfer};
pub(crate) use writer::sha256;
