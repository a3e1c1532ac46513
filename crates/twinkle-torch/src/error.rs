//! What can go wrong at the door.

use std::path::PathBuf;

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure in libtorch or in what was handed to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch threw this.
    #[error("libtorch failed: {0}")]
    Libtorch(String),
    /// A file could not be mapped.
    #[error("cannot map `{}`: {source}", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tensor would reach outside its file or lie across its element size.
    #[error("bytes {start}..{end} are no place for a tensor in a file of {length} bytes: {reason}")]
    Place {
        /// The first byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// The file's length.
        length: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The arguments do not fit together.
    #[error("{0}")]
    Arguments(&'static str),
    /// A CUDA device was asked for and cannot be had.
    #[error("cannot use CUDA: {0}")]
    Cuda(String),
    /// A device's name is not understood.
    #[error("`{0}` is not a device; use `cpu`, `cuda` or `cuda:<number>`")]
    Device(String),
}
