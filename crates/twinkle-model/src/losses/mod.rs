//! Losses: each is a function from one token's logprob to a value and a derivative.
//!
//! With `t = log p(target)` of a token, a loss gives `L(t)` and `dL/dt`; the head turns the derivative
//! into gradients without ever holding a `[tokens × vocabulary]` tensor. All losses are **sums** over
//! tokens and datums: no averaging anywhere. To add one, write its page and name it in [`LOSSES`].

mod cispo;
mod cross_entropy;
mod importance_sampling;
mod ppo;

use std::collections::BTreeMap;

use twinkle_core::call::LossSpec;
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};

/// What a loss makes of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLoss {
    /// `L(t)`.
    pub value: f32,
    /// `dL/dt`.
    pub derivative: f32,
}

impl TokenLoss {
    /// A position that does not count: exactly nothing, whatever its logprob or ratio.
    pub const MASKED: Self = Self { value: 0.0, derivative: 0.0 };
}

/// A per-token input of a loss, aligned to the datum's tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// Its name in `loss_fn_inputs`.
    pub name: &'static str,
    /// What every position has when the client sends none; `None`: it must be sent.
    pub default: Option<f32>,
}

/// A loss with its settings.
pub trait Loss: Send + Sync {
    /// The inputs it reads besides `target_tokens`, in the order [`Loss::token`] gets them.
    fn columns(&self) -> &'static [Column];

    /// Value and derivative at one token with this logprob and these inputs.
    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss;
}

/// How a loss is found by name and built from its settings.
struct Entry {
    name: &'static str,
    /// The settings it has; others are mistakes.
    settings: &'static [&'static str],
    build: fn(&Settings) -> Result<Box<dyn Loss>>,
}

const LOSSES: &[Entry] = &[
    Entry { name: "cross_entropy", settings: &[], build: |_| Ok(Box::new(cross_entropy::CrossEntropy)) },
    Entry {
        name: "importance_sampling",
        settings: &[],
        build: |_| Ok(Box::new(importance_sampling::ImportanceSampling)),
    },
    Entry { name: "ppo", settings: &["clip_low_threshold", "clip_high_threshold"], build: ppo::build },
    Entry { name: "cispo", settings: &["clip_low_threshold", "clip_high_threshold"], build: cispo::build },
];

/// Every input some loss reads. A datum may carry inputs of another loss; a name outside this list is a mistake.
pub const KNOWN_INPUTS: &[&str] = &["target_tokens", "weights", "advantages", "logprobs"];

/// The names of all losses.
#[must_use]
pub fn names() -> Vec<&'static str> {
    LOSSES.iter().map(|entry| entry.name).collect()
}

/// Finds and builds the loss; an unknown name or setting is an error that names the nearest right one.
pub fn build(spec: &LossSpec) -> Result<Box<dyn Loss>> {
    let Some(entry) = LOSSES.iter().find(|entry| entry.name == spec.name) else {
        return Err(Error::invalid(format!("unknown loss `{}`", spec.name)).hint(suggestion(
            &spec.name,
            "losses",
            &names(),
        )));
    };
    for (setting, value) in &spec.config {
        if !entry.settings.contains(&setting.as_str()) {
            let error = Error::invalid(format!("loss `{}` has no setting `{setting}`", entry.name));
            return Err(match entry.settings {
                [] => error.hint("it has no settings"),
                known => error.hint(suggestion(setting, "settings", known)),
            });
        }
        if !value.is_finite() {
            return Err(Error::invalid(format!("setting `{setting}` of loss `{}` is not a finite number", entry.name)));
        }
    }
    (entry.build)(&Settings { loss: entry.name, values: &spec.config })
}

/// The numeric settings of one loss, already known to have known names and finite values.
pub(crate) struct Settings<'a> {
    loss: &'static str,
    values: &'a BTreeMap<String, f64>,
}

