//! Losses: each is a function from the targets' logprobs to a value and a derivative.
//!
//! With `t = log p(target)` of a token, a loss gives `L(t)` and `dL/dt`; the head turns the derivative
//! into gradients without ever holding a `[tokens × vocabulary]` tensor. All losses are **sums** over
//! tokens and datums: no averaging anywhere. What a loss must see before it knows a derivative is its
//! [`Scope`]: one token, a datum, or the whole batch. To add one, write its page and name it in
//! `registry.rs`.

mod cispo;
mod cross_entropy;
pub mod custom;
mod dro;
mod gspo;
mod importance_sampling;
mod metrics;
mod policy;
mod ppo;
mod registry;

use std::collections::BTreeMap;

use twinkle_core::Result;

use crate::batch::Example;

pub use metrics::Tally;
pub(crate) use policy::check_is_read;
pub use registry::{KNOWN_INPUTS, build, names};

/// A loss with its settings.
pub trait Loss: Send + Sync {
    /// What it reads of a datum besides `target_tokens`.
    fn inputs(&self) -> Inputs<'_>;

    /// What it must see before it knows a derivative, and how it is asked.
    fn scope(&self) -> Scope<'_>;

    /// Whether `target_tokens` may have several candidates per position, `[tokens × candidates]`.
    fn takes_candidates(&self) -> bool {
        false
    }

    /// Checks what no single input shows, such as bounds in the wrong order. The text names the mistake; the caller
    /// names the datum.
    fn check(&self, _example: &Example) -> Result<()> {
        Ok(())
    }

    /// Adds what this datum has to say to the metrics. Called once per datum, in order.
    fn observe(&self, _datum: DatumView, _tally: &mut Tally) {}
}

/// What a loss reads of a datum besides `target_tokens`.
#[derive(Clone, Copy, Debug)]
pub enum Inputs<'a> {
    /// One number per target each, checked and laid side by side.
    Columns(&'a [Column]),
    /// Everything the client sent under the names it gave, checked by [`Loss::check`] only.
    AsSent,
}

impl Inputs<'_> {
    /// How many numbers each target has in [`Example::inputs`].
    #[must_use]
    pub const fn columns(&self) -> usize {
        match self {
            Self::Columns(columns) => columns.len(),
            Self::AsSent => 0,
        }
    }
}

/// An input of a loss with one number per target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// Its name in `loss_fn_inputs`.
    pub name: &'static str,
    /// What every target has when the client sends none; `None`: it must be sent.
    pub default: Option<f32>,
}

/// What a loss must see before it knows a derivative. The wider it is, the more often the device computes the same.
#[derive(Clone, Copy)]
pub enum Scope<'a> {
    /// One token: fused into the head.
    Token(&'a dyn PerToken),
    /// All logprobs of a datum: the head runs twice.
    Sequence(&'a dyn PerSequence),
    /// All logprobs of the request: the whole network runs twice.
    Batch(&'a dyn PerBatch),
}

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

/// A sum of functions of one token each.
pub trait PerToken {
    /// Value and derivative at one target with this logprob and these inputs, in the order of the columns.
    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss;
}

/// A sum of functions of one datum each.
pub trait PerSequence {
    /// The datum's value; writes the derivative by each of its logprobs.
    fn sequence(&self, datum: DatumView, derivatives: &mut [f32]) -> f64;
}

/// Any function of all logprobs of a request.
pub trait PerBatch {
    /// Value and derivatives of the whole request. An error is the user's and leaves the run as it was.
    fn batch(&self, data: &[DatumView]) -> Result<WholeLoss>;
}

/// A datum whose logprobs are known.
#[derive(Clone, Copy, Debug)]
pub struct DatumView<'a> {
    /// What was sent.
    pub example: &'a Example,
    /// `log p` of each target, row-major `[tokens × candidates]`.
    pub logprobs: &'a [f32],
}

/// What a loss makes of a whole request.
#[derive(Clone, Debug, PartialEq)]
pub struct WholeLoss {
    /// The value.
    pub value: f64,
    /// Per datum its derivative by each logprob, `[tokens × candidates]`.
    pub derivatives: Vec<Vec<f32>>,
    /// More metrics, keys as `name:reduction`.
    pub metrics: BTreeMap<String, f64>,
}

#[cfg(test)]
mod tests;
