//! `DPOMetric`: how much the policy prefers the chosen texts (Rafailov et al. 2023), chosen and rejected in turn.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::IGNORED_LABEL;

use super::{Found, Metric, Moment, Observation, from_bytes, to_bytes};

/// The scale of rewards, and what came together.
#[derive(Debug)]
pub(super) struct Preference {
    beta: f64,
    sums: Sums,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Sums {
    pairs: u64,
    chosen: f64,
    rejected: f64,
    /// Of pairs with a reference.
    compared: u64,
    reference_chosen: f64,
    reference_rejected: f64,
    reward_chosen: f64,
    reward_rejected: f64,
    preferred: u64,
}

impl Preference {
    pub(super) fn new(beta: f64) -> Self {
        Self { beta, sums: Sums::default() }
    }
}

impl Metric for Preference {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<()> {
        let rows = &seen.rows.list;
        if !rows.len().is_multiple_of(2) {
            return Err(Error::invalid(format!(
                "`DPOMetric` compares pairs, chosen and rejected in turn, but there are {} texts",
                rows.len()
            )));
        }
        let sum = |index: usize, values: &[Vec<f32>]| -> f64 {
            let (Some(row), Some(values)) = (rows.get(index), values.get(index)) else { return 0.0 };
            let learned = row.labels.iter().zip(values).filter(|(label, _)| **label != IGNORED_LABEL);
            learned.map(|(_, value)| f64::from(*value)).sum()
        };
        let reference = seen.columns.get("ref_logps");
        for first in (0..rows.len()).step_by(2) {
            let (chosen, rejected) = (sum(first, seen.logprobs), sum(first + 1, seen.logprobs));
            self.sums.pairs += 1;
            self.sums.chosen += chosen;
            self.sums.rejected += rejected;
            let Some(reference) = reference else { continue };
            let (reference_chosen, reference_rejected) = (sum(first, reference), sum(first + 1, reference));
            let (reward_chosen, reward_rejected) =
                (self.beta * (chosen - reference_chosen), self.beta * (rejected - reference_rejected));
            self.sums.compared += 1;
            self.sums.reference_chosen += reference_chosen;
            self.sums.reference_rejected += reference_rejected;
            self.sums.reward_chosen += reward_chosen;
            self.sums.reward_rejected += reward_rejected;
            self.sums.preferred += u64::from(reward_chosen > reward_rejected);
        }
        Ok(())
    }

    fn take(&mut self, _: &Moment, found: &mut Found) {
        let sums = std::mem::take(&mut self.sums);
        if sums.pairs == 0 {
            return;
        }
        let mut show = |name: &str, sum: f64, count: u64, digits: usize| {
            let mean = sum / count as f64;
            found.text(name, mean, format!("{mean:.digits$}"));
        };
        show("logps/chosen", sums.chosen, sums.pairs, 2);
        show("logps/rejected", sums.rejected, sums.pairs, 2);
        if sums.compared > 0 {
            show("logps/ref_chosen", sums.reference_chosen, sums.compared, 2);
            show("logps/ref_rejected", sums.reference_rejected, sums.compared, 2);
            show("rewards/chosen", sums.reward_chosen, sums.compared, 4);
            show("rewards/rejected", sums.reward_rejected, sums.compared, 4);
            show("rewards/margins", sums.reward_chosen - sums.reward_rejected, sums.compared, 4);
            let share = sums.preferred as f64 / sums.compared as f64;
            found.text("rewards/accuracies", share, format!("{:.1}%", 100.0 * share));
        }
    }

    fn saved(&self, _: Instant) -> Result<Vec<u8>> {
        to_bytes(&self.sums)
    }

    fn take_up(&mut self, saved: &[u8], _: Instant) -> Result<()> {
        self.sums = from_bytes(saved)?;
        Ok(())
    }
}
