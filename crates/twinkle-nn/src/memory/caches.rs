//! What decoding keeps of sequences, in bytes.

use super::cost::{CostModel, FLOAT};
use crate::cache::STEP;
use crate::config::MixerKind;

impl CostModel {
    /// Bytes of one token's keys and values over all layers that keep them.
    #[must_use]
    pub fn cache_bytes_per_token(&self) -> u64 {
        self.layers_with(MixerKind::FullAttention) * 2 * self.config.kv_width() as u64 * self.element
    }

    /// The most that the cache of a sequence of so many tokens takes, whichever way it grew.
    ///
    /// A cache that is full grows by half, to a multiple of [`STEP`] rows. Linear attention remembers a constant amount,
    /// and once more what a step that is being computed will leave behind.
    #[must_use]
    pub fn cache_bytes(&self, tokens: usize) -> u64 {
        let rows = (tokens + tokens / 2 + STEP - 1) as u64;
        rows * self.cache_bytes_per_token() + 2 * self.state_bytes() * self.layers_with(MixerKind::GatedDeltaNet)
    }

    /// What one layer of linear attention remembers of a sequence: its memory, and the last rows before the convolution.
    pub(super) fn state_bytes(&self) -> u64 {
        let Some(delta) = &self.config.delta else { return 0 };
        let memory = delta.value_width() as u64 * delta.key_head_dim as u64 * FLOAT;
        memory + (delta.conv_channels() * delta.conv_kernel.saturating_sub(1)) as u64 * self.element
    }

    fn layers_with(&self, mixer: MixerKind) -> u64 {
        self.config.layers.iter().filter(|layer| layer.mixer == mixer).count() as u64
    }
}
