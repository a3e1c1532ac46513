//! Memory is planned, not hoped for: what a model needs, by arithmetic over its dimensions, and what there is.
//!
//! [`CostModel`] is the one place that knows what weights and runs ([`cost`]), passes ([`passes`]) and caches ([`caches`])
//! take; [`compute`] the same of arithmetic, and [`rate`] how fast a processor is at it. A pass asks
//! [`CostModel::recompute_within`] before it allocates anything: how many layers it may keep for the backward, and how many
//! it computes twice. Recomputing a layer gives the same bits as keeping it. [`growth`] holds all of it against reality.

mod caches;
pub mod compute;
pub mod cost;
pub mod growth;
pub mod machine;
pub mod passes;
pub mod rate;

pub use compute::FloatingPointOperations;
pub use cost::CostModel;
pub use growth::Growth;
pub use passes::{PassShape, Recompute};
pub use rate::Rate;
