//! The losses of pairs: the even datums are chosen, each followed by the one that was rejected.
//!
//! With `s = Σ l` over a sequence's mask, `a = s / |m|` and the same of a reference:
//!
//! * `DPOLoss` (Rafailov et al. 2023, arXiv:2305.18290), margin `z = β ((s_c − ref_c) − (s_r − ref_r))`: `−log σ(z)`, smoothed
//!   by ε to `−(1 − ε) log σ(z) − ε log σ(−z)`; `hinge` (Zhao et al. 2023): `max(0, 1 − z)`; `ipo` (Azar et al. 2023,
//!   arXiv:2310.12036): `(z − 1 / (2 β))²`; `kto_pair` (after Ethayarajh et al. 2024, arXiv:2402.01306):
//!   `1 − σ(β (s_c − ref_c)) + σ(β (s_r − ref_r))`; with `sft_weight`, `+ w · NLL`;
//! * `SimPOLoss` (Meng et al. 2024, arXiv:2405.14734): `−log σ(β (a_c − a_r) − γ)`;
//! * `CPOLoss` (Xu et al. 2024, arXiv:2401.08417): `−log σ(β (s_c − s_r)) + bc · NLL`;
//! * `ORPOLoss` (Hong et al. 2024, arXiv:2403.07691): `NLL − λ log σ(o_c − o_r)`, `o = a − log(1 − eᵃ)`.
//!
//! Each is a mean over the pairs; `NLL` is the mean of −l over all chosen targets that count. Without a reference DPO is 0,
//! unless it is `reference_free`.

use twinkle_core::{Error, Result};

use super::columns::{self, MASK, WEIGHT, optional, prepared};
use super::policy::sigmoid;
use super::settings::Settings;
use crate::batch::Example;
use crate::losses::{Column, DatumView, Inputs, Loss, PerGroup, Scope};

const COLUMNS: &[Column] = &[MASK, optional("ref_logps"), prepared("pair_weight"), prepared("nll_weight")];
const REFERENCE: usize = 1;
/// One part of all pairs.
const PAIR_WEIGHT: usize = 2;
/// Of the target's negative log-likelihood.
const NLL_WEIGHT: usize = 3;
/// Mean logprobs of a sequence above this are taken for it, where `log(1 − eᵃ)` would be −∞.
const LARGEST_MEAN: f64 = -1e-7;

struct Preference {
    objective: Objective,
    /// Of the chosen sequences' negative log-likelihood.
    nll_weight: f64,
}

enum Objective {
    Dpo { beta: f64, kind: DpoKind, reference_free: bool },
    SimPo { beta: f64, gamma: f64 },
    Cpo { beta: f64 },
    Orpo { lambda: f64 },
}

enum DpoKind {
    Sigmoid { smoothing: f64 },
    Hinge,
    Ipo,
    KtoPair,
}

pub(super) fn dpo(settings: &Settings) -> Result<Box<dyn Loss>> {
    let smoothing = settings.share("label_smoothing", 0.0)?;
    let name = settings.word("loss_type", "sigmoid", &["sigmoid", "hinge", "ipo", "kto_pair"])?;
    let kind = match name {
        "hinge" => DpoKind::Hinge,
        "ipo" => DpoKind::Ipo,
        "kto_pair" => DpoKind::KtoPair,
        _ => DpoKind::Sigmoid { smoothing },
    };
    if smoothing > 0.0 && !matches!(kind, DpoKind::Sigmoid { .. }) {
        return Err(Error::invalid(format!("`label_smoothing` has no meaning for the `loss_type` `{name}`"))
            .hint("leave it at 0, or take the `loss_type` `sigmoid`"));
    }
    let objective = Objective::Dpo {
        beta: settings.positive("beta", 0.1)?,
        kind,
        reference_free: settings.flag("reference_free", false)?,
    };
    Ok(Box::new(Preference { objective, nll_weight: settings.amount("sft_weight", 0.0)? }))
}

pub(super) fn simpo(settings: &Settings) -> Result<Box<dyn Loss>> {
    let objective = Objective::SimPo { beta: settings.positive("beta", 2.5)?, gamma: settings.number("gamma", 0.5)? };
    Ok(Box::new(Preference { objective, nll_weight: 0.0 }))
}

