//! `GRPOMetric` and its relatives: how far the policy has moved from the one that wrote the tokens.
//!
//! The divergence is Schulman's estimator k3, `exp(d) − d − 1` with `d = new − old`.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use tokio::time::Instant;
use twinkle_core::error::Result;
use twinkle_core::wire::twinkle::IGNORED_LABEL;

use super::{Found, Metric, Moment, Observation, from_bytes, to_bytes};

/// Most positions with a large divergence that are kept between two questions.
const MOST_KEPT: usize = 10_000;

/// How many of them survive a restart.
const MOST_SAVED: usize = 256;

/// When a ratio counts as clipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clipping {
    /// Token by token, where the advantage would profit.
    Token,
    /// Text by text, by the geometric mean of its ratios.
    Sequence,
    /// Token by token, whatever the advantage.
    Unconditional,
}

/// The settings, and what came together.
#[derive(Debug)]
pub(super) struct Policy {
    clipping: Clipping,
    temperature: f64,
    epsilon: f64,
    epsilon_high: f64,
    records: usize,
    sums: Sums,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Sums {
    tokens: u64,
    new: f64,
    has_old: bool,
    old: f64,
    difference: f64,
    divergence: f64,
    most_divergence: f64,
    most_ratio: f64,
    entropy: f64,
    entropies: u64,
    clipped_low: u64,
    clipped_high: u64,
    clippable: u64,
    texts: usize,
    #[serde(serialize_with = "the_first")]
    kept: Vec<Value>,
}

impl Policy {
    pub(super) fn new(clipping: Clipping, temperature: f64, (low, high): (f64, f64), records: usize) -> Self {
        Self { clipping, temperature, epsilon: low, epsilon_high: high, records, sums: Sums::default() }
    }

    fn is_clipped(&self, ratio: f64, advantage: f64) -> (bool, bool) {
        let (low, high) = (ratio < 1.0 - self.epsilon, ratio > 1.0 + self.epsilon_high);
        match self.clipping {
            Clipping::Unconditional => (low, high),
            Clipping::Token | Clipping::Sequence => (low && advantage < 0.0, high && advantage > 0.0),
        }
    }
}

impl Metric for Policy {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<()> {
        // Logprobs at temperature 1 of what was computed at another: both get the same factor.
        let scale = if self.temperature > 0.0 { self.temperature } else { 1.0 };
        let (old, advantages) = (seen.columns.get("old_logps"), seen.columns.get("advantages"));
        let mut largest: Vec<(f64, Value)> = Vec::new();
        for (index, (row, logprobs)) in seen.rows.list.iter().zip(seen.logprobs).enumerate() {
            let entropies = seen.outcome.entropies.get(index);
            let old = old.and_then(|old| old.get(index));
            let advantages = advantages.and_then(|advantages| advantages.get(index));
            let (mut sum, mut count, mut advantage_of_text) = (0.0, 0_u64, 0.0);
            for (place, (logprob, label)) in logprobs.iter().zip(&row.labels).enumerate() {
                if *label == IGNORED_LABEL {
                    continue;
                }
                let new = f64::from(*logprob) * scale;
                self.sums.tokens += 1;
                self.sums.new += new;
                if let Some(entropy) = entropies.and_then(|table| table.values.get(place)) {
                    self.sums.entropy += f64::from(*entropy);
                    self.sums.entropies += 1;
                }
                let Some(old) = old.and_then(|old| old.get(place)) else { continue };
                let old = f64::from(*old) * scale;
                let difference = new - old;
                let ratio = difference.exp();
                let divergence = ratio - difference - 1.0;
                self.sums.has_old = true;
                self.sums.old += old;
                self.sums.difference += difference;
                self.sums.divergence += divergence;
                self.sums.most_divergence = self.sums.most_divergence.max(divergence);
                self.sums.most_ratio = self.sums.most_ratio.max(ratio);
                if self.records > 0 && divergence > 0.0 {
                    let text = self.sums.texts + index;
                    let record = json!({
                        "gsi": text, "pos": row.before + place, "token_id": label, "kl": divergence,
                        "ratio": ratio, "logp_new": new, "logp_old": old,
                    });
                    largest.push((divergence, record));
                    // The largest of all are among the largest of any part.
                    if largest.len() > 4 * self.records {
                        keep_largest(&mut largest, self.records);
                    }
                }
                let Some(advantage) = advantages.and_then(|advantages| advantages.get(place)) else { continue };
                let advantage = f64::from(*advantage);
                if self.clipping == Clipping::Sequence {
                    (sum, count, advantage_of_text) = (sum + difference, count + 1, advantage_of_text + advantage);
                    continue;
                }
                let (low, high) = self.is_clipped(ratio, advantage);
                self.sums.clipped_low += u64::from(low);
                self.sums.clipped_high += u64::from(high);
                self.sums.clippable += 1;
            }
            if count > 0 {
                let (low, high) = self.is_clipped((sum / count as f64).exp(), advantage_of_text / count as f64);
                self.sums.clipped_low += u64::from(low);
                self.sums.clipped_high += u64::from(high);
                self.sums.clippable += 1;
            }
        }
        self.sums.texts += seen.rows.list.len();
        keep_largest(&mut largest, self.records);
        let room = MOST_KEPT.saturating_sub(self.sums.kept.len());
        self.sums.kept.extend(largest.into_iter().take(room).map(|(_, record)| record));
        Ok(())
    }

    fn take(&mut self, _: &Moment, found: &mut Found) {
        let sums = std::mem::take(&mut self.sums);
        if sums.tokens == 0 {
            return;
        }
        let mean = |sum: f64| sum / sums.tokens as f64;
        found.number("train/policy_confidence", mean(sums.new).exp());
        found.number("train/mean_new_logp", mean(sums.new));
        if sums.has_old {
            found.number("train/mean_old_logp", mean(sums.old));
            found.number("train/logp_diff_mean", mean(sums.difference));
            found.number("train/approx_kl", mean(sums.divergence));
            found.number("train/token_kl_max", sums.most_divergence);
            found.number("train/token_ratio_max", sums.most_ratio);
        }
        if sums.entropies > 0 {
            found.number("train/entropy", sums.entropy / sums.entropies as f64);
        }
        if sums.clippable > 0 {
            let share = |count: u64| count as f64 / sums.clippable as f64;
            found.number("train/clip_ratio_low", share(sums.clipped_low));
            found.number("train/clip_ratio_high", share(sums.clipped_high));
            found.number("train/clip_ratio", share(sums.clipped_low + sums.clipped_high));
        }
        if !sums.kept.is_empty() {
            found.shown.insert("_high_kl_records".to_owned(), sums.kept.into());
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

fn keep_largest(records: &mut Vec<(f64, Value)>, count: usize) {
    records.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    records.truncate(count);
}

/// The first of the positions: what is saved after every forward has a bound of its own.
fn the_first<S: Serializer>(kept: &[Value], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(kept.iter().take(MOST_SAVED))
}
