//! What a pass takes at its peak, in bytes, beside weights and runs.
//!
//! With T rows, H hidden, `n_h` and `n_kv` heads of width d, I the MLP's width, r the rank and e bytes per number of the
//! model's dtype a layer keeps for its backward:
//!
//! | What | Bytes |
//! | --- | --- |
//! | its input, and the rows between mixer and MLP | 2 e T H |
//! | attention | e T (2 `n_h` d + 2 `n_kv` d) + 4 T `n_h`; before the norms, and the gate, once more |
//! | linear attention of C channels and W values | e T (C + 2 W + 2 `n_v`) |
//! | an MLP | 2 e T I; of k experts 2 e T k I and the router's choice |
//! | adapters | e T r for each map |
//! | a layer that is computed twice | e T H, its input, and the router's choice |
//!
//! A pass is largest at one of these moments: where a layer is computed forward, where the head looks at the vocabulary
//! through a window of `row_tile` rows, or where a layer's gradients are formed. Each has room of its own to work in.

use super::cost::{CostModel, FLOAT};
use crate::config::{DeltaConfig, LayerKind, MixerKind, MlpKind, MoeConfig};
use crate::lora::Projection;

/// What a pass goes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassShape {
    /// Packed rows, T.
    pub rows: usize,
    /// The rows of the longest sequence.
    pub longest: usize,
    /// How many sequences there are; 0 counts as one.
    pub sequences: usize,
    /// The largest rank of its adapters.
    pub rank: usize,
    /// Whether a backward follows.
    pub backward: bool,
    /// Whether gradients of the model's own weights are formed.
    pub full: bool,
}

