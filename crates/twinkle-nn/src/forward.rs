//! The forward pass over packed rows.

use std::ops::Range;
use std::sync::Arc;

use tch::Tensor;
use twinkle_core::Result;

use crate::layers::decoder::{LayerTape, MlpBlockTape, Pass};
use crate::layers::linear::{Group, Routing, Rows};
use crate::layers::moe::{Choice, ExpertLoad};
use crate::lora::Adapter;
use crate::memory::Recompute;
use crate::model::BaseModel;
use crate::pack::{Pack, Span};
use crate::rope::Rotation;
use crate::torch::{TorchResult, device_error};

/// What a forward pass keeps for its backward: per layer the rows that are dear to recompute.
#[derive(Debug)]
pub struct Tape {
    pub(crate) layers: Vec<KeptLayer>,
    /// The rows before the final norm, `[T, H]`.
    pub(crate) last: Tensor,
    pub(crate) rotation: Rotation,
    /// Of each layer that has experts, those of each row.
    choices: Vec<Arc<Choice>>,
}

impl Tape {
    /// The residual stream after each layer, `L` times `[T, H]` in the model's dtype, to compare with a reference.
    #[must_use]
    pub fn residual_stream(&self) -> Vec<&Tensor> {
        self.layers.iter().skip(1).map(KeptLayer::input).chain([&self.last]).collect()
    }

    /// How often the rows `rows` of the pack were given to each expert. Empty for a model without experts.
    #[must_use]
    pub fn expert_load(&self, rows: &Range<usize>) -> ExpertLoad {
        ExpertLoad { layers: self.choices.iter().map(|choice| choice.load(rows)).collect() }
    }
}

/// What is kept of one layer.
#[derive(Debug)]
pub(crate) enum KeptLayer {
    /// What its backward needs.
    Whole(Box<LayerTape>),
    /// Its input, `[T, H]`: the backward computes the layer again first, in the same bits.
    Input(Tensor),
}

impl KeptLayer {
    fn input(&self) -> &Tensor {
        match self {
            Self::Whole(tape) => &tape.input,
            Self::Input(input) => input,
        }
    }
}

impl BaseModel {
    /// The rows after the final norm, `[T, H]` in the model's dtype, without keeping anything for a backward.
    pub fn forward(&self, pack: &Pack, adapters: &[Arc<Adapter>]) -> Result<Tensor> {
        pack.validate(&self.config, adapters.len())?;
        tch::no_grad(|| self.run(pack, adapters, None)).map_err(device_error)
    }

    /// The rows after the final norm, `[T, H]` in the model's dtype, and what [`BaseModel::backward`] needs.
    pub fn forward_training(&self, pack: &Pack, adapters: &[Arc<Adapter>]) -> Result<(Tensor, Tape)> {
        self.forward_recomputing(pack, adapters, Recompute::NOTHING)
    }

    /// The same in less memory: of the layers that `recompute` names only the input is kept, and the backward computes
    /// them again. Gradients have the same bits, whatever is recomputed.
    pub fn forward_recomputing(
        &self,
        pack: &Pack,
        adapters: &[Arc<Adapter>],
        recompute: Recompute,
    ) -> Result<(Tensor, Tape)> {
        pack.validate(&self.config, adapters.len())?;
        tch::no_grad(|| {
            let mut kept = Kept { recompute, ..Kept::default() };
            let hidden = self.run(pack, adapters, Some(&mut kept))?;
            let last = kept.last.unwrap_or_default();
            let rotation = self.rotation(&pack.spans())?;
            Ok((hidden, Tape { layers: kept.layers, last, rotation, choices: kept.choices }))
        })
        .map_err(device_error)
    }

    fn run(&self, pack: &Pack, adapters: &[Arc<Adapter>], mut kept: Option<&mut Kept>) -> TorchResult<Tensor> {
        let spans = pack.spans();
        let routing = self.training_routing(&spans, adapters);
        let rotation = self.rotation(&spans)?;
        let mut x = self.embed(&pack.tokens)?;
        let pass = Pass { rotation: &rotation, spans: &spans, routing: &routing };
        for layer in &self.layers {
            let input = x.shallow_clone();
            let (y, tape) = layer.forward(x, &pass)?;
            if let Some(kept) = kept.as_deref_mut() {
                kept.push(input, tape);
            }
            x = y;
        }
        let hidden = self.final_norm.forward(&x)?;
        if let Some(kept) = kept {
            kept.last = Some(x);
        }
        Ok(hidden)
    }

    /// The embedding rows of these tokens, `[T, H]`.
    pub(crate) fn embed(&self, tokens: &[u32]) -> TorchResult<Tensor> {
        let ids: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
        self.embedding.tensor().f_index_select(0, &Tensor::f_from_slice(&ids)?.f_to_device(self.device)?)
    }

    /// Each sequence is a group of its own: its adapter's products see its rows and no others.
    pub(crate) fn training_routing<'a>(&self, spans: &[Span], adapters: &'a [Arc<Adapter>]) -> Routing<'a> {
        let groups = spans
            .iter()
            .filter_map(|span| {
                let index = span.adapter?;
                Some(Group { rows: Rows::range(span.rows()), adapter: adapters.get(index)?, index })
            })
            .collect();
        Routing { tile: self.row_tile, adapter_tile: None, groups }
    }

    fn rotation(&self, spans: &[Span]) -> TorchResult<Rotation> {
        let positions: Vec<i64> = spans.iter().flat_map(|span| 0..span.length as i64).collect();
        self.rotary.at(&positions)
    }
}

/// What [`BaseModel::forward_training`] collects on the way.
#[derive(Default)]
struct Kept {
    recompute: Recompute,
    layers: Vec<KeptLayer>,
    choices: Vec<Arc<Choice>>,
    last: Option<Tensor>,
}

impl Kept {
    fn push(&mut self, input: Tensor, tape: LayerTape) {
        if let MlpBlockTape::Sparse(tape) = &tape.mlp {
            self.choices.push(Arc::clone(tape.choice()));
        }
        let is_recomputed = self.layers.len() < self.recompute.layers;
        self.layers.push(if is_recomputed { KeptLayer::Input(input) } else { KeptLayer::Whole(Box::new(tape)) });
    }
}
