//! `gspo`: `L = −Σ min(s a, clip(s) a)` with one ratio per sequence, `s = exp(mean (t − q))` over the positions where
//! `sequence_ratio_mask` is not 0 (Zheng et al. 2025, group sequence policy optimisation).
//!
//! Each token's gradient goes through its own logprob only, as if its ratio were `s · exp(t − sg t)` (the paper's
//! GSPO-token): `dL/dt = −s a` where the ratio is not clipped, else 0. The thresholds default to those of ppo.

use twinkle_core::{Error, Result};

use super::policy::{self, BOUNDS, ClipRange, Clipped};
use super::ppo::surrogate;
use super::registry::Settings;
use super::{Column, DatumView, Inputs, Loss, PerSequence, Scope, Tally};
use crate::batch::Example;

/// Place of the mask among the columns.
const MASK: usize = 4;

struct Gspo {
    columns: [Column; 5],
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    let ClipRange { low, high } = settings.clip_range(0.8, 1.2)?;
    let column = |name, default| Column { name, default };
    Ok(Box::new(Gspo {
        columns: [
            column("logprobs", None),
            column("advantages", None),
            column(BOUNDS[0], Some(low)),
            column(BOUNDS[1], Some(high)),
            column("sequence_ratio_mask", None),
        ],
    }))
}

impl Loss for Gspo {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(&self.columns)
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Sequence(self)
    }

    fn check(&self, example: &Example) -> Result<()> {
        policy::check_bounds(example, self.columns.len())?;
        let mut rows = example.inputs.chunks(self.columns.len());
        let counts = example.inputs.chunks(self.columns.len()).any(|inputs| Clipped::of(inputs).advantage != 0.0);
        if counts && rows.all(|inputs| inputs[MASK] == 0.0) {
            return Err(Error::invalid("`sequence_ratio_mask` is 0 everywhere, but some advantages are not")
                .hint("the sequence's ratio is the mean over the positions where the mask is not 0"));
        }
        Ok(())
    }

    fn observe(&self, datum: DatumView, tally: &mut Tally) {
        let ratio = self.sequence_ratio(datum);
        policy::observe(datum, self.columns.len(), |_, _| ratio, tally);
        policy::observe_clipping(datum, self.columns.len(), |_, _| ratio, tally);
    }
}

impl PerSequence for Gspo {
    fn sequence(&self, datum: DatumView, derivatives: &mut [f32]) -> f64 {
        let ratio = self.sequence_ratio(datum);
        let mut sum = 0.0;
        for (inputs, derivative) in datum.example.inputs.chunks(self.columns.len()).zip(derivatives) {
            let Clipped { advantage, range, .. } = Clipped::of(inputs);
            if advantage == 0.0 {
                continue;
            }
            let token = surrogate(ratio, advantage, range);
            sum += f64::from(token.value);
            *derivative = token.derivative;
        }
        sum
    }
}

impl Gspo {
    /// `s`; 1 where no position is in the mask, and none counts then.
    fn sequence_ratio(&self, datum: DatumView) -> f32 {
        let (mut sum, mut count) = (0.0, 0.0);
        for (logprob, inputs) in datum.logprobs.iter().zip(datum.example.inputs.chunks(self.columns.len())) {
            if inputs[MASK] != 0.0 {
                sum += f64::from(*logprob) - f64::from(inputs[0]);
                count += 1.0;
            }
        }
        if count == 0.0 {
            return 1.0;
        }
        ((sum / count) as f32).exp()
    }
}
