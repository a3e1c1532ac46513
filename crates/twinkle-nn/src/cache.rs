//! What decoding keeps of one sequence: keys and values of every token, or a memory of constant size.

use tch::{Device, Kind, TchError, Tensor};
use twinkle_core::{Error, Result};

use crate::config::MixerKind;
use crate::layers::delta::DeltaState;
use crate::model::BaseModel;
use crate::torch::TorchResult;

/// Rows by which a cache grows at least.
pub(crate) const STEP: usize = 64;

/// The tokens of one sequence, as each layer remembers them.
///
/// An attention layer keeps rotated keys and values, `[capacity, n_kv, d]` in the model's dtype; they grow by half when
/// full, so appending costs a constant per token. A linear attention layer keeps a memory of constant size, which cannot
/// go back to an earlier token.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    length: usize,
    capacity: usize,
    heads: i64,
    dim: i64,
    kind: Kind,
    device: Device,
}

#[derive(Debug)]
enum LayerCache {
    /// Of full attention.
    Rows { keys: Tensor, values: Tensor },
    /// Of linear attention: after the tokens that count, and after those of a step that is not done yet.
    Memory { now: DeltaState, next: Option<DeltaState> },
}

impl KvCache {
    /// An empty cache for a sequence of this model.
    #[must_use]
    pub fn new(base: &BaseModel) -> Self {
        let config = base.config();
        let (heads, dim) = (config.kv_head_count as i64, config.head_dim as i64);
        let empty = || Tensor::empty([0, heads, dim], (base.kind(), base.device()));
        let layers = config
            .layers
            .iter()
            .map(|layer| match (layer.mixer, &config.delta) {
                (MixerKind::GatedDeltaNet, Some(delta)) => {
                    LayerCache::Memory { now: DeltaState::empty(delta, base.kind(), base.device()), next: None }
                }
                _ => LayerCache::Rows { keys: empty(), values: empty() },
            })
            .collect();
        Self { layers, length: 0, capacity: 0, heads, dim, kind: base.kind(), device: base.device() }
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
        let layers = self
            .layers
            .iter()
            .map(|layer| match layer {
                LayerCache::Rows { keys, values } => {
                    LayerCache::Rows { keys: keys.narrow(0, 0, rows).copy(), values: values.narrow(0, 0, rows).copy() }
                }
                LayerCache::Memory { now, .. } => LayerCache::Memory { now: now.fork(), next: None },
            })
            .collect();
        Self { layers, capacity: self.length, ..*self }
    }

    /// Forgets all tokens from `length` on; does nothing if there are fewer.
    ///
    /// # Errors
    /// The model has linear attention, whose memory does not know what it was at that token. The cache is unchanged.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        if length >= self.length {
            return Ok(());
        }
        if self.layers.iter().any(|layer| matches!(layer, LayerCache::Memory { .. })) {
            return Err(Error::unsupported(format!(
                "a cache of {} tokens cannot go back to `{length}`: linear attention keeps no single tokens",
                self.length
            ))
            .hint("fork the cache at the token to come back to"));
        }
        self.length = length;
        Ok(())
    }

    /// Bytes of memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let row = self.heads as usize * self.dim as usize * self.kind.elt_size_in_bytes();
        let bytes = |layer: &LayerCache| match layer {
            LayerCache::Rows { .. } => 2 * self.capacity * row,
            LayerCache::Memory { now, next } => now.bytes() + next.as_ref().map_or(0, DeltaState::bytes),
        };
        self.layers.iter().map(bytes).sum()
    }

    /// Makes room for `more` tokens.
    pub(crate) fn reserve(&mut self, more: usize) -> TorchResult<()> {
        let wanted = self.length + more;
        if wanted <= self.capacity {
            return Ok(());
        }
        let capacity = wanted.max(self.capacity + self.capacity / 2).next_multiple_of(STEP);
        let rows = self.length as i64;
        for layer in &mut self.layers {
            let LayerCache::Rows { keys, values } = layer else { continue };
            for tensor in [keys, values] {
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
        let Some(LayerCache::Rows { keys, values }) = self.layers.get(layer) else { return Err(mismatch(layer)) };
        let (past, new) = (self.length as i64, k.size()[0]);
        keys.f_narrow(0, past, new)?.f_copy_(k)?;
        values.f_narrow(0, past, new)?.f_copy_(v)?;
        Ok((keys.f_narrow(0, 0, past + new)?, values.f_narrow(0, 0, past + new)?))
    }

    /// What this layer of linear attention remembers.
    pub(crate) fn memory(&self, layer: usize) -> TorchResult<&DeltaState> {
        match self.layers.get(layer) {
            Some(LayerCache::Memory { now, .. }) => Ok(now),
            _ => Err(mismatch(layer)),
        }
    }

    /// What this layer of linear attention remembers once [`KvCache::advance`] ends the step.
    pub(crate) fn remember(&mut self, layer: usize, state: DeltaState) -> TorchResult<()> {
        match self.layers.get_mut(layer) {
            Some(LayerCache::Memory { next, .. }) => {
                *next = Some(state);
                Ok(())
            }
            _ => Err(mismatch(layer)),
        }
    }

    /// Counts the rows that every layer has taken.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.length += rows;
        for layer in &mut self.layers {
            if let LayerCache::Memory { now, next } = layer
                && let Some(state) = next.take()
            {
                *now = state;
            }
        }
    }

    /// Whether it was made for a model of this shape.
    pub(crate) fn fits(&self, base: &BaseModel) -> bool {
        let config = base.config();
        let fits = |(layer, kind): (&LayerCache, &crate::config::LayerKind)| match layer {
            LayerCache::Rows { .. } => kind.mixer == MixerKind::FullAttention,
            LayerCache::Memory { now, .. } => {
                kind.mixer == MixerKind::GatedDeltaNet && config.delta.as_ref().is_some_and(|delta| now.fits(delta))
            }
        };
        self.layers.len() == config.layer_count
            && self.layers.iter().zip(&config.layers).all(fits)
            && self.heads == config.kv_head_count as i64
            && self.dim == config.head_dim as i64
            && self.kind == base.kind()
            && self.device == base.device()
    }
}

fn mismatch(layer: usize) -> TchError {
    TchError::Torch(format!("layer {layer} of the cache belongs to another kind of layer"))
}
