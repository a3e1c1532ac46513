//! `InfonceLoss` (van den Oord et al. 2018, arXiv:1807.03748): every anchor against its positive and the other documents.
//!
//! Data come in groups: an anchor, its positive, and any number of negatives. A `label` of 1 begins a group, 0 continues it.
//! With the embeddings e, all of length 1, an anchor's loss is the cross-entropy of `e_anchor · e_document / temperature` with
//! its positive as the target, and the loss is the mean over the anchors. The documents are those of its group, or with
//! `use_batch` those of all groups; `include_qq` adds the other anchors, `include_dd` what the positive has in common with all
//! other documents (Zhang et al. 2025, Qwen3 Embedding, arXiv:2506.05176). With `mask_fake_negative` the batch's documents and
//! anchors that are nearer than the positive by more than `fake_neg_margin` are left out.
//!
//! `hard_negatives` gives every group so many negatives: the first of them, or, where there are fewer, all of them again in
//! their order.

use std::collections::BTreeMap;

use twinkle_core::{Error, Result};

use super::settings::Settings;
use crate::batch::Example;
use crate::losses::{Column, EmbeddingView, Inputs, Loss, PerEmbedding, Scope, WholeLoss};

pub(super) const SETTINGS: &[&str] = &[
    "temperature",
    "use_batch",
    "hard_negatives",
    "mask_fake_negative",
    "fake_neg_margin",
    "include_qq",
    "include_dd",
];
const COLUMNS: &[Column] = &[Column { name: "label", default: None }];

struct Contrastive {
    temperature: f64,
    use_batch: bool,
    hard_negatives: Option<usize>,
    /// What is nearer than the positive by more than this is left out.
    margin: Option<f64>,
    include_anchors: bool,
    include_documents: bool,
}

pub(super) fn build(settings: &Settings) -> Result<Box<dyn Loss>> {
    let is_masked = settings.flag("mask_fake_negative", false)?;
    let margin = is_masked.then(|| settings.positive("fake_neg_margin", 0.1)).transpose()?;
    let hard_negatives = settings.given("hard_negatives")?.map(|_| settings.count("hard_negatives", 1.0));
    Ok(Box::new(Contrastive {
        temperature: settings.positive("temperature", 0.1)?,
        use_batch: settings.flag("use_batch", true)?,
        hard_negatives: hard_negatives.transpose()?.map(|count| count as usize),
        margin,
        include_anchors: settings.flag("include_qq", false)?,
        include_documents: settings.flag("include_dd", false)?,
    }))
}

impl Loss for Contrastive {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::PerDatum(COLUMNS)
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Embeddings(self)
    }

    fn needs_targets(&self) -> bool {
        false
    }

    fn known_inputs(&self) -> &'static [&'static str] {
        super::INPUTS
    }

    fn check(&self, example: &Example) -> Result<()> {
        match example.inputs[..] {
            [0.0 | 1.0] => Ok(()),
            _ => Err(Error::invalid("`label` must be 1 where a group begins and 0 elsewhere")),
        }
    }

    fn prepare(&self, examples: &mut [Example]) -> Result<()> {
        self.groups(examples.iter()).map(drop)
    }
}

/// An anchor and its documents, the positive first, as places among the data.
#[derive(Clone, Debug, PartialEq)]
struct Group {
    anchor: usize,
    documents: Vec<usize>,
}

/// Something an anchor is compared with: the two places whose product it is.
type Pair = (usize, usize);