pub(super) fn cpo(settings: &Settings) -> Result<Box<dyn Loss>> {
    let objective = Objective::Cpo { beta: settings.positive("beta", 0.1)? };
    Ok(Box::new(Preference { objective, nll_weight: settings.amount("bc_coef", 1.0)? }))
}

pub(super) fn orpo(settings: &Settings) -> Result<Box<dyn Loss>> {
    let objective = Objective::Orpo { lambda: settings.amount("lambda_orpo", 0.1)? };
    Ok(Box::new(Preference { objective, nll_weight: 1.0 }))
}

impl Loss for Preference {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(COLUMNS)
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Group(self, 2)
    }

    fn known_inputs(&self) -> &'static [&'static str] {
        super::INPUTS
    }

    fn check(&self, example: &Example) -> Result<()> {
        columns::check_mask(example, COLUMNS.len())
    }

    fn prepare(&self, examples: &mut [Example]) -> Result<()> {
        if examples.len() % 2 == 1 {
            return Err(Error::invalid(format!("there are {} sequences, which are no pairs", examples.len()))
                .hint("send each chosen sequence followed by the rejected one"));
        }
        let lacks = |example: &Example| example.inputs.get(REFERENCE).is_some_and(|value| value.is_nan());
        let count = examples.iter().filter(|example| lacks(example)).count();
        if self.reads_reference() && count > 0 && count < examples.len() {
            return Err(Error::invalid(format!("{count} of {} sequences have no `ref_logps`", examples.len()))
                .hint("send reference logprobs for every sequence, or for none"));
        }
        let pair_weight = 2.0 / examples.len().max(1) as f64;
        let chosen: f64 = examples.iter().step_by(2).map(|chosen| columns::counted(chosen, COLUMNS.len())).sum();
        // Where the whole loss is 0 for want of a reference, so is this part of it.
        let is_nothing = self.reads_reference() && count > 0;
        let nll_weight = if is_nothing { 0.0 } else { self.nll_weight / chosen.max(1.0) };
        for (place, example) in examples.iter_mut().enumerate() {
            for inputs in example.inputs.chunks_mut(COLUMNS.len()) {
                inputs[PAIR_WEIGHT] = pair_weight as f32;
                let is_learned = place.is_multiple_of(2) && inputs[WEIGHT] != 0.0;
                inputs[NLL_WEIGHT] = if is_learned { nll_weight as f32 } else { 0.0 };
            }
        }
        Ok(())
    }
}

/// A sequence as these losses see it.
#[derive(Clone, Copy, Debug, Default)]
struct Sequence {
    /// `s`.
    sum: f64,
    /// `|m|`, at least 1.
    count: f64,
    /// The reference's sum, if there is one.
    reference: Option<f64>,
}

impl Sequence {
    fn of(datum: DatumView) -> Self {
        let (mut sum, mut reference, mut count) = (0.0, 0.0, 0.0);
        for (logprob, inputs) in datum.logprobs.iter().zip(datum.example.inputs.chunks(COLUMNS.len())) {
            if inputs[WEIGHT] != 0.0 {
                sum += f64::from(*logprob);
                reference += f64::from(inputs[REFERENCE]);
                count += 1.0;
            }
        }
        let is_known = datum.example.inputs.get(REFERENCE).is_some_and(|value| !value.is_nan());
        Self { sum, count: f64::max(count, 1.0), reference: is_known.then_some(reference) }
    }

    fn mean(&self) -> f64 {
        self.sum / self.count
    }
}

/// The value of a pair and its derivatives by both sums.
struct PairLoss {
    value: f64,
    by_chosen: f64,
    by_rejected: f64,
}

impl PairLoss {
    const NOTHING: Self = Self { value: 0.0, by_chosen: 0.0, by_rejected: 0.0 };

    /// `−log σ(margin)`, whose derivatives by the sums are the margin's times these.
    fn logistic(margin: f64, by_chosen: f64, by_rejected: f64) -> Self {
        let slope = -sigmoid(-margin);
        Self { value: softplus(-margin), by_chosen: slope * by_chosen, by_rejected: slope * by_rejected }
    }
}

