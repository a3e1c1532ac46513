//! One forward or forward-backward: examples → packed rows → logprobs, loss, gradients.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;
use twinkle_core::call::{ForwardBackwardOutcome, Logprobs};
use twinkle_core::telemetry::labels::{Component, Deployment};
use twinkle_core::telemetry::metrics::ENGINE_PASS;
use twinkle_core::telemetry::spans::{self, Attribute};
use twinkle_core::{Error, Result};
use twinkle_nn::{Adapter, BaseModel, Gradients, Pack, Segment};

use crate::batch::{Example, packs};
use crate::losses::Loss;
use crate::run::Run;

/// Computes the loss of every example; with `backward`, adds the gradient of their sum to the run's.
///
/// `row_limit` bounds the rows of one pass. All or nothing: on an error the run is as it was.
pub fn forward_backward(
    run: &mut Run,
    base: &BaseModel,
    examples: &[Example],
    loss: &dyn Loss,
    backward: bool,
    row_limit: usize,
) -> Result<ForwardBackwardOutcome> {
    let adapters = [run.adapter(base)];
    if !backward {
        return evaluate(base, &adapters, examples, loss, None, row_limit);
    }
    // Gradients are added in place, datum by datum, so that one call and many give the same bits.
    // What was there before is kept aside to be put back if anything goes wrong.
    let before = run.gradients.copy();
    let outcome = evaluate(base, &adapters, examples, loss, Some(&mut run.gradients), row_limit).and_then(|outcome| {
        if run.gradients.is_finite() {
            return Ok(outcome);
        }
        Err(Error::invalid("the gradient of this batch is not finite; nothing was accumulated")
            .hint("check the weights, advantages and logprobs that were sent"))
    });
    if outcome.is_err() {
        run.gradients = before;
    }
    outcome
}

fn evaluate(
    base: &BaseModel,
    adapters: &[Arc<Adapter>],
    examples: &[Example],
    loss: &dyn Loss,
    mut gradients: Option<&mut Gradients>,
    row_limit: usize,
) -> Result<ForwardBackwardOutcome> {
    let columns = loss.columns().len();
    let lengths: Vec<usize> = examples.iter().map(|example| example.tokens.len()).collect();
    let mut loss_sum = 0.0_f64;
    let mut logprobs = Vec::with_capacity(examples.len());

    for range in packs(&lengths, row_limit) {
        let examples = &examples[range];
        let rows: usize = examples.iter().map(|example| example.tokens.len()).sum();
        let stage = spans::begin(spans::PASS).with(Attribute::Rows, rows as i64);
        let began = Instant::now();
        let pack = Pack {
            tokens: examples.iter().flat_map(|example| &example.tokens).copied().collect(),
            segments: examples
                .iter()
                .map(|example| Segment { length: example.tokens.len(), adapter: Some(0) })
                .collect(),
        };
        let targets: Vec<u32> = examples.iter().flat_map(|example| &example.targets).copied().collect();
        let inputs: Vec<f32> = examples.iter().flat_map(|example| &example.inputs).copied().collect();

        let mut token_loss = |rows: std::ops::Range<usize>, logprobs: &[f32], derivatives: &mut [f32]| {
            for (place, row) in rows.enumerate() {
                let token = loss.token(logprobs[place], &inputs[row * columns..(row + 1) * columns]);
                loss_sum += f64::from(token.value);
                derivatives[place] = token.derivative;
            }
        };
        let pack_logprobs = match gradients.as_deref_mut() {
            None => {
                let hidden = base.forward(&pack, adapters)?;
                base.head_loss(&hidden, &pack, adapters, &targets, &mut token_loss, None)?.logprobs
            }
            Some(gradients) => {
                let (hidden, tape) = base.forward_training(&pack, adapters)?;
                let head =
                    base.head_loss(&hidden, &pack, adapters, &targets, &mut token_loss, Some(&mut [&mut *gradients]))?;
                drop(hidden);
                if let Some(d_hidden) = head.d_hidden {
                    base.backward(tape, d_hidden, &pack, adapters, &mut [gradients])?;
                }
                head.logprobs
            }
        };
        stage.end();
        ENGINE_PASS.record(began.elapsed(), Component { deployment: Deployment::Model });
        let mut rest = pack_logprobs.as_slice();
        for example in examples {
            let (own, others) = rest.split_at(example.tokens.len());
            logprobs.push(Logprobs(own.to_vec()));
            rest = others;
        }
    }

    if !loss_sum.is_finite() {
        return Err(Error::invalid(format!("the loss of this batch is {loss_sum}; nothing was accumulated"))
            .hint("check the weights, advantages and logprobs that were sent"));
    }
    let metrics = BTreeMap::from([("loss:sum".to_owned(), loss_sum)]);
    Ok(ForwardBackwardOutcome { logprobs, metrics })
}
