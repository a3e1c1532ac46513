//! The policy-gradient losses that are sums over tokens: GRPO, PPO, SAPO, CISPO, BNPO and DR-GRPO.
//!
//! With the ratio `r = exp(clamp(l − old, ±20))` of the policy that trains to the one that sampled and the advantage A:
//!
//! * `GRPOLoss` (Shao et al. 2024, arXiv:2402.03300), `PPOLoss` (Schulman et al. 2017, arXiv:1707.06347), `BNPOLoss` (Xiao
//!   et al. 2025, arXiv:2506.02864) and `DRGRPOLoss` (Liu et al. 2025, arXiv:2503.20783):
//!   `t = −min(r A, clamp(r, 1 − ε, 1 + ε_high) A)`;
//! * `SAPOLoss` (Gao et al. 2025, arXiv:2511.20347): `t = −A · σ(τ (r − 1)) · 4 / τ`, with a τ for each sign of A;
//! * `CISPOLoss` (Chen et al. 2025, arXiv:2506.13585): `t = −sg(min(r, 1 + ε)) A l`.
//!
//! To each is added `β (e^{ref − l} − (ref − l) − 1)`, Schulman's k3 estimate of the divergence from a reference, and
//! `−entropy_coef · H`. They differ in what they are divided by ([`Mean`]). Without `old_logps` the policy is its own, r = 1;
//! without `advantages` there is nothing to learn, and the loss is 0.

use twinkle_core::{Error, Result};
use twinkle_nn::RowFacts;

use super::columns::{self, MASK, WEIGHT, optional};
use super::settings::Settings;
use crate::batch::Example;
use crate::losses::{Column, Inputs, Loss, PerRow, PerToken, RowOptions, RowView, Scope, TokenLoss};

/// The settings that all of them have.
pub(super) const SETTINGS: &[&str] = &["epsilon", "epsilon_high", "beta", "entropy_coef"];
/// The inputs of all of them.
pub(super) const COLUMNS: &[Column] = &[MASK, optional("old_logps"), optional("ref_logps"), optional("advantages")];
const OLD: usize = 1;
const REFERENCE: usize = 2;
const ADVANTAGE: usize = 3;
/// The logarithm of a ratio stays within ± this.
const LARGEST_LOG_RATIO: f64 = 20.0;

/// What is made of a ratio and an advantage.
#[derive(Clone, Copy, Debug)]
pub(super) enum Surrogate {
    /// The smaller of `r A` and the clipped ratio's, as bounds of the ratio.
    Clipped {
        /// `1 − ε`.
        low: f64,
        /// `1 + ε_high`.
        high: f64,
    },
    /// A smooth gate, its sharpness by the sign of A.
    Gated {
        /// For A above 0.
        positive: f64,
        /// For the others.
        negative: f64,
    },
    /// The logprob itself, weighted by a ratio of at most this.
    Weighted(f64),
}

/// What a sum over tokens is divided by.
#[derive(Clone, Copy, Debug)]
enum Mean {
    /// The tokens of each sequence, and then the sequences.
    Sequences,
    /// All tokens.
    Tokens,
    /// This many tokens.
    Items(f64),
    /// The sequences times this length.
    Length(f64),
}

struct Policy {
    surrogate: Surrogate,
    mean: Mean,
    penalties: Penalties,
}

/// What is added to every token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Penalties {
    /// Of the divergence from the reference.
    pub(super) beta: f64,
    /// Of the entropy, which is wanted.
    pub(super) entropy_coef: f64,
}

impl Penalties {
    pub(super) fn read(settings: &Settings) -> Result<Self> {
        Ok(Self { beta: settings.amount("beta", 0.0)?, entropy_coef: settings.amount("entropy_coef", 0.0)? })
    }
}

/// The bounds of the ratio.
pub(super) fn clipped(settings: &Settings) -> Result<Surrogate> {
    let epsilon = settings.amount("epsilon", 0.2)?;
    Ok(Surrogate::Clipped { low: 1.0 - epsilon, high: 1.0 + settings.amount("epsilon_high", epsilon)? })
}

pub(super) fn grpo(settings: &Settings) -> Result<Box<dyn Loss>> {
    policy(settings, clipped(settings)?, Mean::Sequences)
}

pub(super) fn ppo(settings: &Settings) -> Result<Box<dyn Loss>> {
    let mode = settings.word("loss_agg_mode", "token-mean", &["token-mean", "seq-mean-token-mean"])?;
    policy(settings, clipped(settings)?, if mode == "token-mean" { Mean::Tokens } else { Mean::Sequences })
}

pub(super) fn bnpo(settings: &Settings) -> Result<Box<dyn Loss>> {
    policy(settings, clipped(settings)?, Mean::Tokens)
}

pub(super) fn drgrpo(settings: &Settings) -> Result<Box<dyn Loss>> {
    let length = settings.count("max_completion_length", 1024.0)?;
    policy(settings, clipped(settings)?, Mean::Length(length))
}

pub(super) fn sapo(settings: &Settings) -> Result<Box<dyn Loss>> {
    let gated =
        Surrogate::Gated { positive: settings.positive("tau_pos", 1.0)?, negative: settings.positive("tau_neg", 1.0)? };
    policy(settings, gated, Mean::Sequences)
}

pub(super) fn cispo(settings: &Settings) -> Result<Box<dyn Loss>> {
    let weighted = Surrogate::Weighted(1.0 + settings.amount("epsilon", 0.2)?);
    let items = settings.given("num_items_in_batch")?.map(|_| settings.positive("num_items_in_batch", 1.0));
    policy(settings, weighted, items.transpose()?.map_or(Mean::Tokens, Mean::Items))
}