impl PassShape {
    /// A training pass of as few sequences as can have so many rows.
    #[must_use]
    pub fn training(rows: usize, longest: usize, rank: usize) -> Self {
        let longest = longest.min(rows);
        let sequences = if longest == 0 { 0 } else { rows.div_ceil(longest) };
        Self { rows, longest, sequences, rank, backward: true, full: false }
    }
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

/// What the heaps of all threads keep whatever a pass goes over, as it was measured.
const HEAPS: u64 = 8 << 20;

/// What a layer takes at the moments of a pass.
#[derive(Clone, Copy, Debug)]
struct LayerCost {
    /// What it keeps for its backward.
    kept: u64,
    /// What it leaves when it is computed twice.
    input: u64,
    /// The most at once while it is computed and while its gradients are formed, what it keeps among it.
    peak: u64,
}

impl CostModel {
    /// Bytes that a pass takes at its peak, beside weights and runs.
    #[must_use]
    pub fn pass_bytes(&self, shape: PassShape, recompute: Recompute) -> u64 {
        let rows = shape.rows as u64;
        // The angles of the rotation, and the tokens.
        let ends = rows * (2 * self.config.rotary_dim as u64 * self.element + 16);
        let stream = rows * self.hidden();
        let (mut behind, mut peak) = (0, 0);
        for layer in 0..self.config.layer_count {
            let cost = self.layer(layer, shape);
            peak = peak.max(behind + cost.peak);
            if shape.backward {
                behind += if layer < recompute.layers { cost.input } else { cost.kept };
            }
        }
        // The last rows before and after the final norm.
        let heaps = if shape.rows == 0 { 0 } else { HEAPS };
        heaps + ends + peak.max(behind + 2 * stream + self.head_bytes(shape))
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

    /// The most rows of a pass within `budget` bytes; 0 when none fits. `shape_of` says what a pass of so many rows is like.
    pub fn rows_within(&self, budget: u64, recompute: Recompute, shape_of: impl Fn(usize) -> PassShape) -> usize {
        let fits = |rows: usize| self.pass_bytes(shape_of(rows), recompute) <= budget;
        let (mut low, mut high) = (0, 1_usize << 24);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }

    // --- one layer ---

    fn layer(&self, layer: usize, shape: PassShape) -> LayerCost {
        let config = &self.config;
        let (rows, stream) = (shape.rows as u64, shape.rows as u64 * self.hidden());
        let Some(kind) = config.layers.get(layer).copied() else {
            return LayerCost { kept: 0, input: 0, peak: 0 };
        };
        let (mixer, mlp) = (self.kept_of_mixer(kind, layer, shape), self.kept_of_mlp(kind, layer, shape));
        let kept = 2 * stream + mixer + mlp;
        // Besides what is kept: the rows that go in normed, those that come out or their gradient, and what is said here.
        let (room_of_mlp, room_of_mixer) = (self.room_of_mlp(kind, shape), self.room_of_mixer(kind, shape));
        let at_mlp = kept + 2 * stream + room_of_mlp;
        let at_mixer = stream + mixer + 2 * stream + room_of_mixer;
        // Blocks of the way forward leave holes in which those of the way back do not fit: as much as was measured.
        let divisor = if self.is_native { 2 } else { 1 };
        let holes = match kind.mixer {
            MixerKind::FullAttention => room_of_mlp.max(room_of_mixer) / divisor,
            MixerKind::GatedDeltaNet => (room_of_mlp / 2).max(room_of_mixer * 5 / 4),
        };
        let choice = self.choice_row(kind) * rows;
        LayerCost { kept, input: stream + choice, peak: at_mlp.max(at_mixer) + holes }
    }

    /// Bytes of one row of the residual stream.
    fn hidden(&self) -> u64 {
        self.config.hidden_size as u64 * self.element
    }

    /// Bytes of what the adapters of a layer's maps made of each row.
    fn shrunk(&self, layer: usize, shape: PassShape, is_counted: impl Fn(Projection) -> bool) -> u64 {
        let maps = Projection::of_layer(&self.config, layer).filter(|map| !map.is_expert() && is_counted(*map));
        shape.rows as u64 * maps.count() as u64 * shape.rank as u64 * self.element
    }

    fn kept_of_mixer(&self, kind: LayerKind, layer: usize, shape: PassShape) -> u64 {
        let rows = shape.rows as u64;
        let row = match (kind.mixer, &self.config.delta) {
            (MixerKind::GatedDeltaNet, Some(delta)) => delta_row(delta) * self.element,
            _ => self.attention_row(),
        };
        rows * row + self.shrunk(layer, shape, |map| !is_of_mlp(map))
    }

    /// Rotated q and k, v, the heads' outputs, their log-sum-exp; q and k before the norms; the gate.
    fn attention_row(&self) -> u64 {
        let config = &self.config;
        let (queries, keys) = (config.query_width() as u64, config.kv_width() as u64);
        let normed = if config.qk_norm { queries + keys } else { 0 };
        let gate = if config.attention_gate { queries } else { 0 };
        (2 * queries + 2 * keys + normed + gate) * self.element + config.head_count as u64 * FLOAT
    }

    fn kept_of_mlp(&self, kind: LayerKind, layer: usize, shape: PassShape) -> u64 {
        let rows = shape.rows as u64;
        let shrunk = self.shrunk(layer, shape, is_of_mlp);
        let Some(moe) = self.config.moe.as_ref().filter(|_| kind.mlp == MlpKind::Sparse) else {
            return rows * 2 * self.config.intermediate_size as u64 * self.element + shrunk;
        };
        let (wide, chosen) = (moe.intermediate_size as u64, moe.experts_per_token as u64);
        let shared = moe.shared_intermediate_size.map_or(0, |wide| 2 * wide as u64 + self.config.hidden_size as u64);
        let slots = chosen * (2 * wide + 3 * shape.rank as u64);
        // Where each slot comes from and goes to, for all and for each adapter.
        let dispatch = chosen * (5 * 8 + FLOAT);
        rows * ((slots + shared) * self.element + dispatch + self.choice_row(kind)) + shrunk
    }

    /// The probabilities of all experts and those that were chosen.
    fn choice_row(&self, kind: LayerKind) -> u64 {
        let Some(moe) = self.config.moe.as_ref().filter(|_| kind.mlp == MlpKind::Sparse) else { return 0 };
        moe.expert_count as u64 * FLOAT + moe.experts_per_token as u64 * (8 + FLOAT)
    }

    // --- room to work in ---

    fn room_of_mixer(&self, kind: LayerKind, shape: PassShape) -> u64 {
        match (kind.mixer, &self.config.delta) {
            (MixerKind::GatedDeltaNet, Some(delta)) => self.room_of_delta(delta, shape),
            _ => self.room_of_attention(shape),
        }
    }

    /// Gradients of q, k, v and of the heads' outputs, and again while they are rotated back.
    fn room_of_attention(&self, shape: PassShape) -> u64 {
        let config = &self.config;
        let (rows, longest) = (shape.rows as u64, shape.longest as u64);
        let (queries, keys) = (config.query_width() as u64, config.kv_width() as u64);
        let gates = if config.attention_gate { 2 * queries } else { 0 };
        let forward = 2 * queries + keys + gates;
        let backward = 2 * queries + 2 * keys + gates;
        // libtorch's attention sees one sequence at a time, each key head spread to its group, and sums in fp32.
        let spread = if self.is_native { 0 } else { longest * queries * (4 * self.element + 2 * FLOAT) };
        rows * forward.max(backward) * self.element + spread + self.outer_bytes(queries, shape)
    }

    /// Rows before and after the convolution and their gradients in fp32, and the memories of all sequences.
    fn room_of_delta(&self, delta: &DeltaConfig, shape: PassShape) -> u64 {
        let (rows, longest) = (shape.rows as u64, shape.longest as u64);
        let (channels, values) = (delta.conv_channels() as u64, delta.value_width() as u64);
        let gates = 2 * delta.value_head_count as u64;
        let sequences = shape.sequences.max(1) as u64;
        let forward =
            rows * ((channels + gates + values) * FLOAT + channels * self.element) + sequences * self.state_bytes();
        let backward =
            rows * ((2 * (channels + gates) + values) * FLOAT + (channels + gates + 2 * values) * self.element);
        // Each thread has a key head: its rows after each step of the features, and their gradients.
        let (keys, values) = (delta.key_head_dim as u64, delta.value_head_dim as u64);
        let head = longest * (10 * keys + 6 * values + keys * DELTA_BLOCK / DELTA_STRIDE) * FLOAT
            + (DELTA_STRIDE + 2) * keys * DELTA_BLOCK * FLOAT;
        let threads = threads().min(sequences * delta.key_head_count as u64);
        let room = if shape.backward { forward.max(backward) } else { forward };
        room + threads * head + self.outer_bytes(channels, shape)
    }

    fn room_of_mlp(&self, kind: LayerKind, shape: PassShape) -> u64 {
        match &self.config.moe {
            Some(moe) if kind.mlp == MlpKind::Sparse => self.room_of_experts(moe, shape),
            _ => {
                let wide = self.config.intermediate_size as u64;
                let parts = 1 + u64::from(shape.backward);
                shape.rows as u64 * parts * wide * self.element + self.outer_bytes(wide, shape)
            }
        }
    }

    /// A row for each slot: what goes into the experts, what comes out, and the gradients of both.
    fn room_of_experts(&self, moe: &MoeConfig, shape: PassShape) -> u64 {
        let (rows, longest) = (shape.rows as u64, shape.longest as u64);
        let (hidden, wide) = (self.config.hidden_size as u64, moe.intermediate_size as u64);
        let chosen = moe.experts_per_token as u64;
        let (slots, own) = (rows * chosen, longest * chosen);
        // With libtorch adapters gather the slots of a sequence, and sum their gradients in fp32.
        let adapters =
            if shape.rank == 0 || self.is_native { 0 } else { own * (hidden + wide) * (2 * self.element + FLOAT) };
        let forward = slots * (hidden + 2 * wide) * self.element + adapters;
        let per_slot = slots * ((hidden + 2 * wide) * self.element + 3 * wide * FLOAT);
        let inputs = slots * 3 * hidden * self.element + adapters;
        let router = rows * moe.expert_count as u64 * 3 * FLOAT;
        let shared = match moe.shared_intermediate_size {
            Some(wide) => {
                rows * (3 * hidden * FLOAT + (2 * wide as u64 + hidden) * self.element)
                    + self.outer_bytes(wide as u64, shape)
            }
            None => 0,
        };
        let backward = if shape.backward { per_slot.max(inputs) } else { 0 };
        forward.max(backward) + router + shared + self.outer_bytes(wide, shape)
    }

    /// A sequence's rows and their gradients in fp32, where a map's gradients are summed by libtorch.
    fn outer_bytes(&self, wide: u64, shape: PassShape) -> u64 {
        let is_summed_so = shape.full || (!self.is_native && shape.rank > 0);
        if !shape.backward || !is_summed_so || self.element == FLOAT {
            return 0;
        }
        shape.longest as u64 * (wide + self.config.hidden_size as u64) * FLOAT
    }

    /// The window over the vocabulary, and the gradient of the last rows.
    fn head_bytes(&self, shape: PassShape) -> u64 {
        /// Rows that are in fp32 at the same time, and how many copies of them.
        const FLOAT_ROWS: u64 = 16 * 3;
        /// Rows whose products for the gradient of the head are summed at once.
        const GRADIENT_ROWS: u64 = 64;
        let (rows, vocabulary) = (shape.rows as u64, self.config.vocab_size as u64);
        let window = self.row_tile.min(rows.max(1));
        // libtorch's products fill the last window up with rows of zeros, aside.
        let windows = if self.is_native { window } else { 2 * self.row_tile };
        let summed = if shape.full { GRADIENT_ROWS * vocabulary * FLOAT } else { 0 };
        let gradient = if shape.backward { rows * self.hidden() } else { 0 };
        windows * vocabulary * self.element
            + FLOAT_ROWS.min(3 * window) * vocabulary * FLOAT
            + summed
            + gradient
            + 2 * self.row_tile * self.hidden()
    }
}

/// Columns of a memory that the kernel of linear attention works on at once, and tokens between those that it keeps.
const DELTA_BLOCK: u64 = 64;
const DELTA_STRIDE: u64 = 16;

/// Numbers in a row before the convolution, of the gates, of the output's gate, and of what the memory answers.
fn delta_row(delta: &DeltaConfig) -> u64 {
    (delta.conv_channels() + 2 * delta.value_width() + 2 * delta.value_head_count) as u64
}

/// Whether a map is a part of the MLP.
fn is_of_mlp(map: Projection) -> bool {
    use Projection::{Down, Gate, SharedDown, SharedGate, SharedUp, Up};
    matches!(map, Gate | Up | Down | SharedGate | SharedUp | SharedDown)
}

/// Threads that kernels run on.
fn threads() -> u64 {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64
}
