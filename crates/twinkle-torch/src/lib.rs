//! The one unsafe door to libtorch: what tch lacks, behind safe types.
//!
//! * [`gradients`]: backward with output gradients; [`custom_function`]: a node of the autograd graph made of Rust closures;
//! * [`MappedFile`]: tensors that borrow a file's pages instead of copying them;
//! * [`Frozen`]: a tensor that threads may share because nobody changes it;
//! * [`memory`]: how the allocator treats the blocks of tensors;
//! * [`slices`]: a tensor's numbers without a copy;
//! * [`threads`]: how many threads an operation may use;
//! * [`cuda`]: libtorch's CUDA half, loaded only when a CUDA device is asked for.
//!
//! Every C++ exception ends at the shim and becomes an [`Error`]; every Rust closure that C++ calls is run under
//! `catch_unwind`.

mod autograd;
pub mod cuda;
mod error;
mod ffi;
mod frozen;
mod mapped;
pub mod memory;
pub mod slices;
pub mod threads;

pub use autograd::{Forward, custom_function, gradients};
pub use error::{Error, Result};
pub use frozen::Frozen;
pub use mapped::MappedFile;
