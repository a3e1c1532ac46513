//! `CrossEntropyLoss` and its relatives: `t = −l`, summed over the targets that count or divided by their number.
//!
//! `dft` weighs each token by its own probability, `t = −l eˡ` (Wu et al. 2025, dynamic fine-tuning, arXiv:2508.05629).
//! `label_smoothing` ε mixes in the mean over the vocabulary, `t = −(1 − ε) l − ε M` (Szegedy et al. 2016), and `softcap`
//! keeps logits within bounds (Gemma 2). The chunked and the fused loss are the same function: the head never holds more
//! than a window of logits, whatever `chunk_size` says.

use twinkle_core::Result;
use twinkle_nn::RowFacts;

use super::columns::{self, MASK, WEIGHT};
use super::settings::Settings;
use crate::batch::Example;
use crate::losses::{Column, Inputs, Loss, PerRow, PerToken, RowOptions, RowView, Scope, TokenLoss};

const COLUMNS: &[Column] = &[MASK];
const REDUCTIONS: &[&str] = &["mean", "sum"];

struct CrossEntropy {
    is_sum: bool,
    /// Weighs each token by its probability.
    dft: bool,
    label_smoothing: f64,
    softcap: Option<f64>,
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    let is_sum = settings.word("reduction", "mean", REDUCTIONS)? == "sum";
    Ok(Box::new(CrossEntropy { is_sum, dft: settings.flag("dft", false)?, label_smoothing: 0.0, softcap: None }))
}

pub(super) fn build_chunked(settings: &Settings) -> Result<Box<dyn Loss>> {
    settings.count("chunk_size", 1.0)?;
    build(settings)
}

pub(super) fn build_fused(settings: &Settings) -> Result<Box<dyn Loss>> {
    let is_sum = settings.word("reduction", "sum", REDUCTIONS)? == "sum";
    let softcap = settings.given("softcap")?.map(|_| settings.positive("softcap", 1.0)).transpose()?;
    Ok(Box::new(CrossEntropy { is_sum, dft: false, label_smoothing: settings.share("label_smoothing", 0.0)?, softcap }))
}

impl Loss for CrossEntropy {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(COLUMNS)
    }

    fn scope(&self) -> Scope<'_> {
        if self.label_smoothing > 0.0 { Scope::Row(self) } else { Scope::Token(self) }
    }

    fn known_inputs(&self) -> &'static [&'static str] {
        super::INPUTS
    }

    fn row_options(&self) -> RowOptions {
        RowOptions { facts: self.label_smoothing > 0.0, softcap: self.softcap }
    }

    fn check(&self, example: &Example) -> Result<()> {
        columns::check_mask(example, COLUMNS.len())
    }

    fn prepare(&self, examples: &mut [Example]) -> Result<()> {
        if !self.is_sum {
            let count = columns::counted_in_all(examples, COLUMNS.len());
            columns::divide_all(examples, COLUMNS.len(), count);
        }
        Ok(())
    }

    fn num_tokens(&self, examples: &[Example]) -> f64 {
        if self.is_sum { columns::counted_in_all(examples, COLUMNS.len()) } else { 0.0 }
    }
}

impl PerToken for CrossEntropy {
    fn token(&self, logprob: f32, inputs: &[f32]) -> TokenLoss {
        let weight = inputs[WEIGHT];
        if weight == 0.0 {
            return TokenLoss::MASKED;
        }
        if self.dft {
            let probability = logprob.exp();
            let derivative = -probability * (1.0 + logprob);
            return TokenLoss { value: -weight * logprob * probability, derivative: weight * derivative };
        }
        TokenLoss { value: -weight * logprob, derivative: -weight }
    }
}

impl PerRow for CrossEntropy {
    fn row(&self, row: RowView, derivatives: &mut [f32], by_facts: &mut RowFacts) -> f64 {
        let weight = f64::from(row.inputs[WEIGHT]);
        if weight == 0.0 {
            return 0.0;
        }
        let (hard, smooth) = (weight * (1.0 - self.label_smoothing), weight * self.label_smoothing);
        derivatives[0] = -hard as f32;
        by_facts.mean_logprob = -smooth as f32;
        -hard * f64::from(row.logprobs[0]) - smooth * f64::from(row.facts.mean_logprob)
    }
}
