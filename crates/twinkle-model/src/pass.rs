//! One pass: data of one or more runs laid end to end, once through the network, and once or twice through the head.
//!
//! Every run has an adapter of its own and a sum of gradients of its own; every operation its loss. No bit of what is
//! found for one depends on the others: a row's products do not see other rows, attention and adapter gradients are
//! computed datum by datum, and each run's data are added in its own order.

use std::ops::Range;
use std::sync::Arc;

use tch::Tensor;
use twinkle_core::{Error, Result};
use twinkle_nn::{
    Adapter, BaseModel, DeviceFailure, ExpertLoad, Gradients, Pack, Recompute, Segment, Tape, device_failure,
    out_of_memory,
};

use crate::batch::Example;
use crate::losses::{DatumView, PerSequence, PerToken};
use crate::run::Run;

/// A run in a pass.
pub struct Participant<'a> {
    /// The run. A pass that goes back adds to its gradients and changes nothing else.
    pub run: &'a mut Run,
    /// What is computed for it, in its order.
    pub shares: Vec<Share<'a>>,
}

/// The data of one operation in a pass.
pub struct Share<'a> {
    /// Checked examples, in order.
    pub examples: &'a [Example],
    /// What is made of their logprobs.
    pub rule: Rule<'a>,
    /// The sum of the operation's loss over the data before these.
    pub value: f64,
}

/// What is made of the targets' logprobs.
#[derive(Clone, Copy)]
pub enum Rule<'a> {
    /// Nothing.
    Score,
    /// A sum over tokens; each has so many numbers in [`Example::inputs`].
    Token(&'a dyn PerToken, usize),
    /// A sum over datums.
    Sequence(&'a dyn PerSequence),
    /// Derivatives that are known already, per example `[tokens × candidates]`.
    Given(&'a [Vec<f32>]),
}

/// What a pass found for a share.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Per example the natural-log probability of each target.
    pub logprobs: Vec<Vec<f32>>,
    /// The sum of the operation's loss through these data.
    pub value: f64,
    /// How often each expert was given a row, on a way back through a model with experts.
    pub expert_load: ExpertLoad,
}

/// Which way a pass goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Forward only.
    Forward,
    /// Forward and back, with so many layers computed twice to save memory. No bit depends on how many.
    Back(Recompute),
}

/// Computes a pass; on the way back, adds each share's gradient to its run's. Per participant and share what was found.
///
/// On an error, and after a panic, the gradients of every participant are undefined and nothing else has changed.
pub fn compute(base: &BaseModel, participants: &mut [Participant<'_>], way: Way) -> Result<Vec<Vec<Found>>> {
    // A run that trains all weights has a network of its own and shares no pass.
    let own = match participants {
        [only] => only.run.own_model(base)?,
        several if several.iter().any(|participant| participant.run.lora.full) => {
            return Err(Error::internal("a run that trains all weights was put into a pass with others"));
        }
        _ => None,
    };
    let base = own.as_ref().map_or(base, |own| own.model());
    let adapters: Vec<Arc<Adapter>> =
        participants.iter_mut().map(|participant| participant.run.adapter(base)).collect();
    let (mut data, mut gradients) = (Vec::new(), Vec::with_capacity(participants.len()));
    let mut found: Vec<Vec<Found>> = Vec::with_capacity(participants.len());
    for (place, participant) in participants.iter_mut().enumerate() {
        for (share, wanted) in participant.shares.iter().enumerate() {
            for (index, example) in wanted.examples.iter().enumerate() {
                let given = match wanted.rule {
                    Rule::Given(derivatives) => derivatives.get(index).map(Vec::as_slice),
                    _ => None,
                };
                data.push(PassDatum { example, rule: wanted.rule, given, place: (place, share) });
            }
        }
        let begin = |share: &Share| Found {
            logprobs: Vec::with_capacity(share.examples.len()),
            value: share.value,
            expert_load: ExpertLoad::default(),
        };
        found.push(participant.shares.iter().map(begin).collect());
        gradients.push(&mut participant.run.gradients);
    }
    let pass = Pass { base, adapters: &adapters, data: &data };
    let pack = Pass::pack(&data);
    let Way::Back(recompute) = way else {
        let hidden = base.forward(&pack, &adapters)?;
        pass.head(&hidden, &mut found, None)?;
        return Ok(found);
    };
    let (hidden, tape) = base.forward_recomputing(&pack, &adapters, recompute)?;
    count_experts(&tape, &data, &mut found);
    let d_hidden = pass.head(&hidden, &mut found, Some(&mut gradients))?;
    drop(hidden);
    if let Some(d_hidden) = d_hidden {
        base.backward(tape, d_hidden, &pack, &adapters, &mut gradients)?;
    }
    Ok(found)
}

/// Gives each share the experts of its rows.
fn count_experts(tape: &Tape, data: &[PassDatum], found: &mut [Vec<Found>]) {
    let mut start = 0;
    for datum in data {
        let rows = start..start + datum.example.tokens.len();
        start = rows.end;
        found[datum.place.0][datum.place.1].expert_load.add(&tape.expert_load(&rows));
    }
}

/// The data of a pass, in the order of its rows.
struct Pass<'a> {
    base: &'a BaseModel,
    adapters: &'a [Arc<Adapter>],
    data: &'a [PassDatum<'a>],
}

