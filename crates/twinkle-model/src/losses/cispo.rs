//! `cispo`: `L = −Σ sg(clip(r)) t a` with `r = exp(t − q)` (MiniMax-M1 2025): the clipped ratio is a
//! constant weight, so no token's gradient vanishes. One-sided by default: bounds 0 and 4.

use twinkle_core::Result;

use super::{ClipRange, Column, Loss, POLICY_COLUMNS, Settings, TokenLoss};

struct Cispo {
    range: ClipRange,
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    Ok(Box::new(Cispo { range: settings.clip_range(0.0, 4.0)? }))
}

impl Loss for Cispo {
    fn columns(&self) -> &'static [Column] {
        POLICY_COLUMNS
    }

    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let (sampled, advantage) = (inputs[0], inputs[1]);
        if advantage == 0.0 {
            return TokenLoss::MASKED;
        }
        let weight = self.range.clip((logprob - sampled).exp()) * advantage;
        TokenLoss { value: -weight * logprob, derivative: -weight }
    }
}
