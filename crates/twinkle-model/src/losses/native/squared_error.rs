//! `MSELoss`: the mean of `(z − y)²` over the logits z that a request names and the numbers y it gives for them.
//!
//! `target_tokens` names the logits, one or several at each position, and `target_logits` has their targets. Twinkle compares
//! all logits with labels of their own shape; naming them spares a client the ones it does not care for.

use twinkle_core::Result;
use twinkle_nn::RowFacts;

use super::columns::{self, MASK, WEIGHT};
use crate::batch::Example;
use crate::losses::{Column, Inputs, Loss, PerRow, RowOptions, RowView, Scope};

const COLUMNS: &[Column] = &[MASK, Column { name: "target_logits", default: None }];
const TARGET: usize = 1;

/// The loss.
pub(super) struct SquaredError;

impl Loss for SquaredError {
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
        vocabulary
    }

    fn spreads_positions(&self) -> bool {
        true
    }

    fn known_inputs(&self) -> &'static [&'static str] {
        super::INPUTS
    }

    fn row_options(&self) -> RowOptions {
        RowOptions { facts: true, softcap: None }
    }

    fn check(&self, example: &Example) -> Result<()> {
        columns::check_mask(example, COLUMNS.len())
    }

    fn prepare(&self, examples: &mut [Example]) -> Result<()> {
        let count = columns::counted_in_all(examples, COLUMNS.len());
        columns::divide_all(examples, COLUMNS.len(), count);
        Ok(())
    }
}

impl PerRow for SquaredError {
    fn row(&self, row: RowView, derivatives: &mut [f32], by_facts: &mut RowFacts) -> f64 {
        let (mut value, mut slope) = (0.0, 0.0);
        let cells = row.logprobs.iter().zip(row.inputs.chunks(COLUMNS.len())).zip(derivatives);
        for ((logprob, inputs), derivative) in cells {
            let weight = f64::from(inputs[WEIGHT]);
            if weight == 0.0 {
                continue;
            }
            // A logit is its logprob plus the row's normaliser.
            let distance = f64::from(*logprob) + f64::from(row.facts.normaliser) - f64::from(inputs[TARGET]);
            value += weight * distance * distance;
            *derivative = (2.0 * weight * distance) as f32;
            slope += 2.0 * weight * distance;
        }
        by_facts.normaliser = slope as f32;
        value
    }
}
