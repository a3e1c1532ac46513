//! The vocabulary every crate of the node shares.
//!
//! Read in this order: [`ids`] name things, [`error`] says what can go wrong,
//! [`call`] is what a protocol front asks and what it is answered, [`component`]
//! is who answers. A node adds [`config`] (the YAML), [`middleware`] (the layers
//! around a component), [`state`] (what survives a restart), [`futures`] (answers
//! that are not there yet) and [`checkpoint`] (files that outlive a run).
//!
//! Nothing here knows a tensor library or a route.
#![forbid(unsafe_code)]

mod byte_size;
pub mod call;
pub mod data;
#[doc(hidden)]
pub mod docs;
pub mod error;
pub mod ids;

#[cfg(feature = "node")]
pub mod checkpoint;
#[cfg(feature = "node")]
pub mod component;
#[cfg(feature = "node")]
pub mod config;
#[cfg(feature = "node")]
pub mod engine;
#[cfg(feature = "node")]
pub mod futures;
#[cfg(feature = "node")]
pub mod middleware;
#[cfg(feature = "node")]
pub mod state;
#[cfg(feature = "node")]
pub mod telemetry;
#[cfg(feature = "wire")]
pub mod wire;

pub use byte_size::ByteSize;
pub use error::{Error, ErrorCode, Result};
