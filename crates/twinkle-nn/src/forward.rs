//! The forward pass over packed rows.

use std::sync::Arc;

use tch::Tensor;
use twinkle_core::Result;

use crate::layers::attention::LogSumExp;
use crate::layers::linear::{Group, Routing, Rows, Shrunk};
use crate::layers::mlp::MlpTape;
use crate::lora::Adapter;
use crate::model::{BaseModel, DecoderLayer};
use crate::pack::{Pack, Span};
use crate::rope::Rotation;
use crate::torch::{TorchResult, device_error};

/// What a forward pass keeps for its backward: per layer the rows that are dear to recompute.
#[derive(Debug)]
pub struct Tape {
    pub(crate) layers: Vec<LayerTape>,
    /// The rows before the final norm, `[T, H]`.
    pub(crate) last: Tensor,
    pub(crate) rotation: Rotation,
}

/// One layer's part of a [`Tape`].
#[derive(Debug)]
pub(crate) struct LayerTape {
    /// The layer's input, `[T, H]`.
    pub(crate) input: Tensor,
    /// The rows between attention and MLP, `[T, H]`.
    pub(crate) middle: Tensor,
    pub(crate) attention: AttentionTape,
    pub(crate) mlp: MlpTape,
}

/// What the attention's backward needs.
#[derive(Debug)]
pub(crate) struct AttentionTape {
    /// q and k as projected, kept only when they are normed: `[T, n, d]`.
    pub(crate) unnormed: Option<(Tensor, Tensor)>,
    /// Rotated queries, `[T, n_h, d]`.
    pub(crate) q: Tensor,
    /// Rotated keys, `[T, n_kv, d]`.
    pub(crate) k: Tensor,
    /// `[T, n_kv, d]`.
    pub(crate) v: Tensor,
    /// The heads' outputs, `[T, n_h · d]`.
    pub(crate) out: Tensor,
    /// Per sequence.
    pub(crate) lse: Vec<LogSumExp>,
    pub(crate) shrunk: AttentionShrunk,
}

/// What the adapters on the attention's projections computed.
#[derive(Debug)]
pub(crate) struct AttentionShrunk {
    pub(crate) query: Shrunk,
    pub(crate) key: Shrunk,
    pub(crate) value: Shrunk,
    pub(crate) output: Shrunk,
}

/// Queries, keys and values of some rows, rotated.
pub(crate) struct Projected {
    pub(crate) unnormed: Option<(Tensor, Tensor)>,
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    pub(crate) shrunk: (Shrunk, Shrunk, Shrunk),
}

impl BaseModel {
    /// The rows after the final norm, `[T, H]` in the model's dtype, without keeping anything for a backward.
    pub fn forward(&self, pack: &Pack, adapters: &[Arc<Adapter>]) -> Result<Tensor> {
        pack.validate(&self.config, adapters.len())?;
        tch::no_grad(|| self.run(pack, adapters, None)).map_err(device_error)
    }

    /// The rows after the final norm, `[T, H]` in the model's dtype, and what [`BaseModel::backward`] needs.
    pub fn forward_training(&self, pack: &Pack, adapters: &[Arc<Adapter>]) -> Result<(Tensor, Tape)> {
        pack.validate(&self.config, adapters.len())?;
        tch::no_grad(|| {
            let mut kept = Kept { layers: Vec::with_capacity(self.layers.len()), last: None };
            let hidden = self.run(pack, adapters, Some(&mut kept))?;
            let last = kept.last.unwrap_or_default();
            Ok((hidden, Tape { layers: kept.layers, last, rotation: self.rotation(&pack.spans())? }))
        })
        .map_err(device_error)
    }

    fn run(&self, pack: &Pack, adapters: &[Arc<Adapter>], mut kept: Option<&mut Kept>) -> TorchResult<Tensor> {
        let spans = pack.spans();
        let routing = self.training_routing(&spans, adapters);
        let rotation = self.rotation(&spans)?;
        let mut x = self.embed(&pack.tokens)?;
        for layer in &self.layers {
            let (y, tape) = layer.forward(x, &rotation, &spans, &routing)?;
            if let Some(kept) = kept.as_deref_mut() {
                kept.layers.push(tape);
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
struct Kept {
    layers: Vec<LayerTape>,
    last: Option<Tensor>,
}

impl DecoderLayer {
    fn forward(
        &self,
        input: Tensor,
        rotation: &Rotation,
        spans: &[Span],
        routing: &Routing,
    ) -> TorchResult<(Tensor, LayerTape)> {
        let normed = self.input_norm.forward(&input)?;
        let Projected { unnormed, q, k, v, shrunk } = self.project(&normed, rotation, routing)?;
        drop(normed);
        let out = self.empty_heads_output(&q)?;
        let mut lse = Vec::with_capacity(spans.len());
        for span in spans {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, span.start as i64, span.length as i64);
            lse.push(self.heads.causal(&rows(&q)?, &rows(&k)?, &rows(&v)?, &rows(&out)?)?);
        }
        let (mut middle, output_shrunk) = self.output.forward(&out, routing)?;
        let _ = middle.f_add_(&input)?;

        let (mut y, mlp) = self.mlp.forward(&self.post_norm.forward(&middle)?, routing)?;
        let _ = y.f_add_(&middle)?;

        let (query, key, value) = shrunk;
        let shrunk = AttentionShrunk { query, key, value, output: output_shrunk };
        let attention = AttentionTape { unnormed, q, k, v, out, lse, shrunk };
        Ok((y, LayerTape { input, middle, attention, mlp }))
    }

    /// Rows of normed input to rotated queries, keys, and values.
    pub(crate) fn project(&self, normed: &Tensor, rotation: &Rotation, routing: &Routing) -> TorchResult<Projected> {
        let rows = normed.size()[0];
        let (kv, dim) = (self.heads.kv, self.heads.dim);
        let (q, query) = self.query.forward(normed, routing)?;
        let (k, key) = self.key.forward(normed, routing)?;
        let (v, value) = self.value.forward(normed, routing)?;
        let q = q.f_view([rows, kv * self.heads.group, dim])?;
        let k = k.f_view([rows, kv, dim])?;
        let v = v.f_view([rows, kv, dim])?;
        let shrunk = (query, key, value);
        let Some((query_norm, key_norm)) = &self.head_norms else {
            let (q, k) = (rotation.apply(&q)?, rotation.apply(&k)?);
            return Ok(Projected { unnormed: None, q, k, v, shrunk });
        };
        let rotated_q = rotation.apply(&query_norm.forward(&q)?)?;
        let rotated_k = rotation.apply(&key_norm.forward(&k)?)?;
        Ok(Projected { unnormed: Some((q, k)), q: rotated_q, k: rotated_k, v, shrunk })
    }

    /// Room for the heads' outputs of these queries, `[T, n_h · d]`.
    pub(crate) fn empty_heads_output(&self, q: &Tensor) -> TorchResult<Tensor> {
        let width = self.heads.kv * self.heads.group * self.heads.dim;
        Tensor::f_empty([q.size()[0], width], (q.kind(), q.device()))
    }
}
