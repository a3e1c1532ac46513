//! Low-rank adapters (Hu et al. 2021): `y = W x + b + (α / r) · B (A x)`.

mod adapter;
mod gradients;
mod initialise;
mod layout;
pub mod peft;

pub use adapter::Adapter;
pub(crate) use adapter::AdapterPair;
pub use gradients::Gradients;
pub use layout::{AdapterLayout, LoraModule, Projection, Site};
