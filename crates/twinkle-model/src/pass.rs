//! One pass: examples laid end to end, once through the network, and once or twice through the head.

use std::ops::Range;
use std::sync::Arc;

use tch::Tensor;
use tokio::time::Instant;
use twinkle_core::Result;
use twinkle_core::telemetry::labels::{Component, Deployment};
use twinkle_core::telemetry::metrics::ENGINE_PASS;
use twinkle_core::telemetry::spans::{self, Attribute};
use twinkle_nn::{Adapter, BaseModel, Gradients, HeadOutcome, LossFunction, Pack, Segment};

use crate::batch::{Example, packs};
use crate::losses::{DatumView, PerSequence, PerToken};

/// Examples with the same number of candidates, packed.
pub(crate) struct Pass<'a> {
    base: &'a BaseModel,
    /// The run's, alone.
    adapters: &'a [Arc<Adapter>],
    pub(crate) examples: &'a [Example],
    pack: Pack,
    /// Row-major `[rows × candidates]`.
    targets: Vec<u32>,
}

/// Cuts the examples, in order, into passes of at most `row_limit` rows. How they are cut changes no bit of a result.
pub(crate) fn passes<'a>(
    base: &'a BaseModel,
    adapters: &'a [Arc<Adapter>],
    examples: &'a [Example],
    row_limit: usize,
) -> impl Iterator<Item = Pass<'a>> {
    examples.chunk_by(|left, right| left.width() == right.width()).flat_map(move |alike| {
        let lengths: Vec<usize> = alike.iter().map(|example| example.tokens.len()).collect();
        packs(&lengths, row_limit).into_iter().map(move |range| Pass::new(base, adapters, &alike[range]))
    })
}

impl<'a> Pass<'a> {
    fn new(base: &'a BaseModel, adapters: &'a [Arc<Adapter>], examples: &'a [Example]) -> Self {
        let pack = Pack {
            tokens: examples.iter().flat_map(|example| &example.tokens).copied().collect(),
            segments: examples
                .iter()
                .map(|example| Segment { length: example.tokens.len(), adapter: Some(0) })
                .collect(),
        };
        let targets = examples.iter().flat_map(|example| &example.targets).copied().collect();
        Self { base, adapters, examples, pack, targets }
    }

    /// The targets' logprobs.
    pub(crate) fn score(&self) -> Result<Vec<f32>> {
        self.network(None, |hidden, _| self.head(hidden, &mut |_, _, _| {}, None))
    }

    /// Logprobs and gradients of a sum over tokens; adds each token's value to `sum`, in order.
    pub(crate) fn by_token(
        &self,
        rule: &dyn PerToken,
        columns: usize,
        sum: &mut f64,
        gradients: Option<&mut Gradients>,
    ) -> Result<Vec<f32>> {
        let inputs: Vec<f32> = self.examples.iter().flat_map(|example| &example.inputs).copied().collect();
        let mut fused = |rows: Range<usize>, logprobs: &[f32], derivatives: &mut [f32]| {
            let first = rows.start * self.width();
            for (place, logprob) in logprobs.iter().enumerate() {
                let target = first + place;
                let token = rule.token(*logprob, &inputs[target * columns..(target + 1) * columns]);
                *sum += f64::from(token.value);
                derivatives[place] = token.derivative;
            }
        };
        self.network(gradients, |hidden, gradients| self.head(hidden, &mut fused, gradients))
    }

    /// Logprobs and gradients of a sum over datums: the head scores first, and runs again with the derivatives.
    pub(crate) fn by_datum(
        &self,
        rule: &dyn PerSequence,
        sum: &mut f64,
        gradients: Option<&mut Gradients>,
    ) -> Result<Vec<f32>> {
        self.network(gradients, |hidden, gradients| {
            let scored = self.head(hidden, &mut |_, _, _| {}, None)?;
            let mut derivatives = vec![0.0; scored.logprobs.len()];
            let mut start = 0;
            for example in self.examples {
                let targets = start..start + example.targets.len();
                start = targets.end;
                let datum = DatumView { example, logprobs: &scored.logprobs[targets.clone()] };
                *sum += rule.sequence(datum, &mut derivatives[targets]);
            }
            if gradients.is_none() {
                return Ok(scored);
            }
            self.head(hidden, &mut self.given(&derivatives), gradients)
        })
    }

    /// Gradients of a loss whose derivatives, `[rows × candidates]`, are known already.
    pub(crate) fn with_derivatives(&self, derivatives: &[f32], gradients: &mut Gradients) -> Result<Vec<f32>> {
        self.network(Some(gradients), |hidden, gradients| self.head(hidden, &mut self.given(derivatives), gradients))
    }

    fn given<'d>(&self, known: &'d [f32]) -> impl FnMut(Range<usize>, &[f32], &mut [f32]) + 'd {
        let width = self.width();
        move |rows, _, derivatives| {
            let known = &known[rows.start * width..rows.end * width];
            derivatives.copy_from_slice(known);
        }
    }

    fn width(&self) -> usize {
        self.examples.first().map_or(1, Example::width)
    }

    /// Through the layers, `head`, and with gradients back; returns the head's logprobs.
    fn network(
        &self,
        gradients: Option<&mut Gradients>,
        head: impl FnOnce(&Tensor, Option<&mut Gradients>) -> Result<HeadOutcome>,
    ) -> Result<Vec<f32>> {
        let stage = spans::begin(spans::PASS).with(Attribute::Rows, self.pack.len() as i64);
        let began = Instant::now();
        let logprobs = match gradients {
            None => head(&self.base.forward(&self.pack, self.adapters)?, None)?.logprobs,
            Some(gradients) => {
                let (hidden, tape) = self.base.forward_training(&self.pack, self.adapters)?;
                let outcome = head(&hidden, Some(&mut *gradients))?;
                drop(hidden);
                if let Some(d_hidden) = outcome.d_hidden {
                    self.base.backward(tape, d_hidden, &self.pack, self.adapters, &mut [gradients])?;
                }
                outcome.logprobs
            }
        };
        stage.end();
        ENGINE_PASS.record(began.elapsed(), Component { deployment: Deployment::Model });
        Ok(logprobs)
    }

    fn head(&self, hidden: &Tensor, loss: &mut LossFunction, gradients: Option<&mut Gradients>) -> Result<HeadOutcome> {
        let mut gradients = gradients.map(|gradients| [gradients]);
        let gradients = gradients.as_mut().map(<[_; 1]>::as_mut_slice);
        self.base.head_loss(hidden, &self.pack, self.adapters, &self.targets, loss, gradients)
    }
}
