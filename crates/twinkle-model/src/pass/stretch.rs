//! Data that go through the head together.

use std::ops::Range;

use tch::Tensor;
use twinkle_core::Result;
use twinkle_nn::{Gradients, HeadOutcome, HeadTask, Pack, RowFacts, RowsFunction, Scored, Slopes};

use super::{Found, Pass, PassDatum, Rule};
use crate::losses::{DatumView, RowView};

/// Data that go through the head together: same options, same number of targets per row.
pub(super) struct Stretch<'a> {
    pass: &'a Pass<'a>,
    data: &'a [PassDatum<'a>],
    pack: Pack,
    width: usize,
    /// Row-major `[rows × width]`.
    targets: Vec<u32>,
    /// Where each datum's targets end.
    ends: Vec<usize>,
}

impl<'a> Stretch<'a> {
    pub(super) fn new(pass: &'a Pass<'a>, data: &'a [PassDatum<'a>]) -> Self {
        let mut end = 0;
        let ends = data.iter().map(|datum| {
            end += datum.example.targets.len();
            end
        });
        Self {
            pass,
            data,
            pack: Pass::pack(data),
            width: data.first().map_or(1, |datum| datum.example.width()),
            ends: ends.collect(),
            targets: data.iter().flat_map(|datum| &datum.example.targets).copied().collect(),
        }
    }

    /// Their rows through the head; with gradients, those of the hidden rows.
    pub(super) fn head(
        &self,
        hidden: &Tensor,
        found: &mut [Vec<Found>],
        gradients: Option<&mut Vec<&mut Gradients>>,
    ) -> Result<Option<Tensor>> {
        let scores_first = self.data.iter().any(|datum| datum.rule.scores_first());
        if !scores_first {
            let gradients = gradients.map(Vec::as_mut_slice);
            let mut fused = |rows: Range<usize>, scored: Scored<'_>, mut slopes: Slopes<'_>| {
                self.by_row(&rows, scored, &mut slopes, found);
            };
            let mut outcome = self.through(hidden, &mut fused, gradients)?;
            let d_hidden = outcome.d_hidden.take();
            self.divide(&outcome, found);
            return Ok(d_hidden);
        }
        let scored = self.through(hidden, &mut |_, _, _| {}, None)?;
        let mut derivatives = vec![0.0; scored.logprobs.len()];
        let mut by_facts = vec![RowFacts::default(); scored.facts.len()];
        self.by_datum(&scored, &mut derivatives, &mut by_facts, found);
        self.divide(&scored, found);
        let Some(gradients) = gradients else { return Ok(None) };
        let mut known = |rows: Range<usize>, _: Scored<'_>, wanted: Slopes<'_>| {
            wanted.logprobs.copy_from_slice(&derivatives[rows.start * self.width..rows.end * self.width]);
            if !by_facts.is_empty() {
                wanted.facts.copy_from_slice(&by_facts[rows]);
            }
        };
        Ok(self.through(hidden, &mut known, Some(gradients.as_mut_slice()))?.d_hidden)
    }

    fn through(
        &self,
        hidden: &Tensor,
        loss: &mut RowsFunction,
        gradients: Option<&mut [&mut Gradients]>,
    ) -> Result<HeadOutcome> {
        let options = self.data.first().map(|datum| datum.head).unwrap_or_default();
        let task = HeadTask { targets: &self.targets, options };
        self.pass.base.head_rows(hidden, &self.pack, self.pass.adapters, task, loss, gradients)
    }

    /// Values and derivatives of some rows, as far as they are functions of one position.
    fn by_row(&self, rows: &Range<usize>, scored: Scored, slopes: &mut Slopes, found: &mut [Vec<Found>]) {
        let (first, last) = (rows.start * self.width, rows.end * self.width);
        let mut index = self.ends.partition_point(|end| *end <= first);
        let mut target = first;
        while target < last {
            let (Some(datum), Some(end)) = (self.data.get(index), self.ends.get(index)) else { return };
            let begin = end - datum.example.targets.len();
            let stop = last.min(*end);
            let here = target - first..stop - first;
            let (logprobs, derivatives) = (&scored.logprobs[here.clone()], &mut slopes.logprobs[here]);
            let sum = &mut found[datum.place.0][datum.place.1].value;
            match datum.rule {
                Rule::Token(rule, columns) => {
                    let inputs = &datum.example.inputs[(target - begin) * columns..(stop - begin) * columns];
                    for (place, (logprob, derivative)) in logprobs.iter().zip(derivatives).enumerate() {
                        let token = rule.token(*logprob, &inputs[place * columns..(place + 1) * columns]);
                        *sum += f64::from(token.value);
                        *derivative = token.derivative;
                    }
                }
                Rule::Row(rule, columns) => {
                    let cells =
                        datum.example.inputs[(target - begin) * columns..].chunks((self.width * columns).max(1));
                    let rows = logprobs.chunks(self.width).zip(derivatives.chunks_mut(self.width)).zip(cells);
                    for (row, ((logprobs, derivatives), inputs)) in ((target - first) / self.width..).zip(rows) {
                        let facts = scored.facts.get(row).copied().unwrap_or_default();
                        let mut by_facts = RowFacts::default();
                        *sum += rule.row(RowView { logprobs, inputs, facts }, derivatives, &mut by_facts);
                        if let Some(slope) = slopes.facts.get_mut(row) {
                            *slope = by_facts;
                        }
                    }
                }
                Rule::Given(_) => {
                    if let Some(given) = datum.given {
                        derivatives.copy_from_slice(&given[target - begin..stop - begin]);
                    }
                }
                Rule::Score
                | Rule::Sequence(_)
                | Rule::Group(..)
                | Rule::Embed
                | Rule::EmbedWhole(_)
                | Rule::EmbedGiven(_) => {}
            }
            target = stop;
            index += 1;
        }
    }

    /// Values and derivatives of whole datums and groups of them.
    fn by_datum(
        &self,
        scored: &HeadOutcome,
        derivatives: &mut [f32],
        by_facts: &mut [RowFacts],
        found: &mut [Vec<Found>],
    ) {
        let (mut index, mut rest) = (0, derivatives);
        while let Some(datum) = self.data.get(index) {
            let count = match datum.rule {
                Rule::Group(_, count) => count.clamp(1, self.data.len() - index),
                _ => 1,
            };
            let views: Vec<DatumView> = (index..index + count).map(|index| self.view(index, scored)).collect();
            let mut own: Vec<&mut [f32]> = Vec::with_capacity(count);
            for view in &views {
                let (first, others) = std::mem::take(&mut rest).split_at_mut(view.logprobs.len());
                own.push(first);
                rest = others;
            }
            let sum = &mut found[datum.place.0][datum.place.1].value;
            match (datum.rule, views.as_slice(), own.as_mut_slice()) {
                (Rule::Sequence(rule), [view], [own]) => {
                    *sum += rule.sequence(*view, own);
                    if let Some(slopes) = by_facts.get_mut(self.rows(index)) {
                        rule.by_facts(*view, slopes);
                    }
                }
                (Rule::Group(rule, _), views, own) => *sum += rule.group(views, own),
                _ => {}
            }
            index += count;
        }
    }

    /// The datum with what was found for it.
    fn view<'v>(&'v self, index: usize, scored: &'v HeadOutcome) -> DatumView<'v> {
        let (example, end) = (self.data[index].example, self.ends[index]);
        let logprobs = &scored.logprobs[end - example.targets.len()..end];
        DatumView { example, logprobs, facts: scored.facts.get(self.rows(index)).unwrap_or_default() }
    }

    /// Which rows of the stretch are the datum's.
    fn rows(&self, index: usize) -> Range<usize> {
        let end = self.ends[index];
        (end - self.data[index].example.targets.len()) / self.width..end / self.width
    }

    /// Gives each share what was found for its examples.
    fn divide(&self, outcome: &HeadOutcome, found: &mut [Vec<Found>]) {
        let vocabulary = self.pass.base.config().vocab_size;
        for (index, (datum, end)) in self.data.iter().zip(&self.ends).enumerate() {
            let found = &mut found[datum.place.0][datum.place.1];
            let (targets, rows) = (end - datum.example.targets.len()..*end, self.rows(index));
            found.logprobs.push(outcome.logprobs[targets].to_vec());
            if datum.head.facts {
                found.facts.push(outcome.facts[rows.clone()].to_vec());
            }
            if datum.head.logits {
                found.logits.push(outcome.logits[rows.start * vocabulary..rows.end * vocabulary].to_vec());
            }
        }
    }
}
