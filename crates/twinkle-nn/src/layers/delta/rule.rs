//! The gated delta rule in chunks (Yang, Kautz & Hatamizadeh 2024), with its gradient written out.
//!
//! The memory `S`, `[d_k, d_v]` per value head, is read and corrected token by token:
//!
//! ```text
//! S ← e^g S;   S ← S + k (β (v − Sᵀ k))ᵀ;   o = Sᵀ q
//! ```
//!
//! Within a chunk of 64 tokens the corrections `V'` depend on each other by a unit lower triangular system, so that a
//! chunk is a few matrix products. With `G` the running sum of `g` and `D_ij = e^(G_i − G_j)` for `j ≤ i`:
//!
//! ```text
//! A  = strictly lower (β K Kᵀ ⊙ D)          (I + A) V' = β (V − (e^G K) S)
//! O  = (e^G Q) S + (Q Kᵀ ⊙ D) V'            S ← e^(G_C) S + (e^(G_C − G) K)ᵀ V'
//! ```
//!
//! Everything is fp32 and of the same shapes for every chunk of every sequence, so the bits of a chunk depend on its
//! sequence alone.

use tch::{Kind, Tensor};

use super::features::{FeatureGradients, Features};
use super::shape::{CHUNK, Shape};
use crate::torch::TorchResult;

/// What a chunk computes before it meets the memory.
#[derive(Debug)]
pub(super) struct Chunk<'a> {
    shape: Shape,
    features: &'a Features,
    /// `e^G`, `[n_v, 64, 1]`.
    growth: Tensor,
    /// `e^(G_C − G)`, `[n_v, 64, 1]`.
    rest: Tensor,
    /// `e^(G_C)`, `[n_v, 1, 1]`.
    whole: Tensor,
    /// `D`, lower triangular, `[n_v, 64, 64]`.
    decay: Tensor,
    /// `K Kᵀ ⊙ D`, `[n_v, 64, 64]`.
    key_scores: Tensor,
    /// `β K Kᵀ ⊙ D`; its strictly lower part is `A`.
    system: Tensor,
    /// `Q Kᵀ ⊙ D`, lower triangular, `[n_v, 64, 64]`.
    query_scores: Tensor,
    /// `e^G Q`, `[n_v, 64, d_k]`.
    q_grown: Tensor,
    /// `e^G K`, `[n_v, 64, d_k]`.
    k_grown: Tensor,
    /// `e^(G_C − G) K`, `[n_v, 64, d_k]`.
    k_rest: Tensor,
}

/// What a chunk makes of the memory it meets.
#[derive(Debug)]
pub(super) struct Outcome {
    /// `O`, `[n_v, 64, d_v]`.
    pub(super) out: Tensor,
    /// The memory after the chunk, `[n_v, d_k, d_v]`.
    pub(super) memory: Tensor,
    /// `V − (e^G K) S`, what the memory does not predict, `[n_v, 64, d_v]`.
    surprise: Tensor,
    /// `V'`, `[n_v, 64, d_v]`.
    corrections: Tensor,
}

impl<'a> Chunk<'a> {
    pub(super) fn new(shape: Shape, features: &'a Features) -> TorchResult<Self> {
        let Features { q, k, beta, log_decay, .. } = features;
        let sum = log_decay.f_cumsum(1, Kind::Float)?;
        let last = sum.f_narrow(1, CHUNK - 1, 1)?;
        // Above the diagonal the difference is positive and could overflow: cut before the exponential.
        let difference = sum.f_sub(&sum.f_transpose(1, 2)?)?.f_clamp_max(0.0)?;
        let decay = difference.f_exp()?.f_tril(0)?;
        let keys = k.f_transpose(1, 2)?;
        let key_scores = shape.product(&k.f_bmm(&keys)?, &decay)?;
        let query_scores = shape.product(&q.f_bmm(&keys)?, &decay)?;
        let (growth, rest) = (sum.f_exp()?, last.f_sub(&sum)?.f_exp()?);
        Ok(Self {
            shape,
            features,
            whole: last.f_exp()?,
            system: key_scores.f_mul(beta)?,
            q_grown: shape.product(q, &growth)?,
            k_grown: shape.product(k, &growth)?,
            k_rest: shape.product(k, &rest)?,
            growth,
            rest,
            decay,
            key_scores,
            query_scores,
        })
    }

    /// Reads and corrects the memory `[n_v, d_k, d_v]`.
    pub(super) fn forward(&self, memory: &Tensor) -> TorchResult<Outcome> {
        let surprise = self.features.v.f_sub(&self.k_grown.f_bmm(memory)?)?;
        // The diagonal and what is above it are taken for 1 and 0.
        let right = surprise.f_mul(&self.features.beta)?;
        let corrections = self.system.f_linalg_solve_triangular(&right, false, true, true)?.f_contiguous()?;
        let mut out = self.q_grown.f_bmm(memory)?;
        let _ = out.f_baddbmm_(&self.query_scores, &corrections)?;
        let mut next = memory.f_mul(&self.whole)?;
        let _ = next.f_baddbmm_(&self.k_rest.f_transpose(1, 2)?, &corrections)?;
        Ok(Outcome { out, memory: next, surprise, corrections })
    }

