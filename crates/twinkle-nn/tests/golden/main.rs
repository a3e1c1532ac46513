//! The network against Hugging Face transformers and PEFT, on tiny random models of every architecture.
//!
//! `tests/golden/README.md` says where the numbers are from, and how near to them is near enough.

#[path = "../common/mod.rs"]
mod common;

mod adapters;
mod forward;
mod generation;
mod mutations;

use std::sync::Arc;

use common::{Golden, logits_of, max_abs};
use twinkle_nn::{Adapter, BaseModel, ModelConfig};

/// How far from the reference fp32 values may be.
#[derive(Clone, Copy, Debug)]
struct Tolerance {
    /// Of logits and logprobs, absolute.
    logits: f32,
    /// Of a gradient's tensor, relative to its largest number.
    gradient: f32,
}

impl Tolerance {
    /// A recurrence over a whole sequence leaves the reference's own fp32 further from fp64.
    fn of(config: &ModelConfig) -> Self {
        if config.delta.is_some() {
            Self { logits: 1e-3, gradient: 5e-4 }
        } else {
            Self { logits: 1e-4, gradient: 1e-4 }
        }
    }
}

/// How far the logits are from those of the fixture, over every sequence it has them for.
fn worst_logits(base: &BaseModel, golden: &Golden, adapter: Option<&Arc<Adapter>>, prefix: &str) -> f32 {
    let mut worst = 0.0_f32;
    for (i, tokens) in golden.sequences().iter().enumerate() {
        if let Some(expected) = golden.find(&format!("{prefix}logits.{i}")) {
            worst = worst.max(max_abs(&logits_of(base, tokens, adapter), expected));
        }
    }
    worst
}
