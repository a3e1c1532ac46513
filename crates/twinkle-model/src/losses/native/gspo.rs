//! `GSPOLoss` (Zheng et al. 2025, group sequence policy optimisation, arXiv:2507.18071): GRPO with one ratio per sequence,
//! `s = exp(mean of clamp(l − old, ±20) over the mask)`.
//!
//! `L = mean over sequences of Σ −min(s A, clamp(s, 1 − ε, 1 + ε_high) A) / |m|`, with the penalties of the other policy
//! losses. The gradient goes through the mean to every logprob of the sequence. Tinker's `gspo` is another function.

use twinkle_core::Result;
use twinkle_nn::RowFacts;

use super::columns;
use super::policy::{self, COLUMNS, Penalties, Position, Surrogate, check_advantages};
use super::settings::Settings;
use crate::batch::Example;
use crate::losses::{DatumView, Inputs, Loss, PerSequence, RowOptions, Scope};

struct Gspo {
    surrogate: Surrogate,
    penalties: Penalties,
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    Ok(Box::new(Gspo { surrogate: policy::clipped(settings)?, penalties: Penalties::read(settings)? }))
}

impl Loss for Gspo {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(COLUMNS)
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Sequence(self)
    }

    fn known_inputs(&self) -> &'static [&'static str] {
        super::INPUTS
    }

    fn row_options(&self) -> RowOptions {
        RowOptions { facts: self.penalties.entropy_coef > 0.0, softcap: None }
    }

    fn check(&self, example: &Example) -> Result<()> {
        columns::check_mask(example, COLUMNS.len())
    }

    fn prepare(&self, examples: &mut [Example]) -> Result<()> {
        check_advantages(examples)?;
        let sequences = examples.len() as f64;
        for example in examples {
            let divisor = sequences * columns::counted(example, COLUMNS.len()).max(1.0);
            columns::divide(example, COLUMNS.len(), divisor);
        }
        Ok(())
    }
}

/// The targets of a sequence that count, with their places.
fn positions(datum: DatumView<'_>) -> impl Iterator<Item = (usize, Position)> {
    let rows = datum.logprobs.iter().zip(datum.example.inputs.chunks(COLUMNS.len())).enumerate();
    rows.filter_map(|(place, (logprob, inputs))| Some((place, Position::of(*logprob, inputs)?)))
}

impl PerSequence for Gspo {
    fn sequence(&self, datum: DatumView, derivatives: &mut [f32]) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        for (_, position) in positions(datum) {
            sum += position.log_ratio().0;
            count += 1.0;
        }
        let (mut value, mut by_mean) = (0.0, 0.0);
        for (place, position) in positions(datum) {
            let (own, by_log_ratio) = self.surrogate.of(sum / count, position.advantage, position.logprob);
            let (penalty, by_penalty) = position.divergence(self.penalties.beta);
            let entropy = datum.facts.get(place).map_or(0.0, |facts| f64::from(facts.entropy));
            value += position.weight * (own + penalty - self.penalties.entropy_coef * entropy);
            by_mean += position.weight * by_log_ratio;
            derivatives[place] = (position.weight * by_penalty) as f32;
        }
        for (place, position) in positions(datum) {
            derivatives[place] += (by_mean * position.log_ratio().1 / count) as f32;
        }
        value
    }

    fn by_facts(&self, datum: DatumView, derivatives: &mut [RowFacts]) {
        for (place, position) in positions(datum) {
            derivatives[place].entropy = (-position.weight * self.penalties.entropy_coef) as f32;
        }
    }
}
