//! `EmbeddingMetric`: how near an anchor is to its own positive, and to the others'.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use twinkle_core::error::Result;

use super::{Found, Metric, Moment, Observation, from_bytes, to_bytes};

/// What came together.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Embedding {
    positives: u64,
    positive: f64,
    least: f64,
    most: f64,
    negatives: u64,
    negative: f64,
    loss: f64,
    forwards: u64,
}

impl Default for Embedding {
    fn default() -> Self {
        Self {
            positives: 0,
            positive: 0.0,
            least: f64::INFINITY,
            most: f64::NEG_INFINITY,
            negatives: 0,
            negative: 0.0,
            loss: 0.0,
            forwards: 0,
        }
    }
}

impl Metric for Embedding {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<()> {
        let vectors: Vec<&[f32]> = seen.outcome.embeddings.iter().map(|table| table.values.as_slice()).collect();
        let is_anchor = |index: &usize| {
            seen.rows.list.get(*index).and_then(|row| row.labels.last()).is_some_and(|label| *label == 1)
        };
        let pairs: Vec<(&[f32], &[f32])> = (0..vectors.len())
            .filter(is_anchor)
            .filter_map(|index| Some((*vectors.get(index)?, *vectors.get(index + 1)?)))
            .collect();
        if pairs.is_empty() {
            return Ok(());
        }
        for (place, (anchor, positive)) in pairs.iter().enumerate() {
            let similarity = dot(anchor, positive);
            self.positives += 1;
            self.positive += similarity;
            self.least = self.least.min(similarity);
            self.most = self.most.max(similarity);
            for (_, (_, other)) in pairs.iter().enumerate().filter(|(other, _)| *other != place) {
                self.negatives += 1;
                self.negative += dot(anchor, other);
            }
        }
        if let Some(loss) = seen.loss {
            self.loss += loss;
            self.forwards += 1;
        }
        Ok(())
    }

    fn take(&mut self, at: &Moment, found: &mut Found) {
        let sums = std::mem::take(self);
        let mut show = |name: &str, number: f64| found.text(name, number, format!("{number:.4}"));
        if sums.positives > 0 {
            show("pos_sim", sums.positive / sums.positives as f64);
            show("pos_sim_min", sums.least);
            show("pos_sim_max", sums.most);
        }
        if sums.negatives > 0 {
            show("neg_sim", sums.negative / sums.negatives as f64);
        }
        if sums.forwards > 0 {
            show("loss", sums.loss / sums.forwards as f64);
            if let Some(norm) = at.grad_norm.filter(|norm| *norm > 0.0) {
                found.text("grad_norm", norm, format!("{norm:.6}"));
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

/// The similarity of two vectors of length 1.
fn dot(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
}
