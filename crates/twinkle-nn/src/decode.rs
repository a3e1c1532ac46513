//! The forward pass for sampling: prompts into a cache, then one token per sequence and step.

use std::sync::Arc;

use tch::Tensor;
use twinkle_core::{Error, Result};

use crate::cache::KvCache;
use crate::layers::decoder::CachedPass;
use crate::layers::linear::{Group, Routing, Rows};
use crate::lora::Adapter;
use crate::model::BaseModel;
use crate::pack::validate_tokens;
use crate::torch::{TorchResult, device_error};

/// Rows per tile of a decoding step.
pub(crate) const DECODE_TILE: i64 = 16;
/// Rows per tile of a prompt.
pub(crate) const PREFILL_TILE: i64 = 64;

impl BaseModel {
    /// Runs tokens that follow those in `cache` and adds them to it. Returns their rows after the final norm, `[T, H]`.
    ///
    /// A long prompt may come in several calls. On an error the cache is as it was.
    pub fn prefill(&self, tokens: &[u32], cache: &mut KvCache, adapter: Option<&Arc<Adapter>>) -> Result<Tensor> {
        if tokens.is_empty() {
            return Err(Error::invalid("a prompt needs at least one token"));
        }
        validate_tokens(tokens, &self.config)?;
        self.check_cache(cache)?;
        let groups = adapter
            .map(|adapter| Group { rows: Rows::range(0..tokens.len()), adapter, index: 0 })
            .into_iter()
            .collect();
        let routing = Routing { tile: PREFILL_TILE, adapter_tile: Some(PREFILL_TILE), groups };
        let first = cache.len() as i64;
        let positions: Vec<i64> = (first..first + tokens.len() as i64).collect();
        tch::no_grad(|| self.run_cached(tokens, &positions, &mut [cache], &routing)).map_err(device_error)
    }

    /// Runs one token of each sequence. Returns their rows after the final norm, `[B, H]`.
    ///
    /// `caches` and `adapters` have one entry per token. A sequence's bits do not depend on the others.
    pub fn decode(
        &self,
        tokens: &[u32],
        caches: &mut [&mut KvCache],
        adapters: &[Option<&Arc<Adapter>>],
    ) -> Result<Tensor> {
        if tokens.is_empty() || tokens.len() != caches.len() || tokens.len() != adapters.len() {
            return Err(Error::internal(format!(
                "a decoding step got {} tokens, {} caches and {} adapters",
                tokens.len(),
                caches.len(),
                adapters.len()
            )));
        }
        validate_tokens(tokens, &self.config)?;
        for cache in caches.iter() {
            self.check_cache(cache)?;
        }
        let positions: Vec<i64> = caches.iter().map(|cache| cache.len() as i64).collect();
        tch::no_grad(|| {
            let routing = self.decoding_routing(adapters)?;
            self.run_cached(tokens, &positions, caches, &routing)
        })
        .map_err(device_error)
    }

    fn run_cached(
        &self,
        tokens: &[u32],
        positions: &[i64],
        caches: &mut [&mut KvCache],
        routing: &Routing,
    ) -> TorchResult<Tensor> {
        // One cache takes all rows (a prompt), or each takes one (a step).
        let rows_each = tokens.len() / caches.len();
        for cache in caches.iter_mut() {
            cache.reserve(rows_each)?;
        }
        let rotation = self.rotary.at(positions)?;
        let mut x = self.embed(tokens)?;
        let mut pass = CachedPass { rotation: &rotation, routing, caches };
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward_cached(index, &x, &mut pass)?;
        }
        let hidden = self.final_norm.forward(&x)?;
        for cache in caches.iter_mut() {
            cache.advance(rows_each);
        }
        Ok(hidden)
    }

    /// Rows with the same adapter form a group, wherever they stand.
    pub(crate) fn decoding_routing<'a>(&self, adapters: &[Option<&'a Arc<Adapter>>]) -> TorchResult<Routing<'a>> {
        let mut members: Vec<(&'a Arc<Adapter>, Vec<i64>)> = Vec::new();
        for (row, adapter) in adapters.iter().enumerate() {
            let Some(adapter) = adapter else { continue };
            match members.iter_mut().find(|(known, _)| Arc::ptr_eq(known, adapter)) {
                Some((_, rows)) => rows.push(row as i64),
                None => members.push((adapter, vec![row as i64])),
            }
        }
        let mut groups = Vec::with_capacity(members.len());
        for (index, (adapter, rows)) in members.into_iter().enumerate() {
            let rows = if rows.len() == adapters.len() {
                Rows::range(0..rows.len())
            } else {
                Rows::List(Tensor::f_from_slice(&rows)?.f_to_device(self.device)?)
            };
            groups.push(Group { rows, adapter, index });
        }
        Ok(Routing { tile: DECODE_TILE, adapter_tile: Some(DECODE_TILE), groups })
    }

    fn check_cache(&self, cache: &KvCache) -> Result<()> {
        if cache.fits(self) { Ok(()) } else { Err(Error::internal("the cache was made for another model")) }
    }
}
