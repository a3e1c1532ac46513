//! What a model computes per token, in floating-point operations; a multiplication with its addition counts as two.
//!
//! With N the body's weights that a token meets, V H the head, and S the length of its sequence: forward
//! `2 N + 2 V H + 2 n_h d S` per attention layer (causal, q kᵀ and p v); backward `2 N + 2 V H` and 2.5 times attention,
//! since a frozen base needs no gradients of weights; a recomputed layer its forward once more.

use super::{CostModel, Recompute};
use crate::config::MixerKind;

/// Operations for one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FloatingPointOperations {
    /// Products with weights.
    pub products: f64,
    /// Attention, linear attention among it.
    pub attention: f64,
}

impl FloatingPointOperations {
    /// All together.
    #[must_use]
    pub fn total(self) -> f64 {
        self.products + self.attention
    }
}

impl CostModel {
    /// Training, on average over a sequence of `length` tokens.
    #[must_use]
    pub fn training_operations(&self, length: usize, recompute: Recompute) -> FloatingPointOperations {
        let layers = self.config().layer_count;
        let body: f64 = (0..layers).map(|layer| self.layer_products(layer)).sum();
        let again: f64 = (0..recompute.layers.min(layers)).map(|layer| self.layer_products(layer)).sum();
        let share = if layers == 0 { 0.0 } else { recompute.layers.min(layers) as f64 / layers as f64 };
        FloatingPointOperations {
            products: 2.0 * body + again + 2.0 * self.head_products(),
            attention: self.attention_operations(length as f64 / 2.0) * (3.5 + share),
        }
    }

    /// One decoded token after `context` others, or one token of a prompt.
    #[must_use]
    pub fn sampling_operations(&self, context: usize) -> FloatingPointOperations {
        let body: f64 = (0..self.config().layer_count).map(|layer| self.layer_products(layer)).sum();
        FloatingPointOperations {
            products: body + self.head_products(),
            attention: self.attention_operations(context as f64),
        }
    }

    fn layer_products(&self, layer: usize) -> f64 {
        2.0 * self.layer_weights(layer, false) as f64
    }

    fn head_products(&self) -> f64 {
        2.0 * self.config().vocab_size as f64 * self.config().hidden_size as f64
    }

    /// Forward, of one token that sees `keys` others on average.
    fn attention_operations(&self, keys: f64) -> f64 {
        let config = self.config();
        let count = |mixer: MixerKind| config.layers.iter().filter(|layer| layer.mixer == mixer).count() as f64;
        let full = 4.0 * config.query_width() as f64 * keys;
        let linear = config.delta.as_ref().map_or(0.0, |delta| {
            let (keys, values) = (delta.key_head_dim as f64, delta.value_head_dim as f64);
            let head = 6.0 * keys * values + 64.0 * (5.0 * keys + 3.0 * values);
            head * delta.value_head_count as f64
        });
        count(MixerKind::FullAttention) * full + count(MixerKind::GatedDeltaNet) * linear
    }
}
