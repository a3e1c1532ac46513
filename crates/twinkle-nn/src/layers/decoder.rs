//! One decoder layer: a token mixer and an MLP, each behind a norm and beside a residual.

use tch::{TchError, Tensor};
use twinkle_core::Result;

use super::delta::{DeltaTape, GatedDeltaNet};
use super::full;
use super::linear::Routing;
use super::load::LayerFiles;
use super::mlp::{Mlp, MlpTape};
use super::moe::{SparseMlp, SparseMlpTape};
use super::norm::RmsNorm;
use super::self_attention::{AttentionTape, SelfAttention};
use crate::cache::KvCache;
use crate::config::{LayerKind, MixerKind, MlpKind};
use crate::lora::{Gradients, Projection};
use crate::pack::Span;
use crate::rope::Rotation;
use crate::torch::TorchResult;

/// `x += mixer(norm(x)); x += mlp(norm(x))`.
#[derive(Debug)]
pub(crate) struct DecoderLayer {
    pub(crate) input_norm: RmsNorm,
    pub(crate) mixer: Mixer,
    pub(crate) post_norm: RmsNorm,
    pub(crate) mlp: MlpBlock,
}

/// What moves information between the tokens of a sequence.
#[derive(Debug)]
pub(crate) enum Mixer {
    Attention(SelfAttention),
    Delta(GatedDeltaNet),
}

/// What works on each token alone.
#[derive(Debug)]
pub(crate) enum MlpBlock {
    Dense(Mlp),
    Sparse(SparseMlp),
}

/// What a layer keeps of its forward pass for the backward.
#[derive(Debug)]
pub(crate) struct LayerTape {
    /// The layer's input, `[T, H]`.
    pub(crate) input: Tensor,
    /// The rows between mixer and MLP, `[T, H]`.
    pub(crate) middle: Tensor,
    pub(crate) mixer: MixerTape,
    pub(crate) mlp: MlpBlockTape,
}

/// What a [`Mixer`] keeps.
#[derive(Debug)]
pub(crate) enum MixerTape {
    Attention(AttentionTape),
    Delta(DeltaTape),
}

/// What an [`MlpBlock`] keeps.
#[derive(Debug)]
pub(crate) enum MlpBlockTape {
    Dense(MlpTape),
    Sparse(Box<SparseMlpTape>),
}

/// What all layers of a pass over whole sequences share.
pub(crate) struct Pass<'a> {
    pub(crate) rotation: &'a Rotation,
    /// The sequences.
    pub(crate) spans: &'a [Span],
    pub(crate) routing: &'a Routing<'a>,
}

/// What all layers of a pass over rows that continue cached sequences share.
pub(crate) struct CachedPass<'a, 'cache> {
    pub(crate) rotation: &'a Rotation,
    pub(crate) routing: &'a Routing<'a>,
    /// One cache takes all rows (a prompt), or each takes one (a step).
    pub(crate) caches: &'a mut [&'cache mut KvCache],
}

impl CachedPass<'_, '_> {
    /// How many of `rows` rows each cache takes.
    pub(crate) fn rows_each(&self, rows: i64) -> i64 {
        rows / self.caches.len() as i64
    }
}

impl DecoderLayer {
    pub(crate) fn load(files: &mut LayerFiles, kind: LayerKind) -> Result<Self> {
        let hidden = files.config.hidden_size;
        Ok(Self {
            input_norm: files.norm("input_layernorm", hidden)?,
            mixer: match kind.mixer {
                MixerKind::FullAttention => Mixer::Attention(SelfAttention::load(files)?),
                MixerKind::GatedDeltaNet => Mixer::Delta(GatedDeltaNet::load(files)?),
            },
            post_norm: files.norm("post_attention_layernorm", hidden)?,
            mlp: match kind.mlp {
                MlpKind::Dense => {
                    let projections = [Projection::Gate, Projection::Up, Projection::Down];
                    MlpBlock::Dense(Mlp::load(files, projections, files.config.mlp_bias)?)
                }
                MlpKind::Sparse => MlpBlock::Sparse(SparseMlp::load(files)?),
            },
        })
    }

