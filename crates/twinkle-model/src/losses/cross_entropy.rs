//! `cross_entropy`: `L = −Σ w t`.
//!
//! The weights are real numbers, not a mask: fractions and negative values count as they are
//! (client-side custom losses send `−∂C/∂t` as weights). With several candidates per position every
//! one is a target of its own: weights that are a teacher's probabilities distil the teacher.

use super::{Column, DatumView, Inputs, Loss, PerToken, Scope, Tally, TokenLoss};

pub(super) struct CrossEntropy;

impl Loss for CrossEntropy {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(&[Column { name: "weights", default: Some(1.0) }])
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Token(self)
    }

    fn takes_candidates(&self) -> bool {
        true
    }

    fn observe(&self, datum: DatumView, tally: &mut Tally) {
        let weights = &datum.example.inputs;
        tally.add("tokens", weights.iter().filter(|weight| **weight != 0.0).count() as f64);
        tally.add("weights", weights.iter().map(|weight| f64::from(*weight)).sum());
    }
}

impl PerToken for CrossEntropy {
    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let weight = inputs[0];
        if weight == 0.0 {
            return TokenLoss::MASKED;
        }
        TokenLoss { value: -weight * logprob, derivative: -weight }
    }
}
