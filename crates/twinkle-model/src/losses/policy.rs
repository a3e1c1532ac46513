//! What the policy-gradient losses share: inputs, the bounds of the ratio, and metrics.
//!
//! The ratio is `r = exp(t − q)` of the policy that trains (t) to the one that sampled (q). A target with advantage 0
//! is masked: clients pad prompts so, with `q = 0`.

use twinkle_core::{Error, Result};

use super::{Column, DatumView, Tally};
use crate::batch::Example;

const LOGPROBS: Column = Column { name: "logprobs", default: None };
const ADVANTAGES: Column = Column { name: "advantages", default: None };

/// The inputs of every policy-gradient loss: the logprob `q` when sampled, and the advantage `a`.
pub(super) const COLUMNS: &[Column] = &[LOGPROBS, ADVANTAGES];

/// Names of the bounds, as settings and as inputs with one number per target.
pub(super) const BOUNDS: [&str; 2] = ["clip_low_threshold", "clip_high_threshold"];

/// Bounds of the ratio itself, such as 0.8 and 1.2.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClipRange {
    pub(super) low: f32,
    pub(super) high: f32,
}

impl ClipRange {
    pub(super) fn clip(self, ratio: f32) -> f32 {
        ratio.clamp(self.low, self.high)
    }

    fn is_valid(self) -> bool {
        0.0 <= self.low && self.low <= self.high
    }

    /// The bounds, or why they are none.
    pub(super) fn checked(self, whose: &str) -> Result<Self> {
        if self.is_valid() {
            return Ok(self);
        }
        Err(Error::invalid(format!(
            "{whose} needs 0 ≤ `clip_low_threshold` ≤ `clip_high_threshold`, got {} and {}",
            self.low, self.high
        ))
        .hint("the thresholds are bounds of the ratio itself, such as 0.8 and 1.2, not distances from 1"))
    }
}

/// The inputs of a loss that clips: every target may bring its own bounds, the settings are for those that do not.
#[derive(Debug)]
pub(super) struct ClippedColumns([Column; 4]);

impl ClippedColumns {
    pub(super) const fn new(range: ClipRange) -> Self {
        let [low, high] = BOUNDS;
        let low = Column { name: low, default: Some(range.low) };
        let high = Column { name: high, default: Some(range.high) };
        Self([LOGPROBS, ADVANTAGES, low, high])
    }

    pub(super) const fn columns(&self) -> &[Column] {
        &self.0
    }
}

/// What a target of a loss that clips brings.
pub(super) struct Clipped {
    pub(super) sampled: f32,
    pub(super) advantage: f32,
    pub(super) range: ClipRange,
}

impl Clipped {
    /// From the numbers of [`ClippedColumns`].
    pub(super) fn of(inputs: &[f32]) -> Self {
        Self { sampled: inputs[0], advantage: inputs[1], range: ClipRange { low: inputs[2], high: inputs[3] } }
    }
}

/// Refuses a target whose own bounds are in the wrong order. `width` is the number of columns.
pub(super) fn check_bounds(example: &Example, width: usize) -> Result<()> {
    for (position, inputs) in example.inputs.chunks(width).enumerate() {
        Clipped::of(inputs).range.checked(&format!("position {position}"))?;
    }
    Ok(())
}

/// Refuses bounds for a loss that does not clip: who sends them counts on them.
pub(crate) fn check_is_read(name: &str, columns: &[Column]) -> Result<()> {
    if !BOUNDS.contains(&name) || columns.iter().any(|column| column.name == name) {
        return Ok(());
    }
    Err(Error::invalid(format!("`{name}` was sent, but this loss does not clip ratios"))
        .hint("`ppo`, `cispo` and `gspo` do"))
}

/// `Σ (q − t)` and `Σ r` over the targets that count, and how many these are; `ratio` says what `r` is.
pub(super) fn observe(datum: DatumView, width: usize, ratio: impl Fn(f32, &[f32]) -> f32, tally: &mut Tally) {
    let (mut tokens, mut kl, mut ratios) = (0.0, 0.0, 0.0);
    for (logprob, inputs) in datum.logprobs.iter().zip(datum.example.inputs.chunks(width)) {
        let (sampled, advantage) = (inputs[0], inputs[1]);
        if advantage == 0.0 {
            continue;
        }
        tokens += 1.0;
        kl += finite(sampled - logprob);
        ratios += finite(ratio(*logprob, inputs));
    }
    tally.add("tokens", tokens);
    tally.add("kl", kl);
    tally.add("ratio", ratios);
}

/// How many of the targets that count have a ratio outside their bounds.
pub(super) fn observe_clipping(datum: DatumView, width: usize, ratio: impl Fn(f32, &[f32]) -> f32, tally: &mut Tally) {
    let mut clipped = 0.0;
    for (logprob, inputs) in datum.logprobs.iter().zip(datum.example.inputs.chunks(width)) {
        let Clipped { advantage, range, .. } = Clipped::of(inputs);
        let ratio = ratio(*logprob, inputs);
        if advantage != 0.0 && (ratio < range.low || ratio > range.high) {
            clipped += 1.0;
        }
    }
    tally.add("clipped_tokens", clipped);
}

/// `r` of one target.
pub(super) fn token_ratio(logprob: f32, inputs: &[f32]) -> f32 {
    (logprob - inputs[0]).exp()
}

fn finite(value: f32) -> f64 {
    f64::from(value.clamp(f32::MIN, f32::MAX))
}
