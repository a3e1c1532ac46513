//! The dimensions of a Gated `DeltaNet`, and its heads as batches of matrices.

use tch::Tensor;

use crate::config::DeltaConfig;
use crate::torch::TorchResult;

/// Rows of a sequence that are computed at once, `C`.
pub(super) const CHUNK: i64 = 64;

/// How many heads there are and how wide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Query and key heads, `n_k`.
    pub(super) key_heads: i64,
    /// Value heads per key head. Value head `h` uses key head `h / group`.
    pub(super) group: i64,
    /// `d_k`.
    pub(super) key_dim: i64,
    /// `d_v`.
    pub(super) value_dim: i64,
}

impl Shape {
    pub(super) fn new(config: &DeltaConfig) -> Self {
        Self {
            key_heads: config.key_head_count as i64,
            group: (config.value_head_count / config.key_head_count) as i64,
            key_dim: config.key_head_dim as i64,
            value_dim: config.value_head_dim as i64,
        }
    }

    /// `n_v`.
    pub(super) const fn value_heads(self) -> i64 {
        self.key_heads * self.group
    }

    /// Width of all queries, or of all keys, `K`.
    pub(super) const fn key_width(self) -> i64 {
        self.key_heads * self.key_dim
    }

    /// Width of all values, `W`.
    pub(super) const fn value_width(self) -> i64 {
        self.value_heads() * self.value_dim
    }

    /// Channels of queries, keys and values side by side, `2K + W`.
    pub(super) const fn channels(self) -> i64 {
        2 * self.key_width() + self.value_width()
    }

    /// Rows `[n, 2K + W]` as queries and keys `[n, n_k, d_k]` and values `[n, n_v, d_v]`.
    pub(super) fn split(self, rows: &Tensor) -> TorchResult<(Tensor, Tensor, Tensor)> {
        let (count, keys) = (rows.size()[0], self.key_width());
        let heads =
            |start: i64, heads: i64, dim: i64| rows.f_narrow(1, start, heads * dim)?.f_view([count, heads, dim]);
        Ok((
            heads(0, self.key_heads, self.key_dim)?,
            heads(keys, self.key_heads, self.key_dim)?,
            heads(2 * keys, self.value_heads(), self.value_dim)?,
        ))
    }

    /// Per value head `[n_v, …]` as `[n_k, group, …]`, for what key heads and value heads have to do with each other.
    pub(super) fn grouped(self, x: &Tensor) -> TorchResult<Tensor> {
        let size = x.size();
        x.f_view([self.key_heads, self.group, size[1], size[2]])
    }

    /// Per key head `[n_k, …]` times per value head `[n_v, …]`: per value head.
    pub(super) fn product(self, keys: &Tensor, values: &Tensor) -> TorchResult<Tensor> {
        self.grouped(values)?.f_mul(&keys.f_unsqueeze(1)?)?.f_flatten(0, 1)
    }

    /// The sum over the value heads of each key head.
    pub(super) fn group_sum(self, x: &Tensor) -> TorchResult<Tensor> {
        if self.group == 1 {
            return Ok(x.shallow_clone());
        }
        self.grouped(x)?.f_sum_dim_intlist(1_i64, false, tch::Kind::Float)
    }

    /// Key heads `[…, n_k, d_k]`, each as often as it has value heads: `[n_v, 1, d_k]`.
    pub(super) fn repeated(self, keys: &Tensor) -> TorchResult<Tensor> {
        keys.f_view([self.key_heads, 1, self.key_dim])?
            .f_expand([self.key_heads, self.group, self.key_dim], false)?
            .f_reshape([self.value_heads(), 1, self.key_dim])
    }
}
