//! The learning-rate schedules a run can have, by the names, settings and defaults of `torch.optim.lr_scheduler`, and
//! two with a warm-up.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::named;
use crate::{Error, Result};

/// A schedule and its settings. The journal stores these: fields may be added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum SchedulerSpec {
    /// Times `factor` until `total_iters`.
    ConstantLR {
        /// In `[0, 1]`.
        #[serde(default = "third")]
        factor: f64,
        /// When it ends.
        #[serde(default = "five")]
        total_iters: u64,
    },
    /// From `start_factor` to `end_factor` in `total_iters` steps.
    LinearLR {
        /// In `(0, 1]`.
        #[serde(default = "third")]
        start_factor: f64,
        /// In `[0, 1]`.
        #[serde(default = "one")]
        end_factor: f64,
        /// When it ends.
        #[serde(default = "five")]
        total_iters: u64,
    },
    /// Times `gamma` every `step_size` steps.
    StepLR {
        /// At least 1.
        step_size: u64,
        /// The factor.
        #[serde(default = "tenth")]
        gamma: f64,
    },
    /// Times `gamma` at each milestone.
    MultiStepLR {
        /// Steps; one that occurs twice counts twice.
        milestones: Vec<u64>,
        /// The factor.
        #[serde(default = "tenth")]
        gamma: f64,
    },
    /// Times `gamma` every step.
    ExponentialLR {
        /// The factor.
        gamma: f64,
    },
    /// Down to 0 in `total_iters` steps.
    PolynomialLR {
        /// When it ends.
        #[serde(default = "five")]
        total_iters: u64,
        /// The exponent.
        #[serde(default = "one")]
        power: f64,
    },
    /// Half a cosine to `eta_min` and back (Loshchilov & Hutter 2017), without restarts.
    CosineAnnealingLR {
        /// Steps of half a period.
        #[serde(rename = "T_max")]
        t_max: u64,
        /// The least learning rate.
        #[serde(default)]
        eta_min: f64,
    },
    /// Half a cosine to `eta_min`, again and again (Loshchilov & Hutter 2017).
    CosineAnnealingWarmRestarts {
        /// Steps of the first period.
        #[serde(rename = "T_0")]
        t_0: u64,
        /// How much longer each period is than the one before.
        #[serde(rename = "T_mult", default = "once")]
        t_mult: u64,
        /// The least learning rate.
        #[serde(default)]
        eta_min: f64,
    },
    /// Up and down once (Smith & Topin 2018).
    OneCycleLR(OneCycle),
    /// Up and down again and again (Smith 2017).
    CyclicLR(Cyclic),
    /// Linearly up, then down a cosine.
    CosineWarmupScheduler {
        /// Steps of the way up.
        num_warmup_steps: u64,
        /// Steps of the whole.
        num_training_steps: u64,
        /// Periods of the cosine.
        #[serde(default = "half")]
        num_cycles: f64,
    },
    /// Linearly up, then linearly down to 0.
    LinearWarmupScheduler {
        /// Steps of the way up.
        num_warmup_steps: u64,
        /// Steps of the whole.
        num_training_steps: u64,
    },
}

/// Settings of `OneCycleLR`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OneCycle {
    /// The highest learning rate.
    pub max_lr: f64,
    /// Steps of the cycle; or `epochs` times `steps_per_epoch`.
    #[serde(default)]
    pub total_steps: Option<u64>,
    /// See `total_steps`.
    #[serde(default)]
    pub epochs: Option<u64>,
    /// See `total_steps`.
    #[serde(default)]
    pub steps_per_epoch: Option<u64>,
    /// The share of the way up.
    #[serde(default = "three_tenths")]
    pub pct_start: f64,
    /// The way's shape.
    #[serde(default)]
    pub anneal_strategy: Anneal,
    /// Whether momentum goes the other way.
    #[serde(default = "yes")]
    pub cycle_momentum: bool,
    /// Momentum at the top.
    #[serde(default = "momentum_085")]
    pub base_momentum: f64,
    /// Momentum at the ends.
    #[serde(default = "momentum_095")]
    pub max_momentum: f64,
    /// `max_lr` over the first learning rate.
    #[serde(default = "twenty_five")]
    pub div_factor: f64,
    /// The first learning rate over the last.
    #[serde(default = "ten_thousand")]
    pub final_div_factor: f64,
    /// Down to where it began, and from there to the last in a third phase.
    #[serde(default)]
    pub three_phase: bool,
}

/// The shape of a way from one learning rate to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    /// Half a cosine.
    #[default]
    Cos,
    /// A line.
    Linear,
}