    /// The gradients of the chunk's features and of the `memory` it met, given those of its output and of the memory after.
    pub(super) fn backward(
        &self,
        memory: &Tensor,
        outcome: &Outcome,
        d_out: &Tensor,
        d_next: &Tensor,
    ) -> TorchResult<(FeatureGradients, Tensor)> {
        let Features { q, k, beta, .. } = self.features;
        let Outcome { surprise, corrections, .. } = outcome;
        let transposed = |x: &Tensor| x.f_transpose(1, 2);
        let row_sum = |x: &Tensor| x.f_sum_dim_intlist(2_i64, true, Kind::Float);

        // O = (e^G Q) S + scores V', S' = e^(G_C) S + (e^(G_C − G) K)ᵀ V'.
        let mut d_corrections = transposed(&self.query_scores)?.f_bmm(d_out)?;
        let _ = d_corrections.f_baddbmm_(&self.k_rest, d_next)?;
        let d_query_scores = d_out.f_bmm(&transposed(corrections)?)?.f_tril(0)?;
        let d_grown_queries = d_out.f_bmm(&transposed(memory)?)?;
        let d_k_rest = corrections.f_bmm(&transposed(d_next)?)?;
        let mut d_memory = d_next.f_mul(&self.whole)?;
        let _ = d_memory.f_baddbmm_(&transposed(&self.q_grown)?, d_out)?;
        let d_whole = memory.f_mul(d_next)?.f_flatten(1, 2)?.f_sum_dim_intlist(1_i64, true, Kind::Float)?;

        // (I + A) V' = β (V − (e^G K) S).
        let d_right =
            transposed(&self.system)?.f_linalg_solve_triangular(&d_corrections, true, true, true)?.f_contiguous()?;
        let d_system = d_right.f_bmm(&transposed(corrections)?)?.f_neg()?.f_tril(-1)?;
        let dv = d_right.f_mul(beta)?;
        let mut d_beta = row_sum(&d_right.f_mul(surprise)?)?;
        let _ = d_beta.f_add_(&row_sum(&d_system.f_mul(&self.key_scores)?)?)?;
        let d_grown_keys = dv.f_bmm(&transposed(memory)?)?.f_neg()?;
        let _ = d_memory.f_sub_(&transposed(&self.k_grown)?.f_bmm(&dv)?)?;

        // The scores, per key head: the value heads of one are summed.
        let d_key_products = self.shape.group_sum(&d_system.f_mul(beta)?.f_mul(&self.decay)?)?;
        let d_query_products = self.shape.group_sum(&d_query_scores.f_mul(&self.decay)?)?;
        let grown = |d: &Tensor, by: &Tensor| self.shape.group_sum(&d.f_mul(by)?);
        let mut dq = d_query_products.f_bmm(k)?;
        let _ = dq.f_add_(&grown(&d_grown_queries, &self.growth)?)?;
        let mut dk = d_key_products.f_add(&transposed(&d_key_products)?)?.f_bmm(k)?;
        let _ = dk.f_baddbmm_(&transposed(&d_query_products)?, q)?;
        let _ = dk.f_add_(&grown(&d_grown_keys, &self.growth)?)?;
        let _ = dk.f_add_(&grown(&d_k_rest, &self.rest)?)?;

        // Whatever is e^x has the derivative x' e^x; D_ij has G_i and −G_j in it.
        let mut d_exponent = d_system.f_mul(&self.system)?;
        let _ = d_exponent.f_add_(&d_query_scores.f_mul(&self.query_scores)?)?;
        let mut d_sum = row_sum(&d_exponent)?;
        let _ = d_sum.f_sub_(&transposed(&d_exponent.f_sum_dim_intlist(1_i64, true, Kind::Float)?)?)?;
        let _ = d_sum.f_add_(&row_sum(&d_grown_queries.f_mul(&self.q_grown)?)?)?;
        let _ = d_sum.f_add_(&row_sum(&d_grown_keys.f_mul(&self.k_grown)?)?)?;
        let d_rest = row_sum(&d_k_rest.f_mul(&self.k_rest)?)?;
        let _ = d_sum.f_sub_(&d_rest)?;
        let mut d_last = d_rest.f_sum_dim_intlist(1_i64, true, Kind::Float)?;
        let _ = d_last.f_add_(&d_whole.f_unsqueeze(-1)?.f_mul(&self.whole)?)?;
        let _ = d_sum.f_narrow(1, CHUNK - 1, 1)?.f_add_(&d_last)?;
        // g_i is in G_i and in every later sum.
        let d_log_decay = d_sum.f_flip([1])?.f_cumsum(1, Kind::Float)?.f_flip([1])?;
        Ok((FeatureGradients { q: dq, k: dk, v: dv, beta: d_beta, log_decay: d_log_decay }, d_memory))
    }
}
