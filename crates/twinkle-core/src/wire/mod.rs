//! Bytes on the wire, shared by the server's protocol fronts and the native client.
//!
//! Nothing behind a front knows these types: they are turned into the vocabulary of [`crate::call`]
//! and back at the edge.

pub mod native;
pub mod tinker;
