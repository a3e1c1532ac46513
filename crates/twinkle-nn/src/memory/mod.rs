//! Memory is planned, not hoped for: what a model needs, by arithmetic over its dimensions, and what there is.
//!
//! [`cost`] is the one place that knows what weights, runs, passes and caches take; [`compute`] the same of arithmetic.
//! A pass asks [`CostModel::recompute_within`] before it allocates anything: how many layers it may keep for the
//! backward, and how many it computes twice. Recomputing a layer gives the same bits as keeping it.

pub mod compute;
pub mod cost;
pub mod machine;

pub use compute::FloatingPointOperations;
pub use cost::{CostModel, PassShape, Recompute};