fn policy(settings: &Settings, surrogate: Surrogate, mean: Mean) -> Result<Box<dyn Loss>> {
    Ok(Box::new(Policy { surrogate, mean, penalties: Penalties::read(settings)? }))
}

impl Loss for Policy {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(COLUMNS)
    }

    fn scope(&self) -> Scope<'_> {
        if self.penalties.entropy_coef > 0.0 { Scope::Row(self) } else { Scope::Token(self) }
    }

    fn known_inputs(&self) -> &'static [&'static str] {
        super::INPUTS
    }

    fn row_options(&self) -> RowOptions {
        RowOptions { facts: self.penalties.entropy_coef > 0.0, softcap: None }
    }

    fn check(&self, example: &Example) -> Result<()> {
        columns::check_mask(example, COLUMNS.len())
    }

    fn prepare(&self, examples: &mut [Example]) -> Result<()> {
        check_advantages(examples)?;
        let sequences = examples.len() as f64;
        let tokens = columns::counted_in_all(examples, COLUMNS.len());
        for example in examples {
            let divisor = match self.mean {
                Mean::Sequences => sequences * columns::counted(example, COLUMNS.len()).max(1.0),
                Mean::Tokens => tokens,
                Mean::Items(items) => items,
                Mean::Length(length) => sequences * length,
            };
            columns::divide(example, COLUMNS.len(), divisor);
        }
        Ok(())
    }
}

impl PerToken for Policy {
    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let Some(position) = Position::of(logprob, inputs) else { return TokenLoss::MASKED };
        let (log_ratio, slope) = position.log_ratio();
        let (value, by_ratio) = self.surrogate.of(log_ratio, position.advantage, position.logprob);
        let (penalty, by_penalty) = position.divergence(self.penalties.beta);
        let derivative = match self.surrogate {
            Surrogate::Weighted(_) => by_ratio,
            _ => by_ratio * slope,
        };
        TokenLoss {
            value: (position.weight * (value + penalty)) as f32,
            derivative: (position.weight * (derivative + by_penalty)) as f32,
        }
    }
}

impl PerRow for Policy {
    fn row(&self, row: RowView, derivatives: &mut [f32], by_facts: &mut RowFacts) -> f64 {
        let Some(position) = Position::of(row.logprobs[0], row.inputs) else { return 0.0 };
        let token = self.token(row.logprobs[0], row.inputs);
        let bonus = position.weight * self.penalties.entropy_coef;
        derivatives[0] = token.derivative;
        by_facts.entropy = -bonus as f32;
        f64::from(token.value) - bonus * f64::from(row.facts.entropy)
    }
}

impl Surrogate {
    /// `t` and its derivative by the logarithm of the ratio, of [`Surrogate::Weighted`] by the logprob.
    pub(super) fn of(self, log_ratio: f64, advantage: f64, logprob: f64) -> (f64, f64) {
        let ratio = log_ratio.exp();
        match self {
            Self::Clipped { low, high } => {
                let (free, bound) = (ratio * advantage, ratio.clamp(low, high.max(low)) * advantage);
                // The bound is constant in the ratio where it is smaller.
                if free <= bound { (-free, -free) } else { (-bound, 0.0) }
            }
            Self::Gated { positive, negative } => {
                let tau = if advantage > 0.0 { positive } else { negative };
                let gate = sigmoid(tau * (ratio - 1.0));
                (-advantage * gate * 4.0 / tau, -advantage * 4.0 * gate * (1.0 - gate) * ratio)
            }
            Self::Weighted(most) => {
                let weight = ratio.min(most) * advantage;
                (-weight * logprob, -weight)
            }
        }
    }
}

/// A target that counts.
pub(super) struct Position {
    pub(super) weight: f64,
    pub(super) logprob: f64,
    pub(super) advantage: f64,
    old: Option<f64>,
    reference: Option<f64>,
}

impl Position {
    /// `None`: it does not count, or there are no advantages.
    pub(super) fn of(logprob: f32, inputs: &[f32]) -> Option<Self> {
        let given = |place: usize| Some(f64::from(inputs[place])).filter(|value| !value.is_nan());
        let weight = f64::from(inputs[WEIGHT]);
        let advantage = given(ADVANTAGE).filter(|_| weight != 0.0)?;
        Some(Self { weight, logprob: logprob.into(), advantage, old: given(OLD), reference: given(REFERENCE) })
    }

    /// `clamp(l − old, ±20)` and its derivative by l.
    pub(super) fn log_ratio(&self) -> (f64, f64) {
        let difference = self.old.map_or(0.0, |old| self.logprob - old);
        let is_inside = difference.abs() <= LARGEST_LOG_RATIO;
        (difference.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO), if is_inside { 1.0 } else { 0.0 })
    }

    /// `β (e^{ref − l} − (ref − l) − 1)` and its derivative by l.
    pub(super) fn divergence(&self, beta: f64) -> (f64, f64) {
        let Some(reference) = self.reference.filter(|_| beta > 0.0) else { return (0.0, 0.0) };
        let difference = reference - self.logprob;
        let ratio = difference.exp();
        (beta * (ratio - difference - 1.0), beta * (1.0 - ratio))
    }
}

/// Either every sequence has advantages or none.
pub(super) fn check_advantages(examples: &[Example]) -> Result<()> {
    let lacks = |example: &Example| example.inputs.get(ADVANTAGE).is_some_and(|value| value.is_nan());
    let count = examples.iter().filter(|example| lacks(example)).count();
    match examples.iter().position(lacks) {
        Some(datum) if count < examples.len() => {
            Err(Error::invalid(format!("datum {datum} has no `advantages`, but others have"))
                .hint("send advantages for every sequence, or for none"))
        }
        _ => Ok(()),
    }
}

pub(super) fn sigmoid(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}
