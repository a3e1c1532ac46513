//! What is done with accumulated gradients.

use serde::{Deserialize, Serialize};

/// `AdamW` settings of one step (Loshchilov & Hutter 2019); every field may change from step to step.
/// A setting that is not here would change the step: it is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct AdamParams {
    /// Learning rate, at least 0.
    pub learning_rate: f64,
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down; 0 turns clipping off.
    pub grad_clip_norm: f64,
}

impl Default for AdamParams {
    fn default() -> Self {
        Self { learning_rate: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-12, weight_decay: 0.0, grad_clip_norm: 0.0 }
    }
}

/// What is done with a run's accumulated gradients and its optimizer, in the order of the fields. All or nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a part of the work, and they go together in any combination"
)]
pub struct OptimizerWork {
    /// What every gradient is divided by: the tokens they are a sum over, for a mean.
    pub divide_by: f64,
    /// Scales the gradients down to a norm; with `None` they stay as they are.
    pub clip: Option<GradientClip>,
    /// Settings that change from here on.
    pub overrides: OptimizerOverrides,
    /// Takes a step with the run's optimizer.
    pub step: bool,
    /// Sets the gradients to zero.
    pub zero_gradients: bool,
    /// Lets the run's schedule set the next learning rate; nothing happens where there is none.
    pub step_scheduler: bool,
    /// Divides by the tokens counted since the gradients were last divided or set to zero, in place of `divide_by`.
    #[serde(skip_serializing_if = "is_unset")]
    pub normalise: bool,
    /// Does nothing unless as many backward passes have come together as an update takes.
    #[serde(skip_serializing_if = "is_unset")]
    pub only_at_boundary: bool,
    /// From here on an update takes so many backward passes, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accumulation_steps: Option<u64>,
}

/// What older servers do not know is written only where it is used.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_unset(flag: &bool) -> bool {
    !*flag
}

impl Default for OptimizerWork {
    fn default() -> Self {
        Self {
            divide_by: 1.0,
            clip: None,
            overrides: OptimizerOverrides::default(),
            step: false,
            zero_gradients: false,
            step_scheduler: false,
            normalise: false,
            only_at_boundary: false,
            accumulation_steps: None,
        }
    }
}

impl OptimizerWork {
    /// A name for logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self { step: true, clip: Some(_), .. } => "clip_grad_and_step",
            Self { step: true, .. } => "step",
            Self { clip: Some(_), .. } => "clip_grad_norm",
            Self { step_scheduler: true, .. } => "lr_step",
            Self { .. } => "zero_grad",
        }
    }
}

/// How gradients are clipped: all together, by `torch.nn.utils.clip_grad_norm_`'s rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradientClip {
    /// The largest norm that is left alone.
    pub max_norm: f64,
    /// Which norm.
    #[serde(default)]
    pub norm: GradientNorm,
}

/// A norm of all gradients together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientNorm {
    /// Euclid's.
    #[default]
    Two,
    /// The largest gradient's size.
    Infinity,
}

/// Settings of a run's optimizer that change; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerOverrides {
    /// Learning rate.
    pub lr: Option<f64>,
    /// Decay of the two moments.
    pub betas: Option<[f64; 2]>,
    /// Added to the denominator.
    pub eps: Option<f64>,
    /// Weight decay.
    pub weight_decay: Option<f64>,
}
