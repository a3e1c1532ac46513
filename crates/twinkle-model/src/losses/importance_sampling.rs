//! `importance_sampling`: `L = −Σ r a` with `r = exp(t − q)`, the policy gradient corrected for
//! the policy that sampled (q) not being the one that trains (t).

use super::policy::{self, token_ratio};
use super::{DatumView, Inputs, Loss, PerToken, Scope, Tally, TokenLoss};

pub(super) struct ImportanceSampling;

impl Loss for ImportanceSampling {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(policy::COLUMNS)
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Token(self)
    }

    fn observe(&self, datum: DatumView, tally: &mut Tally) {
        policy::observe(datum, self.inputs().columns(), token_ratio, tally);
    }
}

impl PerToken for ImportanceSampling {
    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let (sampled, advantage) = (inputs[0], inputs[1]);
        if advantage == 0.0 {
            return TokenLoss::MASKED;
        }
        let objective = (logprob - sampled).exp() * advantage;
        TokenLoss { value: -objective, derivative: -objective }
    }
}
