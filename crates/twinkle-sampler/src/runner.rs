//! The model's side of a step: prefill a tile, decode a batch. The engine knows nothing of tensors beyond this trait.

use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use twinkle_core::{Error, Result};
use twinkle_nn::score::RowVisitor;
use twinkle_nn::{Adapter, BaseModel, KvCache, Pick};

/// Rows whose logits exist at the same time: `[16, V]` in fp32.
const HEAD_ROWS: usize = 16;

/// What a prefilled tile yields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prefilled {
    /// Natural-log probability of each pick's token, given everything up to its row.
    pub scores: Vec<f32>,
    /// The fp32 logits `[V]` of the last row, when they are wanted.
    pub last_logits: Option<Vec<f32>>,
}

/// A part of a prompt to compute.
#[derive(Clone, Debug)]
pub struct PromptTile<'a> {
    /// Its tokens; they follow what the cache holds.
    pub tokens: &'a [u32],
    /// The rows that something is wanted of, counted from its first; no other goes through the output head.
    pub scored: Range<usize>,
    /// The tokens to score, their rows counted from the first of `scored`.
    pub picks: &'a [Pick],
    /// Whether the scored rows are wanted whole.
    pub whole: bool,
    /// Whether the last row's logits are wanted.
    pub wants_logits: bool,
}

/// A model that can prefill and decode.
///
/// A row's numbers must not depend on the other rows of a batch; the engine relies on it for reproducible samples.
pub trait Runner: 'static {
    /// Keys and values of one sequence.
    type Cache;

    /// Whether the device works. Asked before an engine takes work.
    ///
    /// # Errors
    /// What is wrong with it.
    fn probe(&self) -> Result<()>;

    /// The base model's public name, for metrics.
    #[expect(clippy::unnecessary_literal_bound, reason = "a runner of a real model has its own text")]
    fn base_model(&self) -> &str {
        ""
    }

    /// Rows of the output head.
    fn vocabulary(&self) -> usize;

    /// A cache of no tokens.
    fn empty_cache(&self) -> Self::Cache;

    /// A copy that continues on its own.
    fn fork(&self, cache: &Self::Cache) -> Self::Cache;

    /// Memory that a cache takes, in bytes.
    fn cache_bytes(&self, cache: &Self::Cache) -> u64;

    /// Appends a tile to `cache`; hands over the logprobs `[V]` of each row that is wanted whole, with its index among the
    /// scored ones.
    ///
    /// # Errors
    /// Whatever the device reports; the cache is then unusable.
    fn prefill(
        &mut self,
        tile: PromptTile<'_>,
        cache: &mut Self::Cache,
        adapter: Option<&Arc<Adapter>>,
        on_row: &mut RowVisitor<'_>,
    ) -> Result<Prefilled>;

    /// Appends `tokens[i]` to `caches[i]`; hands over the logits `[rows, V]` of successive rows, with the first row's index.
    ///
    /// # Errors
    /// Whatever the device reports; the caches are then unusable.
    fn decode(
        &mut self,
        tokens: &[u32],
        caches: &mut [&mut Self::Cache],
        adapters: &[Option<&Arc<Adapter>>],
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()>;
}

/// A [`BaseModel`] on libtorch, with one plain KV cache per sequence.
#[derive(Debug)]
pub struct TorchRunner {
    base: Arc<BaseModel>,
    /// Its public name.
    name: String,
    /// Room for the logits of [`HEAD_ROWS`] rows.
    logits: Vec<f32>,
}

impl TorchRunner {
    /// A runner over shared weights.
    #[must_use]
    pub fn new(base: Arc<BaseModel>) -> Self {
        Self { base, name: String::new(), logits: Vec::new() }
    }

    /// The same runner, whose model has this public name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }
}

impl Runner for TorchRunner {
    type Cache = KvCache;

    fn probe(&self) -> Result<()> {
        let device = self.base.device();
        let compute = || Tensor::f_ones([64], (Kind::Float, device))?.f_sum(Kind::Float)?.f_double_value(&[]);
        match compute() {
            Ok(64.0) => Ok(()),
            Ok(sum) => Err(Error::internal(format!("the device {device:?} adds 64 ones to {sum}"))),
            Err(error) => Err(tensor_error(&error)),
        }
    }

    fn base_model(&self) -> &str {
        &self.name
    }

    fn vocabulary(&self) -> usize {
        self.base.config().vocab_size
    }

    fn empty_cache(&self) -> KvCache {
        KvCache::new(&self.base)
    }

    fn fork(&self, cache: &KvCache) -> KvCache {
        cache.fork()
    }

    fn cache_bytes(&self, cache: &KvCache) -> u64 {
        cache.bytes() as u64
    }

    fn prefill(
        &mut self,
        tile: PromptTile<'_>,
        cache: &mut KvCache,
        adapter: Option<&Arc<Adapter>>,
        on_row: &mut RowVisitor<'_>,
    ) -> Result<Prefilled> {
        let hidden_th = self.base.prefill(tile.tokens, cache, adapter)?;
        let mut prefilled = Prefilled::default();
        if !tile.scored.is_empty() && (tile.whole || !tile.picks.is_empty()) {
            let scored_th = hidden_th
                .f_narrow(0, tile.scored.start as i64, tile.scored.len() as i64)
                .map_err(|error| tensor_error(&error))?;
            let on_row = tile.whole.then_some(on_row);
            prefilled.scores = self.base.prompt_scores(&scored_th, tile.picks, on_row, adapter)?;
        }
        if tile.wants_logits {
            let last_1h =
                hidden_th.f_narrow(0, tile.tokens.len() as i64 - 1, 1).map_err(|error| tensor_error(&error))?;
            let logits_1v = self.base.logits(&last_1h, &[adapter])?;
            let mut logits = Vec::new();
            copy_out(&logits_1v, &mut logits)?;
            prefilled.last_logits = Some(logits);
        }
        Ok(prefilled)
    }

    fn decode(
        &mut self,
        tokens: &[u32],
        caches: &mut [&mut KvCache],
        adapters: &[Option<&Arc<Adapter>>],
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let hidden_bh = self.base.decode(tokens, caches, adapters)?;
        for (part, adapters) in adapters.chunks(HEAD_ROWS).enumerate() {
            let first = part * HEAD_ROWS;
            let part_bh =
                hidden_bh.f_narrow(0, first as i64, adapters.len() as i64).map_err(|error| tensor_error(&error))?;
            let logits_bv = self.base.logits(&part_bh, adapters)?;
            copy_out(&logits_bv, &mut self.logits)?;
            on_logits(first, &self.logits);
        }
        Ok(())
    }
}

/// Copies a tensor into `room` as fp32, row-major.
fn copy_out(tensor: &Tensor, room: &mut Vec<f32>) -> Result<()> {
    let mut copy = || {
        let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let count = tensor.numel();
        room.resize(count, 0.0);
        tensor.f_copy_data(room, count)
    };
    copy().map_err(|error| tensor_error(&error))
}

fn tensor_error(error: &tch::TchError) -> Error {
    let text = error.to_string();
    Error::internal(format!("a tensor operation failed: {}", text.lines().next().unwrap_or_default()))
}
