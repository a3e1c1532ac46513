//! Import path `sampler`: several requests at once, continuous batching, token sampling.
//!
//! Read in this order: [`params`] turns a request into one the engine can trust, [`scheduler`] decides what a step
//! computes (pure), [`runner`] is the model's side of a step, [`logits`] turns a row of logits into a token,
//! [`bias`] adds to the logits that a request names and [`penalties`] holds back tokens that are already there (all pure),
//! [`stop`] says when a sequence ends (pure), [`prompt`] is what a request wants to know of its prompt and [`likeliest`]
//! how it is read from a row (both pure), [`sequence`] is what the engine keeps per request, [`engine`] is the one
//! thread that owns the sequences and their KV caches, [`line`] asks it, and the engine that follows a lost one,
//! [`adapters`] finds the weights a request names, and [`component`] is the handle the rest of the node calls.
//!
//! Two rules: the same request with the same seed gets the same tokens whatever else runs, and every admitted request
//! can finish, because its memory was set aside before it began.
#![forbid(unsafe_code)]

pub mod adapters;
mod batch;
pub mod bias;
pub mod component;
pub mod engine;
mod failure;
pub mod likeliest;
pub mod line;
pub mod logits;
pub mod memory;
pub mod params;
pub mod penalties;
pub mod prompt;
pub mod runner;
pub mod scheduler;
pub mod seeds;
mod sequence;
pub mod stats;
pub mod stop;
mod watched;

pub use component::{SamplerComponent, SamplerContext};
