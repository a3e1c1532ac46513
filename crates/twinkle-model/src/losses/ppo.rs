//! `ppo`: `L = −Σ min(r a, clip(r) a)` with `r = exp(t − q)` (Schulman et al. 2017, the clipped
//! surrogate). The thresholds bound the ratio itself; they default to 0.8 and 1.2.

use twinkle_core::Result;

use super::policy::{self, ClipRange, Clipped, ClippedColumns, token_ratio};
use super::registry::Settings;
use super::{DatumView, Inputs, Loss, PerToken, Scope, Tally, TokenLoss};
use crate::batch::Example;

struct Ppo {
    columns: ClippedColumns,
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    Ok(Box::new(Ppo { columns: ClippedColumns::new(settings.clip_range(0.8, 1.2)?) }))
}

impl Loss for Ppo {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(self.columns.columns())
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Token(self)
    }

    fn check(&self, example: &Example) -> Result<()> {
        policy::check_bounds(example, self.inputs().columns())
    }

    fn observe(&self, datum: DatumView, tally: &mut Tally) {
        policy::observe(datum, self.inputs().columns(), token_ratio, tally);
        policy::observe_clipping(datum, self.inputs().columns(), token_ratio, tally);
    }
}

impl PerToken for Ppo {
    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let Clipped { sampled, advantage, range } = Clipped::of(inputs);
        if advantage == 0.0 {
            return TokenLoss::MASKED;
        }
        surrogate((logprob - sampled).exp(), advantage, range)
    }
}

/// `−min(r a, clip(r) a)` and its derivative by `log r`.
pub(super) fn surrogate(ratio: f32, advantage: f32, range: ClipRange) -> TokenLoss {
    let unclipped = ratio * advantage;
    let clipped = range.clip(ratio) * advantage;
    if unclipped <= clipped {
        TokenLoss { value: -unclipped, derivative: -unclipped }
    } else {
        // The clipped branch is constant in t.
        TokenLoss { value: -clipped, derivative: 0.0 }
    }
}