impl Settings<'_> {
    fn get(&self, name: &str, default: f32) -> f32 {
        self.values.get(name).map_or(default, |value| *value as f32)
    }

    /// Lower and upper bound of the probability ratio.
    fn clip_range(&self, default_low: f32, default_high: f32) -> Result<ClipRange> {
        let low = self.get("clip_low_threshold", default_low);
        let high = self.get("clip_high_threshold", default_high);
        if low < 0.0 || low > high {
            return Err(Error::invalid(format!(
                "loss `{}` needs 0 ≤ `clip_low_threshold` ≤ `clip_high_threshold`, got {low} and {high}",
                self.loss
            ))
            .hint("the thresholds are bounds of the ratio itself, such as 0.8 and 1.2, not distances from 1"));
        }
        Ok(ClipRange { low, high })
    }
}

/// Bounds of the probability ratio `exp(t − q)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClipRange {
    low: f32,
    high: f32,
}

impl ClipRange {
    fn clip(self, ratio: f32) -> f32 {
        ratio.clamp(self.low, self.high)
    }
}

/// The inputs of every policy-gradient loss: the logprob `q` when sampled, and the advantage `a`.
pub(crate) const POLICY_COLUMNS: &[Column] =
    &[Column { name: "logprobs", default: None }, Column { name: "advantages", default: None }];

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, config: &[(&str, f64)]) -> LossSpec {
        LossSpec { name: name.into(), config: config.iter().map(|(key, value)| ((*key).into(), *value)).collect() }
    }

    /// Central difference of the value must equal the derivative wherever the loss is smooth.
    fn check_derivative(loss: &dyn Loss, logprob: f32, inputs: &[f32]) {
        let step = 1e-3;
        let above = loss.token(logprob + step, inputs).value;
        let below = loss.token(logprob - step, inputs).value;
        let numeric = (above - below) / (2.0 * step);
        let exact = loss.token(logprob, inputs).derivative;
        assert!(
            (numeric - exact).abs() <= 1e-2 * exact.abs().max(1.0),
            "{numeric} against {exact} at {logprob} {inputs:?}"
        );
    }

    #[test]
    fn derivatives_equal_central_differences() {
        let cross_entropy = build(&spec("cross_entropy", &[])).unwrap();
        for weight in [0.0, 1.0, 0.5, -2.0] {
            check_derivative(cross_entropy.as_ref(), -1.3, &[weight]);
        }
        for name in ["importance_sampling", "ppo"] {
            let loss = build(&spec(name, &[])).unwrap();
            for (logprob, sampled, advantage) in
                [(-1.0, -1.05, 1.5), (-1.0, -1.05, -1.5), (-1.0, -2.0, 1.0), (-1.0, -2.0, -1.0), (-3.0, -1.0, 1.0)]
            {
                check_derivative(loss.as_ref(), logprob, &[sampled, advantage]);
            }
        }
    }

    #[test]
    fn masked_positions_are_exactly_nothing_even_where_the_ratio_overflows() {
        for name in ["importance_sampling", "ppo", "cispo"] {
            let loss = build(&spec(name, &[])).unwrap();
            assert_eq!(loss.token(-0.5, &[-500.0, 0.0]), TokenLoss::MASKED, "{name}");
        }
        let cross_entropy = build(&spec("cross_entropy", &[])).unwrap();
        assert_eq!(cross_entropy.token(f32::NEG_INFINITY, &[0.0]), TokenLoss::MASKED);
    }

    #[test]
    fn unknown_names_suggest_the_nearest() {
        let error = build(&spec("cross_entrpy", &[])).err().unwrap();
        assert!(error.to_string().contains("did you mean `cross_entropy`"), "{error}");
        let error = build(&spec("ppo", &[("clip_low", 0.8)])).err().unwrap();
        assert!(error.to_string().contains("clip_low_threshold"), "{error}");
        assert!(build(&spec("ppo", &[("clip_low_threshold", 1.3)])).is_err());
        assert!(build(&spec("ppo", &[("clip_low_threshold", f64::NAN)])).is_err());
    }
}
