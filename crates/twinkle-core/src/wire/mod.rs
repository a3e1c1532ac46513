//! Bytes on the wire, shared by the server's protocol fronts and the native client.
//!
//! Nothing behind a front knows these types: they are turned into the vocabulary of [`crate::call`]
//! and back at the edge. The one exception are the conversations and tokenized examples of [`twinkle`], which the
//! processor turns into each other.

pub mod native;
pub mod tinker;
pub mod twinkle;
