//! Losses: each is a function from the targets' logprobs to a value and a derivative.
//!
//! With `t = log p(target)` of a token, a loss gives `L(t)` and `dL/dt`; the head turns the derivative
//! into gradients without ever holding a `[tokens × vocabulary]` tensor. All losses are **sums** over
//! tokens and datums: no averaging anywhere, but for the [`native`] ones, which divide by numbers that
//! are known before the first pass. What a loss must see before it knows a derivative is its
//! [`Scope`]: one token, a datum, or the whole batch. To add one, write its page and name it in
//! `registry.rs`, or in `native/mod.rs`.

mod cispo;
mod cross_entropy;
pub mod custom;
mod dro;
mod gspo;
mod importance_sampling;
mod metrics;
pub mod native;
mod policy;
mod ppo;
mod registry;

use std::collections::BTreeMap;

use twinkle_core::Result;
use twinkle_nn::RowFacts;

use crate::batch::{Example, MAX_CANDIDATES};

pub use metrics::Tally;
pub(crate) use policy::check_is_read;
pub use registry::{KNOWN_INPUTS, build, check_is_tinkers, names};

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

    /// Whether every datum must have `target_tokens`.
    fn needs_targets(&self) -> bool {
        true
    }

    /// Whether an input with one number per position counts for all candidates of the position.
    fn spreads_positions(&self) -> bool {
        false
    }

    /// Most candidates one position may have; `vocabulary` is how many tokens there are.
    fn max_candidates(&self, _vocabulary: usize) -> usize {
        MAX_CANDIDATES
    }

    /// The inputs that a datum may carry: a name outside this list is a mistake.
    fn known_inputs(&self) -> &'static [&'static str] {
        KNOWN_INPUTS
    }

    /// What it reads of a row besides its targets' logprobs.
    fn row_options(&self) -> RowOptions {
        RowOptions::default()
    }

    /// Writes into the examples what depends on the whole request but on no logprob, such as what a mean is divided by.
    /// Called once, before the first pass.
    fn prepare(&self, _examples: &mut [Example]) -> Result<()> {
        Ok(())
    }

    /// What it counts towards the division of gradients: its tokens where it is a sum over tokens, else 0.
    fn num_tokens(&self, _examples: &[Example]) -> f64 {
        0.0
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
    /// One number per datum each, and no targets.
    PerDatum(&'a [Column]),
    /// Everything the client sent under the names it gave, checked by [`Loss::check`] only.
    AsSent,
}

/// What a loss reads of a row besides its targets' logprobs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowOptions {
    /// Whether it reads the [`RowFacts`] of the row.
    pub facts: bool,
    /// Where it keeps logits within bounds first.
    pub softcap: Option<f64>,
}

impl Inputs<'_> {
    /// How many numbers each target has in [`Example::inputs`].
    #[must_use]
    pub const fn columns(&self) -> usize {
        match self {
            Self::Columns(columns) | Self::PerDatum(columns) => columns.len(),
            Self::AsSent => 0,
        }
    }
}

/// An input of a loss with one number per target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// Its name in `loss_fn_inputs`.
    pub name: &'static str,
    /// What every target has when the client sends none; `None`: it must be sent. NaN, which nobody can send, stands for
    /// an input that is not there.
    pub default: Option<f32>,
}

/// What a loss must see before it knows a derivative. The wider it is, the more often the device computes the same.
#[derive(Clone, Copy)]
pub enum Scope<'a> {
    /// One token: fused into the head.
    Token(&'a dyn PerToken),
    /// All candidates of one position: fused into the head as well.
    Row(&'a dyn PerRow),
    /// All logprobs of a datum: the head runs twice.
    Sequence(&'a dyn PerSequence),
    /// All logprobs of so many consecutive datums, which go through the network in one pass: the head runs twice.
    Group(&'a dyn PerGroup, usize),
    /// All logprobs of the request: the whole network runs twice.
    Batch(&'a dyn PerBatch),
    /// One vector for each datum of the request: the network runs once if one pass takes all data, else twice, and the
    /// head not at all.
    Embeddings(&'a dyn PerEmbedding),
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

/// A sum of functions of one position each, of all its candidates.
pub trait PerRow {
    /// The value at one position; writes the derivative by each logprob and by each of the row's facts.
    fn row(&self, row: RowView, derivatives: &mut [f32], by_facts: &mut RowFacts) -> f64;
}

/// A position whose logprobs are known.
#[derive(Clone, Copy, Debug)]
pub struct RowView<'a> {
    /// `log p` of each candidate.
    pub logprobs: &'a [f32],
    /// Row-major `[candidates × columns]`.
    pub inputs: &'a [f32],
    /// The row's distribution; zeros unless [`RowOptions::facts`] asks for it.
    pub facts: RowFacts,
}

/// A sum of functions of one datum each.
pub trait PerSequence {
    /// The datum's value; writes the derivative by each of its logprobs.
    fn sequence(&self, datum: DatumView, derivatives: &mut [f32]) -> f64;

    /// Writes the derivative by the facts of each of its rows, if it reads them.
    fn by_facts(&self, _datum: DatumView, _derivatives: &mut [RowFacts]) {}
}

/// A sum of functions of so many consecutive datums each.
pub trait PerGroup {
    /// The value of one group; writes the derivative by each logprob of each of its datums.
    fn group(&self, data: &[DatumView], derivatives: &mut [&mut [f32]]) -> f64;
}

/// Any function of all logprobs of a request.
pub trait PerBatch {
    /// Value and derivatives of the whole request. An error is the user's and leaves the run as it was.
    fn batch(&self, data: &[DatumView]) -> Result<WholeLoss>;
}

/// Any function of the datums' embeddings.
pub trait PerEmbedding {
    /// Value and derivatives, per datum by each number of its embedding. An error is the user's and leaves the run as it
    /// was.
    fn embeddings(&self, data: &[EmbeddingView]) -> Result<WholeLoss>;
}

/// A datum as one vector.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingView<'a> {
    /// What was sent.
    pub example: &'a Example,
    /// Its embedding, of length 1.
    pub embedding: &'a [f32],
}

/// A datum whose logprobs are known.
#[derive(Clone, Copy, Debug)]
pub struct DatumView<'a> {
    /// What was sent.
    pub example: &'a Example,
    /// `log p` of each target, row-major `[tokens × candidates]`.
    pub logprobs: &'a [f32],
    /// One per token; empty unless [`RowOptions::facts`] asks for it.
    pub facts: &'a [RowFacts],
}

/// What a loss makes of a whole request.
#[derive(Clone, Debug, PartialEq)]
pub struct WholeLoss {
    /// The value.
    pub value: f64,
    /// Per datum its derivative by each logprob, `[tokens × candidates]`, or by each number of its embedding.
    pub derivatives: Vec<Vec<f32>>,
    /// More metrics, keys as `name:reduction`.
    pub metrics: BTreeMap<String, f64>,
}

#[cfg(test)]
mod tests;