    /// The layer's output for whole sequences, and what [`DecoderLayer::backward`] needs.
    pub(crate) fn forward(&self, input: Tensor, pass: &Pass) -> TorchResult<(Tensor, LayerTape)> {
        let normed = self.input_norm.forward(&input)?;
        let (mut middle, mixer) = self.mixer.forward(&normed, pass)?;
        drop(normed);
        let _ = middle.f_add_(&input)?;
        let normed = self.post_norm.forward(&middle)?;
        let (mut y, mlp) = self.mlp.forward(&normed, pass.routing)?;
        let _ = y.f_add_(&middle)?;
        Ok((y, LayerTape { input, middle, mixer, mlp }))
    }

    /// The gradient of the layer's input; `dy`'s memory is reused for it.
    pub(crate) fn backward(
        &self,
        tape: LayerTape,
        dy: Tensor,
        pass: &Pass,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let LayerTape { input, middle, mixer, mlp } = tape;
        // y = middle + mlp(norm(middle)): the gradient passes by and through.
        let normed = self.post_norm.forward(&middle)?;
        let d_normed = self.mlp.backward(&normed, &dy, mlp, pass.routing, gradients)?;
        full::norm(&self.post_norm, &middle, &d_normed, pass.routing, gradients)?;
        self.post_norm.backward_into(&middle, &d_normed, &dy)?;
        drop((normed, d_normed, middle));

        let normed = self.input_norm.forward(&input)?;
        let d_normed = self.mixer.backward(&normed, &dy, mixer, pass, gradients)?;
        full::norm(&self.input_norm, &input, &d_normed, pass.routing, gradients)?;
        self.input_norm.backward_into(&input, &d_normed, &dy)?;
        Ok(dy)
    }

    /// The layer's output for rows that continue the sequences of `pass`. `index` is the layer's place in the caches.
    pub(crate) fn forward_cached(&self, index: usize, input: &Tensor, pass: &mut CachedPass) -> TorchResult<Tensor> {
        let normed = self.input_norm.forward(input)?;
        let mut middle = self.mixer.forward_cached(index, &normed, pass)?;
        let _ = middle.f_add_(input)?;
        let (mut y, _) = self.mlp.forward(&self.post_norm.forward(&middle)?, pass.routing)?;
        let _ = y.f_add_(&middle)?;
        Ok(y)
    }
}

impl Mixer {
    fn forward(&self, normed: &Tensor, pass: &Pass) -> TorchResult<(Tensor, MixerTape)> {
        match self {
            Self::Attention(attention) => {
                let (y, tape) = attention.forward(normed, pass)?;
                Ok((y, MixerTape::Attention(tape)))
            }
            Self::Delta(delta) => {
                let (y, tape) = delta.forward(normed, pass)?;
                Ok((y, MixerTape::Delta(tape)))
            }
        }
    }

    fn backward(
        &self,
        normed: &Tensor,
        dy: &Tensor,
        tape: MixerTape,
        pass: &Pass,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        match (self, tape) {
            (Self::Attention(attention), MixerTape::Attention(tape)) => {
                attention.backward(normed, dy, tape, pass, gradients)
            }
            (Self::Delta(delta), MixerTape::Delta(tape)) => delta.backward(normed, dy, tape, pass, gradients),
            _ => Err(mismatch()),
        }
    }

    fn forward_cached(&self, index: usize, normed: &Tensor, pass: &mut CachedPass) -> TorchResult<Tensor> {
        match self {
            Self::Attention(attention) => attention.forward_cached(index, normed, pass),
            Self::Delta(delta) => delta.forward_cached(index, normed, pass),
        }
    }
}

impl MlpBlock {
    fn forward(&self, normed: &Tensor, routing: &Routing) -> TorchResult<(Tensor, MlpBlockTape)> {
        match self {
            Self::Dense(mlp) => {
                let (y, tape) = mlp.forward(normed, routing)?;
                Ok((y, MlpBlockTape::Dense(tape)))
            }
            Self::Sparse(mlp) => {
                let (y, tape) = mlp.forward(normed, routing)?;
                Ok((y, MlpBlockTape::Sparse(Box::new(tape))))
            }
        }
    }

    fn backward(
        &self,
        normed: &Tensor,
        dy: &Tensor,
        tape: MlpBlockTape,
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        match (self, tape) {
            (Self::Dense(mlp), MlpBlockTape::Dense(tape)) => mlp.backward(normed, dy, tape, routing, gradients),
            (Self::Sparse(mlp), MlpBlockTape::Sparse(tape)) => mlp.backward(normed, dy, *tape, routing, gradients),
            _ => Err(mismatch()),
        }
    }
}

fn mismatch() -> TchError {
    TchError::Torch("the tape belongs to another kind of layer".to_owned())
}
