//! What a model takes in memory, in bytes: weights, runs, passes, caches.
//!
//! With T rows of a pass, H hidden, `n_h` and `n_kv` heads of width d, I the MLP's width, V the vocabulary, r the rank, and e
//! bytes per number of the model's dtype:
//!
//! | What | Bytes |
//! | --- | --- |
//! | a run of P parameters | 16 P (parameters, gradients, two moments) + e P (what the device multiplies by) |
//! | a layer's input | e T H |
//! | a kept attention layer | e T (2 H + 2 `n_h` d + 2 `n_kv` d + 2 I + r · projections) + 4 T `n_h` |
//! | one token in a cache | 2 e `n_kv` d per attention layer |
//!
//! A pass keeps the inputs of all layers, all of the last layers, works on one layer at a time, and sees the vocabulary
//! through a window of `row_tile` rows.

use tch::Kind;
use twinkle_core::Result;
use twinkle_core::call::LoraSpec;

use crate::config::{MixerKind, MlpKind, ModelConfig};
use crate::lora::{AdapterLayout, Projection};

/// Bytes of an fp32 number.
const FLOAT: u64 = 4;
/// Rows of a chunk in the linear attention.
const DELTA_CHUNK: u64 = 64;

/// The costs of one model in one dtype.
#[derive(Clone, Debug)]
pub struct CostModel {
    config: ModelConfig,
    /// Bytes of a number in the model's dtype.
    element: u64,
    /// Rows of the head's window.
    row_tile: u64,
}

/// What a pass goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassShape {
    /// Packed rows, T.
    pub rows: usize,
    /// The rows of the longest sequence.
    pub longest: usize,
    /// The largest rank of its adapters.
    pub rank: usize,
    /// Whether a backward follows.
    pub backward: bool,
}

/// Which layers a pass computes twice: once forward, and again in the backward, from their inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recompute {
    /// So many of the first layers; the others keep what their backward needs.
    pub layers: usize,
}

impl Recompute {
    /// Every layer keeps what its backward needs.
    pub const NOTHING: Self = Self { layers: 0 };
}

impl CostModel {
    /// The costs of a model of this shape that computes in `kind`, in row tiles of `row_tile`.
    #[must_use]
    pub fn new(config: &ModelConfig, kind: Kind, row_tile: usize) -> Self {
        Self { config: config.clone(), element: kind.elt_size_in_bytes() as u64, row_tile: row_tile as u64 }
    }

    /// The model's dimensions.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    // --- weights and runs ---

    /// Numbers in the weights of all layers, the embedding, the norms and the head.
    #[must_use]
    pub fn weight_count(&self) -> u64 {
        let config = &self.config;
        let table = (config.vocab_size * config.hidden_size) as u64;
        let tables = if config.tied_embeddings { table } else { 2 * table };
        let layers: u64 = (0..config.layer_count).map(|layer| self.layer_weights(layer, true)).sum();
        tables + layers + config.hidden_size as u64
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weight_count() * self.element
    }

    /// Numbers in a layer's weights: all of them, or those that one token is multiplied by.
    pub(super) fn layer_weights(&self, layer: usize, every_expert: bool) -> u64 {
        let config = &self.config;
        let (hidden, moe) = (config.hidden_size as u64, config.moe.as_ref());
        let experts =
            |all: bool| moe.map_or(0, |moe| if all { moe.expert_count } else { moe.experts_per_token }) as u64;
        let mut count = 2 * hidden;
        for projection in Projection::of_layer(config, layer) {
            let (outputs, inputs) = projection.shape(config);
            let matrix = (outputs * inputs) as u64;
            let bias = if self.has_bias(projection) { outputs as u64 } else { 0 };
            count += bias + if projection.is_expert() { matrix * experts(every_expert) } else { matrix };
        }
        let Some(kind) = config.layers.get(layer) else { return count };
        if kind.mixer == MixerKind::FullAttention && config.qk_norm {
            count += 2 * config.head_dim as u64;
        }
        if let (MixerKind::GatedDeltaNet, Some(delta)) = (kind.mixer, &config.delta) {
            let heads = delta.value_head_count as u64;
            count += (delta.conv_channels() * delta.conv_kernel) as u64 + 2 * heads + delta.value_head_dim as u64;
        }
        if let (MlpKind::Sparse, Some(moe)) = (kind.mlp, moe) {
            let router = moe.expert_count as u64 * hidden;
            count += router + if moe.shared_intermediate_size.is_some() { hidden } else { 0 };
        }
        count
    }

    fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Query | Projection::Key | Projection::Value => self.config.qkv_bias,
            Projection::Output => self.config.output_bias,
            Projection::Gate | Projection::Up | Projection::Down => self.config.mlp_bias,
            _ => false,
        }
    }

    /// Parameters of an adapter.
    pub fn adapter_parameters(&self, lora: &LoraSpec) -> Result<u64> {
        Ok(AdapterLayout::new(&self.config, lora)?.parameter_count() as u64)
    }

    /// Bytes of a run of so many parameters with two moments per parameter, as of `AdamW`.
    #[must_use]
    pub fn run_bytes(&self, parameters: u64) -> u64 {
        parameters * (4 * FLOAT + self.element)
    }

    // --- passes ---

    /// Bytes that a pass takes at its peak, beside weights and runs.
    #[must_use]
    pub fn pass_bytes(&self, shape: PassShape, recompute: Recompute) -> u64 {
        let rows = shape.rows as u64;
        if !shape.backward {
            return self.work_bytes(shape).max(self.head_bytes(shape));
        }
        let layers = self.config.layer_count;
        let recomputed = recompute.layers.min(layers);
        let inputs = recomputed as u64 * self.input_row() * rows;
        let kept: u64 = (recomputed..layers).map(|layer| self.kept_bytes(layer, shape)).sum();
        // A layer that is computed again is as large as one that was kept; by then the kept ones are gone.
        let again = (0..recomputed).map(|layer| self.kept_bytes(layer, shape)).max().unwrap_or(0);
        let ends = 2 * self.input_row() * rows;
        ends + inputs + kept.max(again) + self.work_bytes(shape).max(self.head_bytes(shape))
    }

    /// How many layers to recompute for a pass to stay within `budget` bytes: as few as possible.
    ///
    /// Errors: the bytes that it takes even when every layer is computed twice.
    pub fn recompute_within(&self, shape: PassShape, budget: u64) -> Result<Recompute, u64> {
        // The last layer is needed first; there is nothing to gain by throwing it away.
        let most = if shape.backward { self.config.layer_count.saturating_sub(1) } else { 0 };
        let fits = |layers: usize| self.pass_bytes(shape, Recompute { layers }) <= budget;
        if !fits(most) {
            return Err(self.pass_bytes(shape, Recompute { layers: most }));
        }
        // Each further layer that is recomputed takes less.
        let counts: Vec<usize> = (0..=most).collect();
        Ok(Recompute { layers: counts.partition_point(|layers| !fits(*layers)) })
    }

    /// The most rows of a pass within `budget` bytes, in sequences of at most `longest` rows; 0 when none fits.
    #[must_use]
    pub fn rows_within(&self, budget: u64, longest: usize, rank: usize, recompute: Recompute) -> usize {
        let fits = |rows: usize| {
            let shape = PassShape { rows, longest: longest.min(rows), rank, backward: true };
            self.pass_bytes(shape, recompute) <= budget
        };
        let (mut low, mut high) = (0, 1_usize << 24);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }

    /// Bytes of one row of the residual stream.
    fn input_row(&self) -> u64 {
        self.config.hidden_size as u64 * self.element
    }

    /// What a layer keeps for its backward, its input among it.
    #[must_use]
    pub fn kept_bytes(&self, layer: usize, shape: PassShape) -> u64 {
        let (config, rows) = (&self.config, shape.rows as u64);
        let Some(kind) = config.layers.get(layer) else { return 0 };
        let projections =
            Projection::of_layer(config, layer).filter(|projection| !projection.is_expert()).count() as u64;
        let shrunk = projections * shape.rank as u64 * self.element;
        let mixer = match kind.mixer {
            MixerKind::FullAttention => self.attention_row(),
            MixerKind::GatedDeltaNet => self.delta_row(),
        };
        let mlp = match kind.mlp {
            MlpKind::Dense => 2 * config.intermediate_size as u64 * self.element,
            MlpKind::Sparse => self.expert_row(shape.rank as u64),
        };
        rows * (2 * self.input_row() + shrunk + mixer + mlp)
    }

    /// Rotated q and k, v, the heads' outputs, their log-sum-exp; q and k before the norms; the gate.
    fn attention_row(&self) -> u64 {
        let config = &self.config;
        let (queries, keys) = (config.query_width() as u64, config.kv_width() as u64);
        let normed = if config.qk_norm { queries + keys } else { 0 };
        let gate = if config.attention_gate { 2 * queries } else { 0 };
        (2 * queries + 2 * keys + normed + gate) * self.element + config.head_count as u64 * FLOAT
    }

    /// The convolution's input, gate, decay and strength, and what the memory answers.
    fn delta_row(&self) -> u64 {
        let Some(delta) = &self.config.delta else { return 0 };
        let (channels, values) = (delta.conv_channels() as u64, delta.value_width() as u64);
        let heads = delta.value_head_count as u64;
        (channels + 2 * values + 2 * heads) * self.element
    }

    /// Rows sorted by expert with gate and up, the router's choice, and the shared expert.
    fn expert_row(&self, rank: u64) -> u64 {
        let Some(moe) = &self.config.moe else { return 0 };
        let (wide, chosen) = (moe.intermediate_size as u64, moe.experts_per_token as u64);
        let shared = moe.shared_intermediate_size.map_or(0, |wide| 2 * wide as u64 + self.config.hidden_size as u64);
        let sorted = chosen * (self.config.hidden_size as u64 * 2 + 2 * wide + 3 * rank);
        (sorted + shared) * self.element + (moe.expert_count as u64 + 4 * chosen) * FLOAT
    }

    /// What the work on one layer takes besides what is kept: gradients of its parts, and attention's own room.
    fn work_bytes(&self, shape: PassShape) -> u64 {
        let (config, rows, longest) = (&self.config, shape.rows as u64, shape.longest as u64);
        let hidden = config.hidden_size as u64;
        let (queries, keys) = (config.query_width() as u64, config.kv_width() as u64);
        let experts = config.moe.as_ref().map_or(0, |moe| {
            let sorted = moe.experts_per_token * (moe.intermediate_size * 2 + config.hidden_size * 2);
            (sorted + moe.shared_intermediate_size.unwrap_or(0) * 2) as u64
        });
        let mlp = (2 * config.intermediate_size as u64).max(experts);
        let attention = 2 * (queries + 2 * keys) + queries;
        let delta = config.delta.as_ref().map_or(0, |delta| {
            let heads = delta.value_head_count as u64;
            let widths = 3 * (delta.key_head_dim + delta.value_head_dim) as u64;
            // A state at the start of each chunk, and the gradient of the convolution's input.
            let state = delta.value_width() * delta.key_head_dim / DELTA_CHUNK as usize;
            heads * (2 * DELTA_CHUNK + widths) * FLOAT + (state + delta.conv_channels()) as u64 * FLOAT
        });
        // Attention sees one sequence at a time, each key head spread to its group, and sums in fp32.
        let spread = longest * queries * (4 * self.element + 2 * FLOAT);
        rows * (4 * hidden + mlp.max(attention)) * self.element + rows * delta + spread
    }

    /// The window over the vocabulary, and the gradient of the last rows.
    fn head_bytes(&self, shape: PassShape) -> u64 {
        /// Rows that are in fp32 at the same time, and how many copies of them.
        const FLOAT_ROWS: u64 = 16 * 3;
        let (rows, vocabulary) = (shape.rows as u64, self.config.vocab_size as u64);
        let window = self.row_tile * vocabulary * self.element + FLOAT_ROWS * vocabulary * FLOAT;
        let gradient = if shape.backward { rows * self.input_row() } else { 0 };
        window + gradient + self.row_tile * self.input_row() * 2
    }

    // --- caches ---

    /// Bytes that one token adds to a sequence's cache.
    #[must_use]
    pub fn cache_bytes_per_token(&self) -> u64 {
        let attention = self.config.layers.iter().filter(|layer| layer.mixer == MixerKind::FullAttention).count();
        attention as u64 * 2 * self.config.kv_width() as u64 * self.element
    }

    /// Bytes of a sequence's cache whatever its length: the states of linear attention.
    #[must_use]
    pub fn cache_bytes_per_sequence(&self) -> u64 {
        let Some(delta) = &self.config.delta else { return 0 };
        let linear = self.config.layers.iter().filter(|layer| layer.mixer == MixerKind::GatedDeltaNet).count() as u64;
        let state = delta.value_width() as u64 * delta.key_head_dim as u64 * FLOAT;
        let tail = (delta.conv_channels() * delta.conv_kernel.saturating_sub(1)) as u64 * self.element;
        linear * (state + tail)
    }
}