/// One datum of a pass.
#[derive(Clone, Copy)]
struct PassDatum<'a> {
    example: &'a Example,
    rule: Rule<'a>,
    /// Its derivatives, if they are known.
    given: Option<&'a [f32]>,
    /// Which participant, and which of its shares.
    place: (usize, usize),
}

impl PassDatum<'_> {
    /// Data that go through the head together have the same number of targets per row, and are all scored before any
    /// derivative is known, or none is.
    fn goes_with(&self, other: &Self) -> bool {
        let is_scored_first = |datum: &Self| matches!(datum.rule, Rule::Sequence(_));
        self.example.width() == other.example.width() && is_scored_first(self) == is_scored_first(other)
    }
}

impl Pass<'_> {
    fn pack(data: &[PassDatum]) -> Pack {
        Pack {
            tokens: data.iter().flat_map(|datum| &datum.example.tokens).copied().collect(),
            segments: data
                .iter()
                .map(|datum| Segment { length: datum.example.tokens.len(), adapter: Some(datum.place.0) })
                .collect(),
        }
    }

    /// All rows through the head, in stretches of data that go together. With gradients, those of the hidden rows.
    fn head(
        &self,
        hidden: &Tensor,
        found: &mut [Vec<Found>],
        mut gradients: Option<&mut Vec<&mut Gradients>>,
    ) -> Result<Option<Tensor>> {
        let mut parts = Vec::new();
        let mut start = 0;
        for data in self.data.chunk_by(PassDatum::goes_with) {
            let rows: usize = data.iter().map(|datum| datum.example.tokens.len()).sum();
            let hidden = hidden.f_narrow(0, start as i64, rows as i64).map_err(device_error)?;
            start += rows;
            let stretch = Stretch::new(self, data);
            parts.extend(stretch.head(&hidden, found, gradients.as_deref_mut())?);
        }
        match parts.len() {
            0 | 1 => Ok(parts.pop()),
            _ => Tensor::f_cat(&parts, 0).map(Some).map_err(device_error),
        }
    }
}

