//! `ppo`: `L = −Σ min(r a, clip(r) a)` with `r = exp(t − q)` (Schulman et al. 2017, the clipped
//! surrogate). The thresholds bound the ratio itself; they default to 0.8 and 1.2.

use twinkle_core::Result;

use super::{ClipRange, Column, Loss, POLICY_COLUMNS, Settings, TokenLoss};

struct Ppo {
    range: ClipRange,
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    Ok(Box::new(Ppo { range: settings.clip_range(0.8, 1.2)? }))
}

impl Loss for Ppo {
    fn columns(&self) -> &'static [Column] {
        POLICY_COLUMNS
    }

    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let (sampled, advantage) = (inputs[0], inputs[1]);
        if advantage == 0.0 {
            return TokenLoss::MASKED;
        }
        let ratio = (logprob - sampled).exp();
        let unclipped = ratio * advantage;
        let clipped = self.range.clip(ratio) * advantage;
        if unclipped <= clipped {
            TokenLoss { value: -unclipped, derivative: -unclipped }
        } else {
            // The clipped branch is constant in t.
            TokenLoss { value: -clipped, derivative: 0.0 }
        }
    }
}
