//! One forward or forward-backward: examples, pass after pass, to logprobs, a loss and gradients.

use std::collections::BTreeMap;
use std::ops::Range;

use twinkle_core::call::{ForwardBackwardOutcome, ForwardOptions, ForwardOutputs, Logprobs, Table};
use twinkle_core::{Error, Result};
use twinkle_nn::{BaseModel, ExpertLoad, Recompute, RowFacts};

use crate::batch::{Example, packs};
use crate::losses::{DatumView, EmbeddingView, Loss, PerGroup, Scope, Tally, WholeLoss};
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
    /// How the network is used, and what is returned.
    pub options: ForwardOptions,
    /// Whether the datums of a group may be in different passes, because one pass cannot take them all: the loss is then
    /// computed once all of them went forward, in the same bits.
    pub cuts_groups: bool,
}

/// How far a batch has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// The sum of the loss so far.
    value: f64,
    /// Per example.
    logprobs: Vec<Vec<f32>>,
    /// Per example, if wanted.
    facts: Vec<Vec<RowFacts>>,
    /// Per example, if wanted.
    logits: Vec<Vec<f32>>,
    /// Per example, if wanted.
    embeddings: Vec<Vec<f32>>,
    /// What a loss of the whole batch found, once all logprobs were known.
    whole: Option<WholeLoss>,
    /// How often each expert was given a row.
    expert_load: ExpertLoad,
}

impl<'a> Batch<'a> {
    /// A batch whose groups go through whole, if none has more than `row_limit` rows.
    #[must_use]
    pub fn new(
        examples: &'a [Example],
        loss: &'a dyn Loss,
        backward: bool,
        options: ForwardOptions,
        row_limit: usize,
    ) -> Self {
        let uncut = Self { examples, loss, backward, options, cuts_groups: false };
        Self { cuts_groups: uncut.group() > 1 && uncut.lengths().iter().any(|rows| *rows > row_limit), ..uncut }
    }

    /// How many consecutive data a pass takes or leaves as one.
    fn group(&self) -> usize {
        match self.loss.scope() {
            Scope::Group(_, count) if !self.cuts_groups => count.max(1),
            Scope::Embeddings(_) if !self.cuts_groups => self.examples.len().max(1),
            _ => 1,
        }
    }

    /// The rows of what a pass takes or leaves as one: of each datum, or of each group of data.
    #[must_use]
    pub fn lengths(&self) -> Vec<usize> {
        let rows = |examples: &[Example]| examples.iter().map(|example| example.tokens.len()).sum();
        self.examples.chunks(self.group()).map(rows).collect()
    }

    /// Whether a pass with these of [`Batch::lengths`] was the last of a phase.
    #[must_use]
    pub fn ends_with(&self, taken: &Range<usize>) -> bool {
        taken.end * self.group() >= self.examples.len()
    }

    /// How all data go through the network, one after the other.
    #[must_use]
    pub fn phases(&self) -> Vec<Direction> {
        match (self.backward, self.loss.scope()) {
            (false, _) => vec![Direction::Forward],
            (true, Scope::Group(..) | Scope::Embeddings(_)) if !self.cuts_groups => vec![Direction::Backward],
            (true, Scope::Token(_) | Scope::Row(_) | Scope::Sequence(_)) => vec![Direction::Backward],
            // All logprobs or embeddings first, then the gradients by the derivatives it found.
            (true, Scope::Group(..) | Scope::Batch(_) | Scope::Embeddings(_)) => {
                vec![Direction::Forward, Direction::Backward]
            }
        }
    }