/// Data that go through the head together.
struct Stretch<'a> {
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
    fn new(pass: &'a Pass<'a>, data: &'a [PassDatum<'a>]) -> Self {
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

    fn head(
        &self,
        hidden: &Tensor,
        found: &mut [Vec<Found>],
        gradients: Option<&mut Vec<&mut Gradients>>,
    ) -> Result<Option<Tensor>> {
        let is_scored_first = self.data.iter().any(|datum| matches!(datum.rule, Rule::Sequence(_)));
        if !is_scored_first {
            let gradients = gradients.map(Vec::as_mut_slice);
            let mut fused = |rows: Range<usize>, logprobs: &[f32], derivatives: &mut [f32]| {
                self.by_token(&rows, logprobs, derivatives, found);
            };
            let outcome = self.through(hidden, &mut fused, gradients)?;
            self.divide(&outcome.logprobs, found);
            return Ok(outcome.d_hidden);
        }
        let scored = self.through(hidden, &mut |_, _, _| {}, None)?;
        let mut derivatives = vec![0.0; scored.logprobs.len()];
        self.by_datum(&scored.logprobs, &mut derivatives, found);
        self.divide(&scored.logprobs, found);
        let Some(gradients) = gradients else { return Ok(None) };
        let mut known = |rows: Range<usize>, _: &[f32], wanted: &mut [f32]| {
            wanted.copy_from_slice(&derivatives[rows.start * self.width..rows.end * self.width]);
        };
        Ok(self.through(hidden, &mut known, Some(gradients.as_mut_slice()))?.d_hidden)
    }

    fn through(
        &self,
        hidden: &Tensor,
        loss: &mut twinkle_nn::LossFunction,
        gradients: Option<&mut [&mut Gradients]>,
    ) -> Result<twinkle_nn::HeadOutcome> {
        self.pass.base.head_loss(hidden, &self.pack, self.pass.adapters, &self.targets, loss, gradients)
    }

    /// Values and derivatives of some rows, as far as they are functions of one token.
    fn by_token(&self, rows: &Range<usize>, logprobs: &[f32], derivatives: &mut [f32], found: &mut [Vec<Found>]) {
        let (first, last) = (rows.start * self.width, rows.end * self.width);
        let mut index = self.ends.partition_point(|end| *end <= first);
        let mut target = first;
        while target < last {
            let (Some(datum), Some(end)) = (self.data.get(index), self.ends.get(index)) else { return };
            let begin = end - datum.example.targets.len();
            let stop = last.min(*end);
            let here = target - first..stop - first;
            match datum.rule {
                Rule::Token(rule, columns) => {
                    let sum = &mut found[datum.place.0][datum.place.1].value;
                    for (place, derivative) in here.clone().zip(&mut derivatives[here]) {
                        let input = (first + place - begin) * columns;
                        let token = rule.token(logprobs[place], &datum.example.inputs[input..input + columns]);
                        *sum += f64::from(token.value);
                        *derivative = token.derivative;
                    }
                }
                Rule::Given(_) => {
                    if let Some(given) = datum.given {
                        derivatives[here].copy_from_slice(&given[target - begin..stop - begin]);
                    }
                }
                Rule::Score | Rule::Sequence(_) => {}
            }
            target = stop;
            index += 1;
        }
    }

    /// Values and derivatives of whole datums.
    fn by_datum(&self, logprobs: &[f32], derivatives: &mut [f32], found: &mut [Vec<Found>]) {
        for (datum, end) in self.data.iter().zip(&self.ends) {
            let Rule::Sequence(rule) = datum.rule else { continue };
            let targets = end - datum.example.targets.len()..*end;
            let view = DatumView { example: datum.example, logprobs: &logprobs[targets.clone()] };
            found[datum.place.0][datum.place.1].value += rule.sequence(view, &mut derivatives[targets]);
        }
    }

    /// Gives each share the logprobs of its examples.
    fn divide(&self, logprobs: &[f32], found: &mut [Vec<Found>]) {
        for (datum, end) in self.data.iter().zip(&self.ends) {
            let own = logprobs[end - datum.example.targets.len()..*end].to_vec();
            found[datum.place.0][datum.place.1].logprobs.push(own);
        }
    }
}

/// A failed tensor operation, as [`crate::failure`] reads it.
#[expect(clippy::needless_pass_by_value, reason = "handed to `map_err`")]
fn device_error(error: tch::TchError) -> Error {
    let text = error.to_string();
    match device_failure(&text) {
        DeviceFailure::OutOfMemory => out_of_memory(&text),
        DeviceFailure::Operation | DeviceFailure::Lost => Error::internal(format!("a tensor operation failed: {text}")),
    }
}
