//! `cispo`: `L = −Σ sg(clip(r)) t a` with `r = exp(t − q)` (MiniMax-M1 2025): the clipped ratio is a
//! constant weight, so no token's gradient vanishes. One-sided by default: bounds 0 and 4.

use twinkle_core::Result;

use super::policy::{self, Clipped, ClippedColumns, token_ratio};
use super::registry::Settings;
use super::{DatumView, Inputs, Loss, PerToken, Scope, Tally, TokenLoss};
use crate::batch::Example;

struct Cispo {
    columns: ClippedColumns,
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    Ok(Box::new(Cispo { columns: ClippedColumns::new(settings.clip_range(0.0, 4.0)?) }))
}

impl Loss for Cispo {
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

impl PerToken for Cispo {
    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let Clipped { sampled, advantage, range } = Clipped::of(inputs);
        if advantage == 0.0 {
            return TokenLoss::MASKED;
        }
        let weight = range.clip((logprob - sampled).exp()) * advantage;
        TokenLoss { value: -weight * logprob, derivative: -weight }
    }
}
