//! The keys and values of one sequence.

use tch::{Device, Kind, Tensor};

use crate::model::BaseModel;
use crate::torch::TorchResult;

/// Rows by which a cache grows at least.
const STEP: usize = 64;

/// Rotated keys and values of one sequence's tokens, per layer `[capacity, n_kv, d]` in the model's dtype.
///
/// Grows by half when full, so appending costs a constant per token.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    length: usize,
    capacity: usize,
    heads: i64,
    dim: i64,
    kind: Kind,
    device: Device,
}

impl KvCache {
    /// An empty cache for a sequence of this model.
    #[must_use]
    pub fn new(base: &BaseModel) -> Self {
        let config = base.config();
        let (heads, dim) = (config.kv_head_count as i64, config.head_dim as i64);
        let empty = || Tensor::empty([0, heads, dim], (base.kind(), base.device()));
        Self {
            layers: (0..config.layer_count).map(|_| (empty(), empty())).collect(),
            length: 0,
            capacity: 0,
            heads,
            dim,
            kind: base.kind(),
            device: base.device(),
        }
    }

    /// How many tokens it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// An independent copy, for another continuation of the same tokens.
    #[must_use]
    pub fn fork(&self) -> Self {
        let rows = self.length as i64;
        let layers =
            self.layers.iter().map(|(k, v)| (k.narrow(0, 0, rows).copy(), v.narrow(0, 0, rows).copy())).collect();
        Self { layers, capacity: self.length, ..*self }
    }

    /// Forgets all tokens from `length` on; does nothing if there are fewer.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Bytes of memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let row = self.heads as usize * self.dim as usize * self.kind.elt_size_in_bytes();
        2 * self.layers.len() * self.capacity * row
    }

    /// Makes room for `more` tokens.
    pub(crate) fn reserve(&mut self, more: usize) -> TorchResult<()> {
        let wanted = self.length + more;
        if wanted <= self.capacity {
            return Ok(());
        }
        let capacity = wanted.max(self.capacity + self.capacity / 2).next_multiple_of(STEP);
        let rows = self.length as i64;
        for (k, v) in &mut self.layers {
            for tensor in [k, v] {
                let larger = Tensor::f_empty([capacity as i64, self.heads, self.dim], (self.kind, self.device))?;
                larger.f_narrow(0, 0, rows)?.f_copy_(&tensor.f_narrow(0, 0, rows)?)?;
                *tensor = larger;
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Writes the keys and values of new rows, `[n, n_kv, d]`, behind the others of this layer; returns all of them.
    /// Room must have been made; [`KvCache::advance`] ends the step.
    pub(crate) fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> TorchResult<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        let (past, new) = (self.length as i64, k.size()[0]);
        keys.f_narrow(0, past, new)?.f_copy_(k)?;
        values.f_narrow(0, past, new)?.f_copy_(v)?;
        Ok((keys.f_narrow(0, 0, past + new)?, values.f_narrow(0, 0, past + new)?))
    }

    /// Counts the rows that every layer has appended.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.length += rows;
    }

    /// Whether it was made for a model of this shape.
    pub(crate) fn fits(&self, base: &BaseModel) -> bool {
        let config = base.config();
        self.layers.len() == config.layer_count
            && self.heads == config.kv_head_count as i64
            && self.dim == config.head_dim as i64
            && self.kind == base.kind()
            && self.device == base.device()
    }
}
