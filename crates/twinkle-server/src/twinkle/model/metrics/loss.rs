//! `LossMetric`: the mean loss since it was last asked, and the last gradient norm.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use twinkle_core::error::Result;

use super::{Found, Metric, Moment, Observation, from_bytes, to_bytes};

/// Per token where the loss is a sum over tokens, else per forward.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Loss {
    total: f64,
    tokens: f64,
    forwards: u64,
}

impl Metric for Loss {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<()> {
        if let Some(loss) = seen.loss {
            self.total += loss;
            self.tokens += seen.outcome.num_tokens;
            self.forwards += 1;
        }
        Ok(())
    }

    fn is_about_losses(&self) -> bool {
        true
    }

    fn take(&mut self, at: &Moment, found: &mut Found) {
        let Self { total, tokens, forwards } = std::mem::take(self);
        let mean = if tokens > 0.0 { total / tokens } else { total / (forwards.max(1) as f64) };
        found.text("loss", mean, format!("{mean:.4}"));
        if let Some(norm) = at.grad_norm.filter(|norm| *norm > 0.0 && forwards > 0) {
            found.text("grad_norm", norm, format!("{norm:.6}"));
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
