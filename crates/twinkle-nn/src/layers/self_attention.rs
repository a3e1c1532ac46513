//! Self-attention: the projections around the heads, the norms and rotation of queries and keys, and the cache.

use tch::Tensor;
use twinkle_core::Result;

use super::attention::{Heads, LogSumExp, Saved};
use super::decoder::{CachedPass, Pass};
use super::full;
use super::gate;
use super::linear::{Branch, Linear, Routing, Shrunk, backward_branches};
use super::load::LayerFiles;
use super::norm::RmsNorm;
use crate::lora::{Gradients, Projection};
use crate::rope::Rotation;
use crate::torch::TorchResult;

/// Full causal attention (Vaswani et al. 2017) with rotary positions.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    /// The per-head norms of q and k, `[d]`.
    pub(crate) head_norms: Option<(RmsNorm, RmsNorm)>,
    pub(crate) heads: Heads,
    /// Whether queries and keys are rotated by their positions.
    rotates: bool,
    /// Whether `query` makes a gate for the output too: per head `d` numbers of the query, then `d` of the gate.
    is_gated: bool,
}

/// What backward needs of [`SelfAttention::forward`].
#[derive(Debug)]
pub(crate) struct AttentionTape {
    /// q and k as projected, kept only when they are normed: `[T, n, d]`.
    unnormed: Option<(Tensor, Tensor)>,
    /// Rotated queries, `[T, n_h, d]`.
    q: Tensor,
    /// Rotated keys, `[T, n_kv, d]`.
    k: Tensor,
    /// `[T, n_kv, d]`.
    v: Tensor,
    /// The output's gate before its sigmoid, `[T, n_h · d]`.
    gate: Option<Tensor>,
    /// The heads' outputs, `[T, n_h · d]`.
    out: Tensor,
    /// Per sequence.
    lse: Vec<LogSumExp>,
    shrunk: AttentionShrunk,
}

/// What the adapters on the projections computed.
#[derive(Debug)]
struct AttentionShrunk {
    query: Shrunk,
    key: Shrunk,
    value: Shrunk,
    output: Shrunk,
}

/// Queries, keys and values of some rows, rotated.
struct Projected {
    unnormed: Option<(Tensor, Tensor)>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Option<Tensor>,
    shrunk: (Shrunk, Shrunk, Shrunk),
}

impl SelfAttention {
    pub(crate) fn load(files: &mut LayerFiles) -> Result<Self> {
        let config = files.config;
        let head_norms = if config.qk_norm {
            let query = files.norm("self_attn.q_norm", config.head_dim)?;
            Some((query, files.norm("self_attn.k_norm", config.head_dim)?))
        } else {
            None
        };
        Ok(Self {
            query: files.linear(Projection::Query, config.qkv_bias)?,
            key: files.linear(Projection::Key, config.qkv_bias)?,
            value: files.linear(Projection::Value, config.qkv_bias)?,
            output: files.linear(Projection::Output, config.output_bias)?,
            head_norms,
            heads: Heads { group: config.group() as i64, kv: config.kv_head_count as i64, dim: config.head_dim as i64 },
            rotates: config.rotary_layers.get(files.index).copied().unwrap_or(true),
            is_gated: config.attention_gate,
        })
    }

