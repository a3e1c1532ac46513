//! `GKDLoss` (Agarwal et al. 2023, on-policy distillation, arXiv:2306.13649): the divergence from a teacher, in its mean over
//! the positions that count.
//!
//! Student S and teacher T are distributions over the candidates of a position: `log S = log_softmax(l / temperature)`,
//! `log T = log_softmax(teacher_logprobs / temperature)`, where teacher logits do as well as logprobs. β = 0 is
//! `KL(T ‖ S)`, β = 1 is `KL(S ‖ T)`, and between them `β KL(T ‖ M) + (1 − β) KL(S ‖ M)` with `M = (1 − β) S + β T`.
//!
//! A candidate whose `candidate_mask` is 0 belongs to neither distribution: a label may stand beside the teacher's candidates
//! to learn its logprob. `chunk_size` changes nothing here; rows go through the head a window at a time in any case.

use twinkle_core::{Error, Result};
use twinkle_nn::RowFacts;

use super::columns::{self, MASK, WEIGHT};
use super::settings::Settings;
use crate::batch::Example;
use crate::losses::{Column, Inputs, Loss, PerRow, RowView, Scope};

const COLUMNS: &[Column] =
    &[MASK, Column { name: "teacher_logprobs", default: None }, Column { name: "candidate_mask", default: Some(1.0) }];
const TEACHER: usize = 1;
const CANDIDATE: usize = 2;

struct Distillation {
    beta: f64,
    temperature: f64,
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    settings.count("chunk_size", 512.0)?;
    let (beta, temperature) = (settings.share("beta", 0.5)?, settings.positive("temperature", 1.0)?);
    Ok(Box::new(Distillation { beta, temperature }))
}

/// The `k` largest of a teacher's logits, in descending order, with their tokens; of equal ones the smaller token first.
#[must_use]
pub fn likeliest(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0_u32..).zip(logits.iter().copied()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let k = k.min(all.len());
    if k > 0 && k < all.len() {
        all.select_nth_unstable_by(k - 1, order);
    }
    all.truncate(k);
    all.sort_unstable_by(order);
    all
}

impl Loss for Distillation {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(COLUMNS)
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Row(self)
    }

    fn takes_candidates(&self) -> bool {
        true
    }

    fn max_candidates(&self, vocabulary: usize) -> usize {
        // A teacher's whole vocabulary, and a label beside it.
        vocabulary + 1
    }

    fn spreads_positions(&self) -> bool {
        true
    }

    fn known_inputs(&self) -> &'static [&'static str] {
        super::INPUTS
    }

    fn check(&self, example: &Example) -> Result<()> {
        columns::check_mask(example, COLUMNS.len())?;
        let mut cells = example.inputs.chunks(COLUMNS.len());
        if cells.any(|inputs| !matches!(inputs[CANDIDATE], 0.0 | 1.0)) {
            return Err(Error::invalid("`candidate_mask` must be 0 or 1"));
        }
        let row = COLUMNS.len() * example.width();
        let is_empty = |cells: &[f32]| cells.chunks(COLUMNS.len()).all(|inputs| inputs[CANDIDATE] == 0.0);
        let counts = |cells: &[f32]| cells[WEIGHT] != 0.0;
        match example.inputs.chunks(row).position(|cells| counts(cells) && is_empty(cells)) {
            Some(position) => {
                Err(Error::invalid(format!("position {position} counts, but the teacher has no candidate there")))
            }
            None => Ok(()),
        }
    }

    fn prepare(&self, examples: &mut [Example]) -> Result<()> {
        let positions: f64 =
            examples.iter().map(|it| columns::counted(it, COLUMNS.len() * it.width())).sum::<f64>().max(1.0);
        columns::divide_all(examples, COLUMNS.len(), positions);
        Ok(())
    }
}

impl PerRow for Distillation {
    fn row(&self, row: RowView, derivatives: &mut [f32], _: &mut RowFacts) -> f64 {
        let weight = f64::from(row.inputs[WEIGHT]);
        if weight == 0.0 {
            return 0.0;
        }
        let cells = || row.inputs.chunks(COLUMNS.len());
        let places: Vec<usize> =
            cells().enumerate().filter(|(_, inputs)| inputs[CANDIDATE] != 0.0).map(|(place, _)| place).collect();
        let scaled = |value: f32| f64::from(value) / self.temperature;
        let student = log_softmax(places.iter().map(|place| scaled(row.logprobs[*place])).collect());
        let teacher =
            log_softmax(places.iter().map(|place| scaled(row.inputs[place * COLUMNS.len() + TEACHER])).collect());
        let (mut value, mut slopes) = (0.0, Vec::with_capacity(places.len()));
        for (s, t) in student.iter().zip(&teacher) {
            let (own, slope) = divergence(self.beta, *s, *t);
            value += own;
            slopes.push(slope);
        }
        // Through the softmax over the candidates, and the temperature.
        let sum: f64 = slopes.iter().sum();
        for ((place, slope), s) in places.iter().zip(slopes).zip(&student) {
            derivatives[*place] = (weight * (slope - s.exp() * sum) / self.temperature) as f32;
        }
        weight * value
    }
}

/// What one candidate adds to the divergence, by the logarithms of both probabilities; and its derivative by the student's.
fn divergence(beta: f64, s: f64, t: f64) -> (f64, f64) {
    let (student, teacher) = (s.exp(), t.exp());
    if beta <= 0.0 {
        return (teacher * (t - s), -teacher);
    }
    if beta >= 1.0 {
        return (student * (s - t), student * (s - t + 1.0));
    }
    let (from_student, from_teacher) = ((1.0 - beta).ln() + s, beta.ln() + t);
    let largest = from_student.max(from_teacher);
    let m = largest + ((from_student - largest).exp() + (from_teacher - largest).exp()).ln();
    // By how much log M grows with log S.
    let share = (from_student - m).exp();
    let value = beta * teacher * (t - m) + (1.0 - beta) * student * (s - m);
    (value, -beta * teacher * share + (1.0 - beta) * student * (s - m + 1.0 - share))
}

fn log_softmax(mut values: Vec<f64>) -> Vec<f64> {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let normaliser = largest + values.iter().map(|value| (value - largest).exp()).sum::<f64>().ln();
    for value in &mut values {
        *value -= normaliser;
    }
    values
}
