//! Where a model's files come from: folders, both hubs and their caches, GGUF files.
//!
//! [`ModelLibrary::folder`] turns a `model_id` into a folder that `twinkle-nn` can load. Both hubs' caches are shared
//! with their own tools: what those have downloaded is used, and what is downloaded here they find. [`Uploader`] is the way
//! back: from a folder to a repository of a hub.
#![forbid(unsafe_code)]

mod adapters;
mod data_sets;
mod download;
mod environment;
mod folder;
pub mod gguf;
mod hubs;
mod library;
mod upload;

pub use adapters::{AdapterFiles, AdapterLibrary};
pub use data_sets::{DataSet, DataSetLibrary};
pub use download::Patience;
pub use environment::Environment;
pub use library::{LibraryOptions, ModelLibrary};
pub use upload::{Progress, Upload, Uploader};
