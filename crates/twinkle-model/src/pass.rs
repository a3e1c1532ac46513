//! One pass: data of one or more runs laid end to end, once through the network, and once or twice through the head.
//!
//! Every run has an adapter of its own and a sum of gradients of its own; every operation its loss. No bit of what is
//! found for one depends on the others: a row's products do not see other rows, attention and adapter gradients are
//! computed datum by datum, and each run's data are added in its own order.

mod stretch;

use std::sync::Arc;

use tch::Tensor;
use twinkle_core::call::ForwardOptions;
use twinkle_core::{Error, Result};
use twinkle_nn::full::TrainedModel;
use twinkle_nn::{
    Adapter, BaseModel, DeviceFailure, ExpertLoad, Gradients, HeadOptions, Pack, Recompute, RowFacts, Segment, Tape,
    device_failure, out_of_memory,
};

use crate::batch::Example;
use crate::losses::{EmbeddingView, PerEmbedding, PerGroup, PerRow, PerSequence, PerToken, RowOptions};
use crate::run::Run;
use stretch::Stretch;

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
    /// How the network is used, and what is returned.
    pub options: ForwardOptions,
    /// What the loss reads of each row.
    pub row: RowOptions,
}

/// What is made of the targets' logprobs, or of the embeddings.
#[derive(Clone, Copy)]
pub enum Rule<'a> {
    /// Nothing.
    Score,
    /// A sum over tokens; each has so many numbers in [`Example::inputs`].
    Token(&'a dyn PerToken, usize),
    /// A sum over positions; each target has so many numbers in [`Example::inputs`].
    Row(&'a dyn PerRow, usize),
    /// A sum over datums.
    Sequence(&'a dyn PerSequence),
    /// A sum over groups of so many datums, none of which is cut.
    Group(&'a dyn PerGroup, usize),
    /// Derivatives that are known already, per example `[tokens × candidates]`.
    Given(&'a [Vec<f32>]),
    /// Nothing of the logprobs: embeddings are wanted in place of them.
    Embed,
    /// A function of all embeddings of the share, which is a whole operation.
    EmbedWhole(&'a dyn PerEmbedding),
    /// Derivatives by the embeddings that are known already, per example as many as the model is wide.
    EmbedGiven(&'a [Vec<f32>]),
}

impl Rule<'_> {
    /// Whether it is about embeddings, and the head is of no use.
    const fn embeds(self) -> bool {
        matches!(self, Self::Embed | Self::EmbedWhole(_) | Self::EmbedGiven(_))
    }

    /// Whether all logprobs of a datum are known before any derivative is.
    const fn scores_first(self) -> bool {
        matches!(self, Self::Sequence(_) | Self::Group(..))
    }
}

/// What a pass found for a share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Per example the natural-log probability of each target.
    pub logprobs: Vec<Vec<f32>>,
    /// Per example the facts of each position, if the loss or the client wants them.
    pub facts: Vec<Vec<RowFacts>>,
    /// Per example every logit, if the client wants them.
    pub logits: Vec<Vec<f32>>,
    /// Per example its embedding, if the loss or the client wants it.
    pub embeddings: Vec<Vec<f32>>,
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
        [only] => own_network(base, only)?,
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
                    Rule::Given(derivatives) | Rule::EmbedGiven(derivatives) => {
                        derivatives.get(index).map(Vec::as_slice)
                    }
                    _ => None,
                };
                let (options, head) = (wanted.options, wanted.head());
                data.push(PassDatum { example, rule: wanted.rule, given, options, head, place: (place, share) });
            }
        }
        let begin = |share: &Share| Found { value: share.value, ..Found::default() };
        found.push(participant.shares.iter().map(begin).collect());
        gradients.push(&mut participant.run.gradients);
    }
    let pass = Pass { base, adapters: &adapters, data: &data };
    let pack = Pass::pack(&data);
    let Way::Back(recompute) = way else {
        let hidden = base.forward(&pack, &adapters)?;
        pass.head(&hidden, &mut found, None)?;
        pass.embed(&hidden, &mut found)?;
        return Ok(found);
    };
    let (hidden, tape) = base.forward_recomputing(&pack, &adapters, recompute)?;
    count_experts(&tape, &data, &mut found);
    let d_hidden = pass.head(&hidden, &mut found, Some(&mut gradients))?;
    pass.embed(&hidden, &mut found)?;
    drop(hidden);
    if let Some(d_hidden) = d_hidden {
        base.backward(tape, d_hidden, &pack, &adapters, &mut gradients)?;
    }
    Ok(found)
}

/// The network of a run that trains all weights, unless it is to be used without what the run has made of it.
fn own_network(base: &BaseModel, participant: &mut Participant<'_>) -> Result<Option<Arc<TrainedModel>>> {
    let mut without = participant.shares.iter().map(|share| share.options.disable_lora);
    if participant.run.lora.full && without.clone().any(|without| without) {
        if without.all(|without| without) {
            return Ok(None);
        }
        return Err(Error::internal("the base's and a run's own weights were asked for in one pass"));
    }
    participant.run.own_model(base)
}