/// Settings of `CyclicLR`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cyclic {
    /// The lowest learning rate.
    pub base_lr: f64,
    /// The highest learning rate.
    pub max_lr: f64,
    /// Steps of the way up.
    #[serde(default = "two_thousand")]
    pub step_size_up: u64,
    /// Steps of the way down; `None`: as many.
    #[serde(default)]
    pub step_size_down: Option<u64>,
    /// How the height changes.
    #[serde(default)]
    pub mode: CyclicMode,
    /// The base of `exp_range`.
    #[serde(default = "one")]
    pub gamma: f64,
    /// Whether momentum goes the other way.
    #[serde(default = "yes")]
    pub cycle_momentum: bool,
    /// Momentum at the top.
    #[serde(default = "momentum_08")]
    pub base_momentum: f64,
    /// Momentum at the bottom.
    #[serde(default = "momentum_09")]
    pub max_momentum: f64,
}

/// How the height of `CyclicLR`'s cycles changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CyclicMode {
    /// It does not.
    #[default]
    Triangular,
    /// It halves with every cycle.
    Triangular2,
    /// It is `gamma` to the power of the step.
    ExpRange,
}

impl SchedulerSpec {
    /// The names, as `torch.optim.lr_scheduler` has them, and two more.
    pub const NAMES: [&'static str; 12] = [
        "ConstantLR",
        "LinearLR",
        "StepLR",
        "MultiStepLR",
        "ExponentialLR",
        "PolynomialLR",
        "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts",
        "OneCycleLR",
        "CyclicLR",
        "CosineWarmupScheduler",
        "LinearWarmupScheduler",
    ];

    /// The schedule of this name with these keyword arguments of its class.
    pub fn named(name: &str, settings: Map<String, Value>) -> Result<Self> {
        let spec: Self = named("scheduler", &Self::NAMES, name, settings)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ConstantLR { .. } => "ConstantLR",
            Self::LinearLR { .. } => "LinearLR",
            Self::StepLR { .. } => "StepLR",
            Self::MultiStepLR { .. } => "MultiStepLR",
            Self::ExponentialLR { .. } => "ExponentialLR",
            Self::PolynomialLR { .. } => "PolynomialLR",
            Self::CosineAnnealingLR { .. } => "CosineAnnealingLR",
            Self::CosineAnnealingWarmRestarts { .. } => "CosineAnnealingWarmRestarts",
            Self::OneCycleLR(_) => "OneCycleLR",
            Self::CyclicLR(_) => "CyclicLR",
            Self::CosineWarmupScheduler { .. } => "CosineWarmupScheduler",
            Self::LinearWarmupScheduler { .. } => "LinearWarmupScheduler",
        }
    }

    /// Whether the settings are in the ranges that torch allows; the error names the first that is not.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::ConstantLR { factor, .. } => check("factor", *factor, (0.0..=1.0).contains(factor), "in [0, 1]"),
            Self::LinearLR { start_factor, end_factor, total_iters } => {
                check("start_factor", *start_factor, *start_factor > 0.0 && *start_factor <= 1.0, "in (0, 1]")?;
                check("end_factor", *end_factor, (0.0..=1.0).contains(end_factor), "in [0, 1]")?;
                at_least_one("total_iters", *total_iters)
            }
            Self::StepLR { step_size, gamma } => {
                at_least_one("step_size", *step_size)?;
                finite("gamma", *gamma)
            }
            Self::MultiStepLR { gamma, .. } | Self::ExponentialLR { gamma } => finite("gamma", *gamma),
            Self::PolynomialLR { total_iters, power } => {
                at_least_one("total_iters", *total_iters)?;
                finite("power", *power)
            }
            Self::CosineAnnealingLR { t_max, eta_min } => {
                at_least_one("T_max", *t_max)?;
                finite("eta_min", *eta_min)
            }
            Self::CosineAnnealingWarmRestarts { t_0, t_mult, eta_min } => {
                at_least_one("T_0", *t_0)?;
                at_least_one("T_mult", *t_mult)?;
                finite("eta_min", *eta_min)
            }
            Self::OneCycleLR(cycle) => cycle.validate(),
            Self::CyclicLR(cyclic) => cyclic.validate(),
            Self::CosineWarmupScheduler { num_cycles, .. } => finite("num_cycles", *num_cycles),
            Self::LinearWarmupScheduler { .. } => Ok(()),
        }
    }
}

impl OneCycle {
    /// Steps of the whole cycle.
    #[must_use]
    pub const fn steps(&self) -> Option<u64> {
        match (self.total_steps, self.epochs, self.steps_per_epoch) {
            (Some(steps), _, _) => Some(steps),
            (None, Some(epochs), Some(steps)) => epochs.checked_mul(steps),
            _ => None,
        }
    }

