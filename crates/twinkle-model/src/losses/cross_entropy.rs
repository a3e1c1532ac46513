//! `cross_entropy`: `L = −Σ w t`.
//!
//! The weights are real numbers, not a mask: fractions and negative values count as they are
//! (client-side custom losses send `−∂C/∂t` as weights).

use super::{Column, Loss, TokenLoss};

pub(super) struct CrossEntropy;

impl Loss for CrossEntropy {
    fn columns(&self) -> &'static [Column] {
        &[Column { name: "weights", default: Some(1.0) }]
    }

    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let weight = inputs[0];
        if weight == 0.0 {
            return TokenLoss::MASKED;
        }
        TokenLoss { value: -weight * logprob, derivative: -weight }
    }
}
