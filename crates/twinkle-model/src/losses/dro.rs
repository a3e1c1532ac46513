//! `dro`: `L = −Σ (t a − ½ β (t − q)²)` (Richemond et al. 2024, direct reward optimisation with the advantage given):
//! the policy follows the advantage and is held near the one that sampled by a quadratic penalty, without a ratio.

use twinkle_core::{Error, Result};

use super::policy::{self, token_ratio};
use super::registry::Settings;
use super::{DatumView, Inputs, Loss, PerToken, Scope, Tally, TokenLoss};

struct Dro {
    /// Strength of the penalty, at least 0.
    beta: f32,
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    let beta = settings.get("beta", 0.05);
    if beta < 0.0 {
        return Err(Error::invalid(format!("loss `dro` needs `beta` of at least 0, got {beta}"))
            .hint("a negative one would drive the policy away from the one that sampled, without bound"));
    }
    Ok(Box::new(Dro { beta }))
}

impl Loss for Dro {
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

impl PerToken for Dro {
    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let (sampled, advantage) = (inputs[0], inputs[1]);
        if advantage == 0.0 {
            return TokenLoss::MASKED;
        }
        let distance = logprob - sampled;
        TokenLoss {
            value: 0.5 * self.beta * distance * distance - logprob * advantage,
            derivative: self.beta * distance - advantage,
        }
    }
}