impl Preference {
    fn reads_reference(&self) -> bool {
        matches!(self.objective, Objective::Dpo { reference_free: false, .. })
    }

    fn pair(&self, chosen: &Sequence, rejected: &Sequence) -> PairLoss {
        match &self.objective {
            Objective::Dpo { beta, kind, reference_free } => {
                let references = match (chosen.reference, rejected.reference) {
                    _ if *reference_free => (0.0, 0.0),
                    (Some(chosen), Some(rejected)) => (chosen, rejected),
                    _ => return PairLoss::NOTHING,
                };
                kind.pair(*beta, chosen.sum - references.0, rejected.sum - references.1)
            }
            Objective::SimPo { beta, gamma } => {
                let margin = beta * (chosen.mean() - rejected.mean()) - gamma;
                PairLoss::logistic(margin, beta / chosen.count, -beta / rejected.count)
            }
            Objective::Cpo { beta } => PairLoss::logistic(beta * (chosen.sum - rejected.sum), *beta, -beta),
            Objective::Orpo { lambda } => {
                let ((odds_c, slope_c), (odds_r, slope_r)) = (log_odds(chosen.mean()), log_odds(rejected.mean()));
                let pair = PairLoss::logistic(odds_c - odds_r, slope_c / chosen.count, -slope_r / rejected.count);
                PairLoss {
                    value: lambda * pair.value,
                    by_chosen: lambda * pair.by_chosen,
                    by_rejected: lambda * pair.by_rejected,
                }
            }
        }
    }
}

impl DpoKind {
    /// By how much the policy's sums exceed the reference's.
    fn pair(&self, beta: f64, chosen: f64, rejected: f64) -> PairLoss {
        let z = beta * (chosen - rejected);
        let (value, slope) = match self {
            Self::Sigmoid { smoothing } => (
                (1.0 - smoothing) * softplus(-z) + smoothing * softplus(z),
                smoothing * sigmoid(z) - (1.0 - smoothing) * sigmoid(-z),
            ),
            Self::Hinge => ((1.0 - z).max(0.0), if z < 1.0 { -1.0 } else { 0.0 }),
            Self::Ipo => {
                let distance = z - 1.0 / (2.0 * beta);
                (distance * distance, 2.0 * distance)
            }
            Self::KtoPair => {
                let (up, down) = (sigmoid(beta * chosen), sigmoid(beta * rejected));
                return PairLoss {
                    value: 1.0 - up + down,
                    by_chosen: -beta * up * (1.0 - up),
                    by_rejected: beta * down * (1.0 - down),
                };
            }
        };
        PairLoss { value, by_chosen: beta * slope, by_rejected: -beta * slope }
    }
}

impl PerGroup for Preference {
    fn group(&self, data: &[DatumView], derivatives: &mut [&mut [f32]]) -> f64 {
        let ([chosen, rejected], [by_chosen, by_rejected]) = (data, derivatives) else { return 0.0 };
        let pair = self.pair(&Sequence::of(*chosen), &Sequence::of(*rejected));
        let weight = chosen.example.inputs.get(PAIR_WEIGHT).copied().map_or(0.0, f64::from);
        let mut value = weight * pair.value;
        for (datum, slope, derivatives) in
            [(chosen, pair.by_chosen, by_chosen), (rejected, pair.by_rejected, by_rejected)]
        {
            let cells = datum.logprobs.iter().zip(datum.example.inputs.chunks(COLUMNS.len()));
            for ((logprob, inputs), derivative) in cells.zip(derivatives.iter_mut()) {
                let nll_weight = f64::from(inputs[NLL_WEIGHT]);
                value -= nll_weight * f64::from(*logprob);
                *derivative = (f64::from(inputs[WEIGHT]) * weight * slope - nll_weight) as f32;
            }
        }
        value
    }
}

/// `log(1 + eˣ)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `a − log(1 − eᵃ)` and its derivative.
fn log_odds(mean: f64) -> (f64, f64) {
    let within = mean.min(LARGEST_MEAN);
    let slope = if mean <= LARGEST_MEAN { 1.0 / -within.exp_m1() } else { 1.0 };
    (mean - (-within.exp_m1()).ln(), slope)
}
