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
        let is_scored_first = self.data.iter().any(|datum| matches!(datum.rule, Rule::Sequence(_)));
        if !is_scored_first {
            let gradients = gradients.map(Vec::as_mut_slice);
            let mut fused = |rows: Range<usize>, scored: Scored<'_>, slopes: Slopes<'_>| {
                self.by_row(&rows, scored, slopes, found);
            };
            let mut outcome = self.through(hidden, &mut fused, gradients)?;
            let d_hidden = outcome.d_hidden.take();
            self.divide(outcome, found);
            return Ok(d_hidden);
        }
        let scored = self.through(hidden, &mut |_, _, _| {}, None)?;
        let mut derivatives = vec![0.0; scored.logprobs.len()];
        let mut by_facts = vec![RowFacts::default(); scored.facts.len()];
        self.by_datum(&scored, &mut derivatives, &mut by_facts, found);
        self.divide(scored, found);
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
    fn by_row(&self, rows: &Range<usize>, scored: Scored, slopes: Slopes, found: &mut [Vec<Found>]) {
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
                    let mut input = (target - begin) * columns;
                    let mut row = (target - first) / self.width;
                    let positions = logprobs.chunks(self.width).zip(derivatives.chunks_mut(self.width));
                    for (logprobs, derivatives) in positions {
                        let inputs = &datum.example.inputs[input..input + self.width * columns];
                        let facts = scored.facts.get(row).copied().unwrap_or_default();
                        let mut by_facts = RowFacts::default();
                        *sum += rule.row(RowView { logprobs, inputs, facts }, derivatives, &mut by_facts);
                        if let Some(slope) = slopes.facts.get_mut(row) {
                            *slope = by_facts;
                        }
                        input += self.width * columns;
                        row += 1;
                    }
                }
                Rule::Given(_) => {
                    if let Some(given) = datum.given {
                        derivatives.copy_from_slice(&given[target - begin..stop - begin]);
                    }
                }
                Rule::Score | Rule::Sequence(_) | Rule::Embed | Rule::EmbedGiven(_) => {}
            }
            target = stop;
            index += 1;
        }
    }

    /// Values and derivatives of whole datums.
    fn by_datum(
        &self,
        scored: &HeadOutcome,
        derivatives: &mut [f32],
        by_facts: &mut [RowFacts],
        found: &mut [Vec<Found>],
    ) {
        for (datum, end) in self.data.iter().zip(&self.ends) {
            let Rule::Sequence(rule) = datum.rule else { continue };
            let targets = end - datum.example.targets.len()..*end;
            let rows = targets.start / self.width..targets.end / self.width;
            let facts = scored.facts.get(rows.clone()).unwrap_or_default();
            let view = DatumView { example: datum.example, logprobs: &scored.logprobs[targets.clone()], facts };
            found[datum.place.0][datum.place.1].value += rule.sequence(view, &mut derivatives[targets]);
            if let Some(slopes) = by_facts.get_mut(rows) {
                rule.by_facts(view, slopes);
            }
        }
    }

    /// Gives each share what was found for its examples.
    fn divide(&self, outcome: HeadOutcome, found: &mut [Vec<Found>]) {
        let vocabulary = self.pass.base.config().vocab_size;
        for (datum, end) in self.data.iter().zip(&self.ends) {
            let found = &mut found[datum.place.0][datum.place.1];
            let targets = end - datum.example.targets.len()..*end;
            let rows = targets.start / self.width..targets.end / self.width;
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