    /// The output for the normed rows of whole sequences, `[T, H]`.
    pub(crate) fn forward(&self, normed: &Tensor, pass: &Pass) -> TorchResult<(Tensor, AttentionTape)> {
        let Projected { unnormed, q, k, v, gate, shrunk } = self.project(normed, pass.rotation, pass.routing)?;
        let out = self.empty_heads_output(&q)?;
        let mut lse = Vec::with_capacity(pass.spans.len());
        for span in pass.spans {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, span.start as i64, span.length as i64);
            lse.push(self.heads.causal(&rows(&q)?, &rows(&k)?, &rows(&v)?, &rows(&out)?)?);
        }
        let (y, output) = self.output.forward(&gated(&out, gate.as_ref())?, pass.routing)?;
        let (query, key, value) = shrunk;
        let shrunk = AttentionShrunk { query, key, value, output };
        Ok((y, AttentionTape { unnormed, q, k, v, gate, out, lse, shrunk }))
    }

    /// The gradient of the normed rows, given that of the output.
    pub(crate) fn backward(
        &self,
        normed: &Tensor,
        dy: &Tensor,
        tape: AttentionTape,
        pass: &Pass,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let AttentionTape { unnormed, q, k, v, gate, out, lse, shrunk } = tape;
        let input = gated(&out, gate.as_ref())?;
        let mut d_out = self.output.backward(&input, dy, &shrunk.output, pass.routing, gradients)?;
        drop(input);
        let mut d_gate = None;
        if let Some(gate) = gate {
            let (through, aside) = gate::backward(&out, &gate, &d_out)?;
            (d_out, d_gate) = (through, Some(aside));
        }
        let (dq, dk, dv) = (Tensor::f_empty_like(&q)?, Tensor::f_empty_like(&k)?, Tensor::f_empty_like(&v)?);
        for (span, lse) in pass.spans.iter().zip(&lse) {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, span.start as i64, span.length as i64);
            let saved = Saved { q: &rows(&q)?, k: &rows(&k)?, v: &rows(&v)?, out: &rows(&out)?, lse: lse.as_ref() };
            self.heads.causal_backward(&saved, &rows(&d_out)?, (&rows(&dq)?, &rows(&dk)?, &rows(&dv)?))?;
        }
        drop((q, k, v, out, d_out));

        let (mut dq, mut dk) = (dq, dk);
        if self.rotates {
            (dq, dk) = (pass.rotation.undo(&dq)?, pass.rotation.undo(&dk)?);
        }
        if let (Some((query_norm, key_norm)), Some((q, k))) = (&self.head_norms, unnormed) {
            full::norm(query_norm, &q, &dq, pass.routing, gradients)?;
            full::norm(key_norm, &k, &dk, pass.routing, gradients)?;
            dq = query_norm.backward(&q, &dq)?;
            dk = key_norm.backward(&k, &dk)?;
        }
        if let Some(d_gate) = d_gate {
            dq = Tensor::f_cat(&[&dq, &d_gate.f_view_as(&dq)?], 2)?;
        }
        let rows = normed.size()[0];
        let flat = |tensor: &Tensor| tensor.f_view([rows, -1]);
        let (dq, dk, dv) = (flat(&dq)?, flat(&dk)?, flat(&dv)?);
        let branches = [
            Branch { linear: &self.query, dy: &dq, shrunk: &shrunk.query },
            Branch { linear: &self.key, dy: &dk, shrunk: &shrunk.key },
            Branch { linear: &self.value, dy: &dv, shrunk: &shrunk.value },
        ];
        backward_branches(normed, &branches, pass.routing, gradients)
    }

    /// The output for normed rows that continue cached sequences; their keys and values join the caches.
    pub(crate) fn forward_cached(&self, index: usize, normed: &Tensor, pass: &mut CachedPass) -> TorchResult<Tensor> {
        let projected = self.project(normed, pass.rotation, pass.routing)?;
        let out = self.empty_heads_output(&projected.q)?;
        let rows = pass.rows_each(normed.size()[0]);
        for (place, cache) in pass.caches.iter().enumerate() {
            let own = |tensor: &Tensor| tensor.f_narrow(0, place as i64 * rows, rows);
            let (keys, values) = cache.append(index, &own(&projected.k)?, &own(&projected.v)?)?;
            self.heads.continued(&own(&projected.q)?, &keys, &values, &own(&out)?)?;
        }
        let (y, _) = self.output.forward(&gated(&out, projected.gate.as_ref())?, pass.routing)?;
        Ok(y)
    }

    /// Normed rows to rotated queries, rotated keys, and values.
    fn project(&self, normed: &Tensor, rotation: &Rotation, routing: &Routing) -> TorchResult<Projected> {
        let rows = normed.size()[0];
        let (kv, dim) = (self.heads.kv, self.heads.dim);
        let (q, query) = self.query.forward(normed, routing)?;
        let (k, key) = self.key.forward(normed, routing)?;
        let (v, value) = self.value.forward(normed, routing)?;
        let (q, gate) = self.without_gate(&q.f_view([rows, kv * self.heads.group, -1])?)?;
        let k = k.f_view([rows, kv, dim])?;
        let v = v.f_view([rows, kv, dim])?;
        let shrunk = (query, key, value);
        let Some((query_norm, key_norm)) = &self.head_norms else {
            let (q, k) = (self.rotate(q, rotation)?, self.rotate(k, rotation)?);
            return Ok(Projected { unnormed: None, q, k, v, gate, shrunk });
        };
        let rotated_q = self.rotate(query_norm.forward(&q)?, rotation)?;
        let rotated_k = self.rotate(key_norm.forward(&k)?, rotation)?;
        Ok(Projected { unnormed: Some((q, k)), q: rotated_q, k: rotated_k, v, gate, shrunk })
    }

    fn rotate(&self, heads: Tensor, rotation: &Rotation) -> TorchResult<Tensor> {
        if self.rotates { rotation.apply(&heads) } else { Ok(heads) }
    }

    /// Queries `[T, n_h, d]`, and the gate `[T, n_h · d]` where there is one.
    fn without_gate(&self, q: &Tensor) -> TorchResult<(Tensor, Option<Tensor>)> {
        if !self.is_gated {
            return Ok((q.shallow_clone(), None));
        }
        let part = |start: i64| q.f_narrow(2, start, self.heads.dim)?.f_contiguous();
        Ok((part(0)?, Some(part(self.heads.dim)?.f_flatten(1, 2)?)))
    }

    /// Room for the heads' outputs of these queries, `[T, n_h · d]`.
    fn empty_heads_output(&self, q: &Tensor) -> TorchResult<Tensor> {
        let width = self.heads.kv * self.heads.group * self.heads.dim;
        Tensor::f_empty([q.size()[0], width], (q.kind(), q.device()))
    }
}

/// The heads' outputs as the output projection reads them.
fn gated(out: &Tensor, gate: Option<&Tensor>) -> TorchResult<Tensor> {
    match gate {
        Some(gate) => gate::forward(out, gate),
        None => Ok(out.shallow_clone()),
    }
}
