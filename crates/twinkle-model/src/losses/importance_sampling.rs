//! `importance_sampling`: `L = −Σ r a` with `r = exp(t − q)`, the policy gradient corrected for
//! the policy that sampled (q) not being the one that trains (t).

use super::{Column, Loss, POLICY_COLUMNS, TokenLoss};

pub(super) struct ImportanceSampling;

impl Loss for ImportanceSampling {
    fn columns(&self) -> &'static [Column] {
        POLICY_COLUMNS
    }

    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let (sampled, advantage) = (inputs[0], inputs[1]);
        if advantage == 0.0 {
            return TokenLoss::MASKED;
        }
        let objective = (logprob - sampled).exp() * advantage;
        TokenLoss { value: -objective, derivative: -objective }
    }
}