impl Share<'_> {
    fn head(&self) -> HeadOptions {
        let ForwardOptions { temperature, outputs, .. } = self.options;
        HeadOptions {
            temperature,
            softcap: self.row.softcap,
            facts: self.row.facts || outputs.entropies,
            logits: outputs.logits,
        }
    }
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
    options: ForwardOptions,
    head: HeadOptions,
    /// Which participant, and which of its shares.
    place: (usize, usize),
}

impl PassDatum<'_> {
    /// Data that go through the head together have the same number of targets per row and the same options, and are all
    /// scored before any derivative is known, or none is.
    fn goes_with(&self, other: &Self) -> bool {
        self.has_head() == other.has_head()
            && self.example.width() == other.example.width()
            && self.head == other.head
            && self.rule.scores_first() == other.rule.scores_first()
    }

    /// Whether it has anything to ask of the head.
    fn has_head(&self) -> bool {
        !self.rule.embeds() && !self.example.targets.is_empty()
    }

    fn wants_embedding(&self) -> bool {
        self.rule.embeds() || self.options.outputs.embeddings
    }
}

impl Pass<'_> {
    fn pack(data: &[PassDatum]) -> Pack {
        let segment = |datum: &PassDatum| Segment {
            length: datum.example.tokens.len(),
            adapter: (!datum.options.disable_lora).then_some(datum.place.0),
        };
        Pack {
            tokens: data.iter().flat_map(|datum| &datum.example.tokens).copied().collect(),
            segments: data.iter().map(segment).collect(),
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
            let has_head = data.iter().any(PassDatum::has_head);
            if has_head {
                let stretch = Stretch::new(self, data);
                parts.extend(stretch.head(&hidden, found, gradients.as_deref_mut())?);
                continue;
            }
            for datum in data {
                found[datum.place.0][datum.place.1].logprobs.push(Vec::new());
            }
            if gradients.is_some() {
                parts.push(self.without_head(&hidden, data)?);
            }
        }
        match parts.len() {
            0 | 1 => Ok(parts.pop()),
            _ => Tensor::f_cat(&parts, 0).map(Some).map_err(device_error),
        }
    }

    /// The gradient of hidden rows that do not go through the head.
    fn without_head(&self, hidden: &Tensor, data: &[PassDatum]) -> Result<Tensor> {
        let nothing = vec![0.0; self.base.config().hidden_size];
        let found = self.of_embeddings(hidden, data)?;
        let derivatives: Vec<&[f32]> = data
            .iter()
            .zip(&found)
            .map(|(datum, found)| match datum.rule {
                Rule::EmbedGiven(_) => datum.given.unwrap_or(&nothing),
                _ => found.as_deref().unwrap_or(&nothing),
            })
            .collect();
        self.base.embeddings_backward(hidden, &Self::pack(data), &derivatives)
    }

    /// Per datum the derivatives by its embedding, where the loss is a function of all embeddings of its share.
    fn of_embeddings(&self, hidden: &Tensor, data: &[PassDatum]) -> Result<Vec<Option<Vec<f32>>>> {
        let mut derivatives = Vec::with_capacity(data.len());
        let mut start = 0;
        for share in data.chunk_by(|left, right| left.place == right.place) {
            let rows: usize = share.iter().map(|datum| datum.example.tokens.len()).sum();
            let own = hidden.f_narrow(0, start as i64, rows as i64).map_err(device_error)?;
            start += rows;
            let Some(PassDatum { rule: Rule::EmbedWhole(rule), .. }) = share.first() else {
                derivatives.extend(share.iter().map(|_| None));
                continue;
            };
            let embeddings = self.base.embeddings(&own, &Self::pack(share))?;
            let pairs = share.iter().zip(&embeddings);
            let views: Vec<EmbeddingView> =
                pairs.map(|(datum, embedding)| EmbeddingView { example: datum.example, embedding }).collect();
            derivatives.extend(rule.embeddings(&views)?.derivatives.into_iter().map(Some));
        }
        Ok(derivatives)
    }

    /// The embeddings of those data whose loss or client wants them.
    fn embed(&self, hidden: &Tensor, found: &mut [Vec<Found>]) -> Result<()> {
        let mut start = 0;
        for datum in self.data {
            let rows = datum.example.tokens.len();
            if datum.wants_embedding() {
                let hidden = hidden.f_narrow(0, start, rows as i64).map_err(device_error)?;
                let own = self.base.embeddings(&hidden, &Self::pack(std::slice::from_ref(datum)))?;
                found[datum.place.0][datum.place.1].embeddings.extend(own);
            }
            start += rows as i64;
        }
        Ok(())
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