    fn validate(&self) -> Result<()> {
        finite("max_lr", self.max_lr)?;
        let Some(steps) = self.steps() else {
            return Err(Error::invalid("`OneCycleLR` needs `total_steps`, or `epochs` and `steps_per_epoch`"));
        };
        at_least_one("total_steps", steps)?;
        check("pct_start", self.pct_start, (0.0..=1.0).contains(&self.pct_start), "in [0, 1]")?;
        check("div_factor", self.div_factor, self.div_factor > 0.0, "above 0")?;
        check("final_div_factor", self.final_div_factor, self.final_div_factor > 0.0, "above 0")?;
        momentum("base_momentum", self.base_momentum)?;
        momentum("max_momentum", self.max_momentum)
    }
}

impl Cyclic {
    fn validate(&self) -> Result<()> {
        finite("base_lr", self.base_lr)?;
        finite("max_lr", self.max_lr)?;
        finite("gamma", self.gamma)?;
        at_least_one("step_size_up", self.step_size_up)?;
        at_least_one("step_size_down", self.step_size_down.unwrap_or(self.step_size_up))?;
        momentum("base_momentum", self.base_momentum)?;
        momentum("max_momentum", self.max_momentum)
    }
}

fn at_least_one(name: &str, value: u64) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(Error::invalid(format!("`{name}` is 0, but must be at least 1"))) }
}

fn momentum(name: &str, value: f64) -> Result<()> {
    check(name, value, (0.0..1.0).contains(&value), "in [0, 1)")
}

fn finite(name: &str, value: f64) -> Result<()> {
    check(name, value, true, "a finite number")
}

fn check(name: &str, value: f64, allowed: bool, range: &str) -> Result<()> {
    if allowed && value.is_finite() {
        return Ok(());
    }
    Err(Error::invalid(format!("`{name}` is {value}, but must be {range}")))
}

// serde takes defaults as functions.
const fn third() -> f64 {
    1.0 / 3.0
}
const fn half() -> f64 {
    0.5
}
const fn tenth() -> f64 {
    0.1
}
const fn three_tenths() -> f64 {
    0.3
}
const fn one() -> f64 {
    1.0
}
const fn twenty_five() -> f64 {
    25.0
}
const fn ten_thousand() -> f64 {
    1e4
}
const fn momentum_08() -> f64 {
    0.8
}
const fn momentum_085() -> f64 {
    0.85
}
const fn momentum_09() -> f64 {
    0.9
}
const fn momentum_095() -> f64 {
    0.95
}
const fn once() -> u64 {
    1
}
const fn five() -> u64 {
    5
}
const fn two_thousand() -> u64 {
    2000
}
const fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn named(name: &str, settings: &Value) -> Result<SchedulerSpec> {
        SchedulerSpec::named(name, settings.as_object().cloned().unwrap_or_default())
    }

    #[test]
    fn keyword_arguments_of_torch_make_a_schedule() {
        let cosine = named("CosineAnnealingLR", &json!({ "T_max": 10 })).unwrap();
        assert_eq!(cosine, SchedulerSpec::CosineAnnealingLR { t_max: 10, eta_min: 0.0 });
        let SchedulerSpec::OneCycleLR(cycle) =
            named("OneCycleLR", &json!({ "max_lr": 1, "epochs": 2, "steps_per_epoch": 5 })).unwrap()
        else {
            panic!("another schedule");
        };
        assert_eq!((cycle.steps(), cycle.anneal_strategy), (Some(10), Anneal::Cos));
    }

    #[test]
    fn what_is_wrong_with_a_schedule_is_named() {
        let wrong = |name: &str, value: Value| named(name, &value).unwrap_err().to_string();
        assert!(wrong("CosineAnnealing", json!({})).contains("did you mean `CosineAnnealingLR`?"));
        assert!(wrong("StepLR", json!({})).contains("`step_size`"), "{}", wrong("StepLR", json!({})));
        assert!(wrong("StepLR", json!({ "step_size": 0 })).contains("`step_size` is 0"));
        assert!(wrong("LinearLR", json!({ "begin": 0 })).contains("`begin`"));
        assert!(wrong("OneCycleLR", json!({ "max_lr": 1 })).contains("`total_steps`"));
    }

    #[cfg(feature = "node")]
    #[test]
    fn a_schedule_survives_the_journal() {
        let milestones = named("MultiStepLR", &json!({ "milestones": [3, 3, 7] })).unwrap();
        let cyclic = named("CyclicLR", &json!({ "base_lr": 0.1, "max_lr": 0.3, "mode": "exp_range" })).unwrap();
        for spec in [milestones, cyclic] {
            let bytes = rmp_serde::to_vec_named(&spec).unwrap();
            assert_eq!(rmp_serde::from_slice::<SchedulerSpec>(&bytes).unwrap(), spec);
        }
    }
}
