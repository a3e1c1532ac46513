//! What a model takes in memory, in bytes: weights and runs. [`super::passes`] goes on with passes, [`super::caches`] with
//! what decoding keeps.
//!
//! With P parameters of a run, V H numbers of an embedding that is the head as well, and e bytes per number of the model's
//! dtype:
//!
//! | What | Bytes |
//! | --- | --- |
//! | a run of an adapter | 16 P (parameters, gradients, two moments) + e P (what the device multiplies by) |
//! | a run of all weights | the same, and 4 V H (a tied embedding's two gradients are summed apart) |
//! | what takes an operation back | 4 P, of a run whose gradients hold another operation's already |

use tch::{Device, Kind};
use twinkle_core::Result;
use twinkle_core::call::LoraSpec;

use crate::config::{MixerKind, MlpKind, ModelConfig};
use crate::lora::{AdapterLayout, Projection};

/// Bytes of an fp32 number.
pub(super) const FLOAT: u64 = 4;

/// The costs of one model in one dtype.
#[derive(Clone, Debug)]
pub struct CostModel {
    pub(super) config: ModelConfig,
    /// Bytes of a number in the model's dtype.
    pub(super) element: u64,
    /// Rows of the head's window.
    pub(super) row_tile: u64,
    /// Whether products are made by the processor's own kernels, which need no room beside their result.
    pub(super) is_native: bool,
}

impl CostModel {
    /// The costs of a model of this shape that computes in `kind` on the processor, in row tiles of `row_tile`.
    #[must_use]
    pub fn new(config: &ModelConfig, kind: Kind, row_tile: usize) -> Self {
        Self {
            config: config.clone(),
            element: kind.elt_size_in_bytes() as u64,
            row_tile: row_tile as u64,
            is_native: kind == Kind::BFloat16 && twinkle_kernels::has_bf16_products(),
        }
    }

    /// The same on this device.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        Self { is_native: self.is_native && device == Device::Cpu, ..self }
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

    /// Bytes of a run that trains all weights, with two moments per weight.
    #[must_use]
    pub fn full_run_bytes(&self) -> u64 {
        self.run_bytes(self.weight_count()) + FLOAT * self.shared_embedding()
    }

    /// Bytes of a copy of a run's gradients, which takes an operation back that was not the first since the last step.
    #[must_use]
    pub const fn undo_bytes(&self, parameters: u64) -> u64 {
        parameters * FLOAT
    }

    /// The same of a run that trains all weights.
    #[must_use]
    pub fn full_undo_bytes(&self) -> u64 {
        FLOAT * (self.weight_count() + self.shared_embedding())
    }

    /// Numbers of an embedding that is the head as well.
    fn shared_embedding(&self) -> u64 {
        let config = &self.config;
        if config.tied_embeddings { (config.vocab_size * config.hidden_size) as u64 } else { 0 }
    }
}
