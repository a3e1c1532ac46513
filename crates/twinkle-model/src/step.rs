//! One forward or forward-backward: examples → passes → logprobs, loss, gradients.

use std::collections::BTreeMap;
use std::sync::Arc;

use twinkle_core::call::{ForwardBackwardOutcome, Logprobs};
use twinkle_core::{Error, Result};
use twinkle_nn::{Adapter, BaseModel, Gradients};

use crate::batch::Example;
use crate::losses::{DatumView, Loss, PerBatch, Scope, Tally, WholeLoss};
use crate::pass::{Pass, passes};
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
    let step = Step { base, adapters: &adapters, examples, row_limit };
    if !backward {
        return step.evaluate(loss, None);
    }
    // Gradients are added in place, datum by datum, so that one call and many give the same bits.
    // What was there before is kept aside to be put back if anything goes wrong.
    let before = run.gradients.copy();
    let outcome = step.evaluate(loss, Some(&mut run.gradients)).and_then(|outcome| {
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

/// The examples of one request and what they run through.
struct Step<'a> {
    base: &'a BaseModel,
    adapters: &'a [Arc<Adapter>],
    examples: &'a [Example],
    row_limit: usize,
}

/// A request's loss, and per example the logprobs it was computed from.
struct Evaluation {
    value: f64,
    logprobs: Vec<Vec<f32>>,
    metrics: BTreeMap<String, f64>,
}

impl Step<'_> {
    fn evaluate(&self, loss: &dyn Loss, gradients: Option<&mut Gradients>) -> Result<ForwardBackwardOutcome> {
        let Evaluation { value, logprobs, mut metrics } = match loss.scope() {
            Scope::Token(rule) => {
                let columns = loss.inputs().columns();
                self.sum(gradients, |pass, sum, gradients| pass.by_token(rule, columns, sum, gradients))?
            }
            Scope::Sequence(rule) => self.sum(gradients, |pass, sum, gradients| pass.by_datum(rule, sum, gradients))?,
            Scope::Batch(rule) => self.whole(rule, gradients)?,
        };
        check_is_finite(value)?;

        let mut tally = Tally::default();
        for datum in self.views(&logprobs) {
            loss.observe(datum, &mut tally);
        }
        metrics.extend(tally.into_metrics());
        metrics.insert("loss:sum".to_owned(), value);
        let shaped = logprobs.into_iter().zip(self.examples);
        let logprobs = shaped.map(|(values, example)| Logprobs { values, candidates: example.candidates }).collect();
        Ok(ForwardBackwardOutcome { logprobs, metrics })
    }

    /// A loss that is a sum over tokens or datums: pass after pass, each complete in itself.
    fn sum(
        &self,
        mut gradients: Option<&mut Gradients>,
        compute: impl Fn(&Pass, &mut f64, Option<&mut Gradients>) -> Result<Vec<f32>>,
    ) -> Result<Evaluation> {
        let mut value = 0.0;
        let mut logprobs = Vec::with_capacity(self.examples.len());
        for pass in self.passes() {
            cut(&pass, &compute(&pass, &mut value, gradients.as_deref_mut())?, &mut logprobs);
        }
        Ok(Evaluation { value, logprobs, metrics: BTreeMap::new() })
    }

    /// A loss of the whole request: all logprobs first, then the gradients by the derivatives it found.
    fn whole(&self, rule: &dyn PerBatch, gradients: Option<&mut Gradients>) -> Result<Evaluation> {
        let mut logprobs = Vec::with_capacity(self.examples.len());
        for pass in self.passes() {
            cut(&pass, &pass.score()?, &mut logprobs);
        }
        let views: Vec<DatumView> = self.views(&logprobs).collect();
        let WholeLoss { value, derivatives, metrics } = rule.batch(&views)?;
        check_is_finite(value)?;
        let fits = derivatives.iter().map(Vec::len).eq(logprobs.iter().map(Vec::len));
        if !fits {
            return Err(Error::internal("a loss gave derivatives of another shape than the logprobs it got"));
        }
        if let Some(gradients) = gradients {
            let mut rest = derivatives.as_slice();
            for pass in self.passes() {
                let (own, others) = rest.split_at(pass.examples.len());
                rest = others;
                pass.with_derivatives(&own.concat(), gradients)?;
            }
        }
        Ok(Evaluation { value, logprobs, metrics })
    }

    fn passes(&self) -> impl Iterator<Item = Pass<'_>> {
        passes(self.base, self.adapters, self.examples, self.row_limit)
    }

    fn views<'v>(&'v self, logprobs: &'v [Vec<f32>]) -> impl Iterator<Item = DatumView<'v>> {
        self.examples.iter().zip(logprobs).map(|(example, logprobs)| DatumView { example, logprobs })
    }
}

/// Divides a pass's logprobs among its examples.
fn cut(pass: &Pass, logprobs: &[f32], all: &mut Vec<Vec<f32>>) {
    let mut rest = logprobs;
    for example in pass.examples {
        let (own, others) = rest.split_at(example.targets.len());
        all.push(own.to_vec());
        rest = others;
    }
}

fn check_is_finite(value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::invalid(format!("the loss of this batch is {value}; nothing was accumulated"))
        .hint("check the weights, advantages and logprobs that were sent"))
}
