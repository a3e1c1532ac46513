//! Low-rank adapters (Hu et al. 2021): `y = W x + b + s · B (A x)`, with `s = α / r` or, for rsLoRA, `α / √r`.
//!
//! [`projection`] lists what can be adapted, [`targets`] says what of it an adapter asks for, [`layout`] where its
//! factors lie in one flat vector, which [`peft`] reads from and writes to files. [`merge`] adds an adapter to its model.

mod adapter;
mod gradients;
mod initialise;
mod layout;
pub mod merge;
pub mod peft;
mod projection;
mod targets;

pub use adapter::Adapter;
pub(crate) use adapter::AdapterPair;
pub use gradients::Gradients;
pub use layout::{AdapterLayout, LoraModule, Site};
pub use projection::Projection;
