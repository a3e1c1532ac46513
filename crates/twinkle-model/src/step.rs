//! One forward or forward-backward: examples, pass after pass, to logprobs, a loss and gradients.

use std::collections::BTreeMap;
use std::ops::Range;

use twinkle_core::call::{ForwardBackwardOutcome, Logprobs};
use twinkle_core::{Error, Result};
use twinkle_nn::{BaseModel, ExpertLoad, Recompute};

use crate::batch::{Example, packs};
use crate::losses::{DatumView, Loss, Scope, Tally, WholeLoss};
use crate::pass::{self, Found, Participant, Rule, Share, Way};
use crate::run::Run;
use crate::schedule::Direction;
use crate::undo::Undo;

/// What is computed: checked data, a loss, and whether gradients are wanted.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Checked examples, in the order of the data.
    pub examples: &'a [Example],
    /// What is computed of each.
    pub loss: &'a dyn Loss,
    /// Whether the gradient of the loss is added to the run's.
    pub backward: bool,
}

/// How far a batch has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// The sum of the loss so far.
    value: f64,
    /// Per example.
    logprobs: Vec<Vec<f32>>,
    /// What a loss of the whole batch found, once all logprobs were known.
    whole: Option<WholeLoss>,
    /// How often each expert was given a row.
    expert_load: ExpertLoad,
}

impl<'a> Batch<'a> {
    /// How all data go through the network, one after the other.
    #[must_use]
    pub fn phases(&self) -> Vec<Direction> {
        match (self.backward, self.loss.scope()) {
            (false, _) => vec![Direction::Forward],
            (true, Scope::Token(_) | Scope::Sequence(_)) => vec![Direction::Backward],
            // All logprobs first, then the gradients by the derivatives it found.
            (true, Scope::Batch(_)) => vec![Direction::Forward, Direction::Backward],
        }
    }

    /// What a pass computes of some of the data.
    #[must_use]
    pub fn share(&self, progress: &'a Progress, data: Range<usize>) -> Share<'a> {
        let rule = match (self.loss.scope(), &progress.whole) {
            (Scope::Token(rule), _) => Rule::Token(rule, self.loss.inputs().columns()),
            (Scope::Sequence(rule), _) => Rule::Sequence(rule),
            (Scope::Batch(_), None) => Rule::Score,
            (Scope::Batch(_), Some(whole)) => Rule::Given(whole.derivatives.get(data.clone()).unwrap_or_default()),
        };
        Share { examples: self.examples.get(data).unwrap_or_default(), rule, value: progress.value }
    }

    /// Takes in what a pass found. A number that is not finite is an error that names its datum.
    pub fn absorb(&self, progress: &mut Progress, found: Found) -> Result<()> {
        let Found { logprobs, value, expert_load } = found;
        progress.expert_load.add(&expert_load);
        if progress.whole.is_some() {
            // The second phase computes the same logprobs again.
            return Ok(());
        }
        let is_finite = |logprobs: &Vec<f32>| logprobs.iter().all(|logprob| logprob.is_finite());
        if let Some(place) = logprobs.iter().position(|logprobs| !is_finite(logprobs)) {
            let datum = progress.logprobs.len() + place;
            return Err(Error::invalid(format!(
                "a logprob of datum {datum} is not a finite number; nothing was accumulated"
            ))
            .hint("the run's weights have grown too large: load an earlier checkpoint, or lower the learning rate"));
        }
        check_is_finite(value)?;
        progress.logprobs.extend(logprobs);
        progress.value = value;
        Ok(())
    }

    /// A phase is over: a loss of the whole batch is computed after the first.
    pub fn end_phase(&self, progress: &mut Progress) -> Result<()> {
        let (Scope::Batch(rule), None) = (self.loss.scope(), &progress.whole) else { return Ok(()) };
        let views: Vec<DatumView> = self.views(&progress.logprobs).collect();
        let whole = rule.batch(&views)?;
        check_is_finite(whole.value)?;
        let fits = whole.derivatives.iter().map(Vec::len).eq(progress.logprobs.iter().map(Vec::len));
        if !fits {
            return Err(Error::internal("a loss gave derivatives of another shape than the logprobs it got"));
        }
        progress.value = whole.value;
        progress.whole = Some(whole);
        Ok(())
    }

    /// The answer, once every phase is over.
    #[must_use]
    pub fn outcome(&self, progress: Progress) -> ForwardBackwardOutcome {
        let Progress { value, logprobs, whole, expert_load } = progress;
        let mut metrics = whole.map_or_else(BTreeMap::new, |whole| whole.metrics);
        let mut tally = Tally::default();
        for datum in self.views(&logprobs) {
            self.loss.observe(datum, &mut tally);
        }
        metrics.extend(tally.into_metrics());
        metrics.insert("loss:sum".to_owned(), value);
        if let Some(violation) = expert_load.max_violation() {
            metrics.insert("expert_max_violation:mean".to_owned(), violation);
        }
        let shaped = logprobs.into_iter().zip(self.examples);
        let logprobs = shaped.map(|(values, example)| Logprobs { values, candidates: example.candidates }).collect();
        ForwardBackwardOutcome { logprobs, metrics }
    }

    fn views<'v>(&'v self, logprobs: &'v [Vec<f32>]) -> impl Iterator<Item = DatumView<'v>> {
        self.examples.iter().zip(logprobs).map(|(example, logprobs)| DatumView { example, logprobs })
    }
}

/// Computes a batch for one run alone, in passes of at most `row_limit` rows: the bits are those of any shared passes.
///
/// All or nothing: on an error the run is as it was.
pub fn forward_backward(
    run: &mut Run,
    base: &BaseModel,
    examples: &[Example],
    loss: &dyn Loss,
    backward: bool,
    row_limit: usize,
) -> Result<ForwardBackwardOutcome> {
    let batch = Batch { examples, loss, backward };
    let undo = backward.then(|| Undo::of(&run.gradients));
    let outcome = alone(run, base, batch, row_limit);
    if outcome.is_err()
        && let Some(undo) = undo
    {
        undo.restore(&mut run.gradients);
    }
    outcome
}

fn alone(run: &mut Run, base: &BaseModel, batch: Batch<'_>, row_limit: usize) -> Result<ForwardBackwardOutcome> {
    let lengths: Vec<usize> = batch.examples.iter().map(|example| example.tokens.len()).collect();
    let mut progress = Progress::default();
    for direction in batch.phases() {
        let way = match direction {
            Direction::Forward => Way::Forward,
            Direction::Backward => Way::Back(Recompute::NOTHING),
        };
        for data in packs(&lengths, row_limit) {
            let shares = vec![batch.share(&progress, data)];
            let found = pass::compute(base, &mut [Participant { run: &mut *run, shares }], way)?;
            for found in found.into_iter().flatten() {
                batch.absorb(&mut progress, found)?;
            }
        }
        if direction == Direction::Backward {
            check_gradients(run)?;
        }
        batch.end_phase(&mut progress)?;
    }
    Ok(batch.outcome(progress))
}

/// Refuses gradients that are not finite.
pub fn check_gradients(run: &Run) -> Result<()> {
    if run.gradients.is_finite() {
        return Ok(());
    }
    Err(Error::invalid("the gradient of this batch is not finite; nothing was accumulated")
        .hint("check the weights, advantages and logprobs that were sent"))
}

fn check_is_finite(value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::invalid(format!("the loss of this batch is {value}; nothing was accumulated"))
        .hint("check the weights, advantages and logprobs that were sent"))
}