impl Contrastive {
    fn groups<'e>(&self, examples: impl Iterator<Item = &'e Example>) -> Result<Vec<Group>> {
        let mut groups: Vec<Group> = Vec::new();
        for (place, example) in examples.enumerate() {
            let begins = example.inputs.first().is_some_and(|label| *label != 0.0);
            match groups.last_mut() {
                Some(group) if !begins => group.documents.push(place),
                None if !begins => {
                    return Err(Error::invalid("datum 0 has `label` 0, but begins a group")
                        .hint("a group is an anchor with `label` 1, then its positive and its negatives with 0"));
                }
                _ => groups.push(Group { anchor: place, documents: Vec::new() }),
            }
        }
        for group in &mut groups {
            if group.documents.is_empty() {
                return Err(Error::invalid(format!("the group that begins at datum {} has no positive", group.anchor)));
            }
            let Some(wanted) = self.hard_negatives else { continue };
            let negatives = group.documents.split_off(1);
            if negatives.is_empty() {
                return Err(Error::invalid(format!(
                    "the group that begins at datum {} has no negative, but `hard_negatives` asks for {wanted}",
                    group.anchor
                )));
            }
            group.documents.extend(negatives.iter().cycle().take(wanted));
        }
        Ok(groups)
    }

    /// What an anchor is compared with; its positive is at the place that comes second.
    fn compared(&self, groups: &[Group], own: usize) -> (Vec<Pair>, usize) {
        let group = &groups[own];
        if !self.use_batch {
            return (group.documents.iter().map(|document| (group.anchor, *document)).collect(), 0);
        }
        let documents = || groups.iter().flat_map(|group| group.documents.iter().copied());
        let positive: usize = groups[..own].iter().map(|group| group.documents.len()).sum();
        (documents().map(|document| (group.anchor, document)).collect(), positive)
    }

    /// What else stands in the softmax: with the other anchors, and of the positive with all other documents.
    fn added(&self, groups: &[Group], own: usize, positive: usize) -> (Vec<Pair>, Vec<Pair>) {
        if !self.use_batch {
            return (Vec::new(), Vec::new());
        }
        let group = &groups[own];
        let anchors = groups.iter().enumerate().filter(|(place, _)| self.include_anchors && *place != own);
        let documents = groups.iter().flat_map(|group| group.documents.iter().copied()).enumerate();
        let others = documents.filter(|(place, _)| self.include_documents && *place != positive);
        (
            anchors.map(|(_, other)| (group.anchor, other.anchor)).collect(),
            others.map(|(_, document)| (group.documents[0], document)).collect(),
        )
    }
}

impl PerEmbedding for Contrastive {
    fn embeddings(&self, data: &[EmbeddingView]) -> Result<WholeLoss> {
        let groups = self.groups(data.iter().map(|view| view.example))?;
        let product = |(a, b): Pair| -> f64 {
            data[a].embedding.iter().zip(data[b].embedding).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let mut derivatives: Vec<Vec<f64>> = data.iter().map(|view| vec![0.0; view.embedding.len()]).collect();
        let mut value = 0.0;
        for (own, group) in groups.iter().enumerate() {
            let (documents, positive) = self.compared(&groups, own);
            let (anchors, others) = self.added(&groups, own, positive);
            let target = product(documents[positive]);
            let threshold = self.margin.filter(|_| self.use_batch).map_or(f64::INFINITY, |margin| target + margin);
            let near = documents.into_iter().chain(anchors).map(|pair| (pair, product(pair)));
            let far = others.into_iter().map(|pair| (pair, product(pair)));
            let kept: Vec<(Pair, f64)> = near.filter(|(_, product)| *product <= threshold).chain(far).collect();
            let largest = kept.iter().map(|(_, product)| *product).fold(f64::NEG_INFINITY, f64::max);
            let share = |product: f64| ((product - largest) / self.temperature).exp();
            let total: f64 = kept.iter().map(|(_, product)| share(*product)).sum();
            value += total.ln() - (target - largest) / self.temperature;
            let scale = 1.0 / (self.temperature * groups.len() as f64);
            let pulled = ((group.anchor, group.documents[0]), -scale);
            for ((a, b), slope) in
                kept.iter().map(|(pair, product)| (*pair, scale * share(*product) / total)).chain([pulled])
            {
                add(&mut derivatives[a], slope, data[b].embedding);
                add(&mut derivatives[b], slope, data[a].embedding);
            }
        }
        Ok(WholeLoss {
            value: value / groups.len().max(1) as f64,
            derivatives: derivatives
                .into_iter()
                .map(|own| own.into_iter().map(|derivative| derivative as f32).collect())
                .collect(),
            metrics: BTreeMap::new(),
        })
    }
}

fn add(sum: &mut [f64], factor: f64, row: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += factor * f64::from(*value);
    }
}
