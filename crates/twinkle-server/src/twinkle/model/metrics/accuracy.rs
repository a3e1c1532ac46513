//! `Accuracy`: how often the likeliest token was the label. Only forwards that were asked for logits tell.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use twinkle_core::error::Result;
use twinkle_core::wire::twinkle::IGNORED_LABEL;

use super::{Found, Metric, Moment, Observation, from_bytes, to_bytes};

/// How many labels there were, and how many were the likeliest token.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Accuracy {
    correct: u64,
    total: u64,
}

impl Metric for Accuracy {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<()> {
        for (row, logits) in seen.rows.list.iter().zip(&seen.outcome.logits) {
            for (label, logits) in row.labels.iter().zip(logits.values.chunks(logits.width.max(1))) {
                if *label == IGNORED_LABEL {
                    continue;
                }
                let best = (0_i64..).zip(logits).max_by(|(_, one), (_, other)| one.total_cmp(other));
                self.correct += u64::from(best.is_some_and(|(token, _)| token == *label));
                self.total += 1;
            }
        }
        Ok(())
    }

    fn take(&mut self, _: &Moment, found: &mut Found) {
        let Self { correct, total } = std::mem::take(self);
        if total > 0 {
            let accuracy = correct as f64 / total as f64;
            found.text("accuracy", accuracy, format!("{accuracy:.2}"));
            for (name, count) in [("correct_tokens", correct), ("total_tokens", total)] {
                found.shown.insert(name.to_owned(), count.into());
                found.numbers.insert(name.to_owned(), count.into());
            }
        }
    }

    fn saved(&self, _: Instant) -> Result<Vec<u8>> {
        to_bytes(self)
    }

    fn take_up(&mut self, saved: &[u8], _: Instant) -> Result<()> {
        *self = from_bytes(saved)?;
        Ok(())
    }
}