    /// What a pass computes of some of the data; `taken` are places among [`Batch::lengths`].
    #[must_use]
    pub fn share(&self, progress: &'a Progress, taken: Range<usize>) -> Share<'a> {
        let mut options = self.options;
        let group = self.group();
        let data = taken.start * group..(taken.end * group).min(self.examples.len());
        let rule = match (self.loss.scope(), &progress.whole) {
            (Scope::Token(rule), _) => Rule::Token(rule, self.loss.inputs().columns()),
            (Scope::Row(rule), _) => Rule::Row(rule, self.loss.inputs().columns()),
            (Scope::Sequence(rule), _) => Rule::Sequence(rule),
            (Scope::Group(rule, count), _) if !self.cuts_groups => Rule::Group(rule, count),
            (Scope::Group(..) | Scope::Batch(_), None) => Rule::Score,
            (Scope::Group(..) | Scope::Batch(_), Some(whole)) => {
                Rule::Given(whole.derivatives.get(data.clone()).unwrap_or_default())
            }
            (Scope::Embeddings(rule), None) if self.backward && !self.cuts_groups => Rule::EmbedWhole(rule),
            (Scope::Embeddings(_), None) => Rule::Embed,
            (Scope::Embeddings(_), Some(whole)) => {
                Rule::EmbedGiven(whole.derivatives.get(data.clone()).unwrap_or_default())
            }
        };
        if progress.whole.is_some() {
            // The first phase has brought what is returned.
            options.outputs = ForwardOutputs::default();
        }
        let examples = self.examples.get(data).unwrap_or_default();
        Share { examples, rule, value: progress.value, options, row: self.loss.row_options() }
    }

    /// Takes in what a pass found. A number that is not finite is an error that names its datum.
    pub fn absorb(&self, progress: &mut Progress, found: Found) -> Result<()> {
        let Found { logprobs, facts, logits, embeddings, value, expert_load } = found;
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
        if let Some(place) = embeddings.iter().position(|embedding| !is_finite(embedding)) {
            let datum = progress.embeddings.len() + place;
            return Err(Error::invalid(format!(
                "the embedding of datum {datum} is not finite; nothing was accumulated"
            ))
            .hint("the run's weights have grown too large: load an earlier checkpoint, or lower the learning rate"));
        }
        check_is_finite(value)?;
        progress.logprobs.extend(logprobs);
        progress.facts.extend(facts);
        progress.logits.extend(logits);
        progress.embeddings.extend(embeddings);
        progress.value = value;
        Ok(())
    }

    /// A phase is over: a loss of the whole batch is computed after the first.
    pub fn end_phase(&self, progress: &mut Progress) -> Result<()> {
        let (whole, shapes) = match (self.loss.scope(), &progress.whole) {
            (Scope::Batch(rule), None) => {
                let views: Vec<DatumView> = self.views(progress).collect();
                (rule.batch(&views)?, &progress.logprobs)
            }
            (Scope::Group(rule, count), None) if self.cuts_groups => {
                let views: Vec<DatumView> = self.views(progress).collect();
                (in_groups(rule, count, &views), &progress.logprobs)
            }
            (Scope::Embeddings(rule), None) => {
                let pairs = self.examples.iter().zip(&progress.embeddings);
                let views: Vec<EmbeddingView> =
                    pairs.map(|(example, embedding)| EmbeddingView { example, embedding }).collect();
                (rule.embeddings(&views)?, &progress.embeddings)
            }
            _ => return Ok(()),
        };
        check_is_finite(whole.value)?;
        if !whole.derivatives.iter().map(Vec::len).eq(shapes.iter().map(Vec::len)) {
            return Err(Error::internal("a loss gave derivatives of another shape than what it got"));
        }
        progress.value = whole.value;
        progress.whole = Some(whole);
        Ok(())
    }

    /// The answer, once every phase is over.
    #[must_use]
    pub fn outcome(&self, progress: Progress) -> ForwardBackwardOutcome {
        let mut tally = Tally::default();
        for datum in self.views(&progress) {
            self.loss.observe(datum, &mut tally);
        }
        let Progress { value, logprobs, facts, logits, embeddings, whole, expert_load } = progress;
        let mut metrics = whole.map_or_else(BTreeMap::new, |whole| whole.metrics);
        metrics.extend(tally.into_metrics());
        metrics.insert("loss:sum".to_owned(), value);
        if let Some(violation) = expert_load.max_violation() {
            metrics.insert("expert_max_violation:mean".to_owned(), violation);
        }
        let shaped = logprobs.into_iter().zip(self.examples);
        let logprobs = shaped.map(|(values, example)| Logprobs { values, candidates: example.candidates }).collect();
        let outputs = self.options.outputs;
        let entropies = |facts: Vec<RowFacts>| facts.into_iter().map(|facts| facts.entropy).collect();
        let tables = |wanted: bool, found: Vec<Vec<f32>>, width: &dyn Fn(usize, usize) -> usize| -> Vec<Table> {
            let found = found.into_iter().zip(self.examples).filter(|_| wanted);
            found.map(|(values, it)| Table { width: width(values.len(), it.tokens.len()), values }).collect()
        };
        ForwardBackwardOutcome {
            logprobs,
            metrics,
            num_tokens: self.loss.num_tokens(self.examples),
            entropies: tables(outputs.entropies, facts.into_iter().map(entropies).collect(), &|_, _| 1),
            logits: tables(outputs.logits, logits, &|count, tokens| count / tokens.max(1)),
            embeddings: tables(outputs.embeddings, embeddings, &|count, _| count),
        }
    }

    fn views<'v>(&'v self, progress: &'v Progress) -> impl Iterator<Item = DatumView<'v>> {
        let facts = progress.facts.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
        let found = progress.logprobs.iter().zip(facts);
        self.examples.iter().zip(found).map(|(example, (logprobs, facts))| DatumView { example, logprobs, facts })
    }
}

/// A loss of groups as one of the whole batch.
pub(crate) fn in_groups(rule: &dyn PerGroup, count: usize, data: &[DatumView]) -> WholeLoss {
    let mut derivatives: Vec<Vec<f32>> = data.iter().map(|datum| vec![0.0; datum.logprobs.len()]).collect();
    let mut value = 0.0;
    for (data, derivatives) in data.chunks(count.max(1)).zip(derivatives.chunks_mut(count.max(1))) {
        let mut own: Vec<&mut [f32]> = derivatives.iter_mut().map(Vec::as_mut_slice).collect();
        value += rule.group(data, &mut own);
    }
    WholeLoss { value, derivatives, metrics: BTreeMap::new() }
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
    compute(run, base, Batch::new(examples, loss, backward, ForwardOptions::default(), row_limit), row_limit)
}

/// The same for any batch.
pub fn compute(run: &mut Run, base: &BaseModel, batch: Batch<'_>, row_limit: usize) -> Result<ForwardBackwardOutcome> {
    let undo = batch.backward.then(|| Undo::of(&run.gradients));
    let backward = batch.backward;
    let outcome = alone(run, base, batch, row_limit);
    match (&outcome, undo) {
        (Ok(outcome), _) if backward => run.accumulation.count(outcome.num_tokens),
        (Err(_), Some(undo)) => undo.restore(&mut run.gradients),
        _ => {}
    }
    outcome
}

fn alone(run: &mut Run, base: &BaseModel, batch: Batch<'_>, row_limit: usize) -> Result<ForwardBackwardOutcome> {
    let lengths = batch.lengths();
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
