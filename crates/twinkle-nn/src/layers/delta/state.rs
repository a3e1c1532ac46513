//! What a linear attention layer remembers of a sequence: a constant amount, however long the sequence is.

use tch::{Device, Kind, Tensor};

use crate::config::DeltaConfig;

/// One layer's memory of the tokens so far. Never changed in place: a step makes a new one, so copies cost nothing.
#[derive(Debug)]
pub(crate) struct DeltaState {
    /// The last rows before the convolution, in the model's dtype: `[K − 1, 2K + W]`, the newest last.
    pub(super) tail: Tensor,
    /// `S`, fp32 `[n_v, d_k, d_v]`.
    pub(super) memory: Tensor,
}

impl DeltaState {
    /// Before the first token.
    pub(crate) fn empty(config: &DeltaConfig, kind: Kind, device: Device) -> Self {
        let [tail, memory] = sizes(config);
        Self { tail: Tensor::zeros(&tail, (kind, device)), memory: Tensor::zeros(&memory, (Kind::Float, device)) }
    }

    /// Bytes of memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        [&self.tail, &self.memory].map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).iter().sum()
    }

    /// Whether it is of a layer of these dimensions.
    pub(crate) fn fits(&self, config: &DeltaConfig) -> bool {
        let [tail, memory] = sizes(config);
        self.tail.size() == tail && self.memory.size() == memory
    }

    /// The same memory, for another continuation.
    pub(crate) fn fork(&self) -> Self {
        Self { tail: self.tail.shallow_clone(), memory: self.memory.shallow_clone() }
    }
}

/// The sizes of the tail and of the memory.
fn sizes(config: &DeltaConfig) -> [Vec<i64>; 2] {
    let tail = vec![config.conv_kernel - 1, config.conv_channels()];
    let memory = vec![config.value_head_count, config.key_head_dim, config.value_head_dim];
    [tail, memory].map(|sizes| sizes.into_iter().map(|size| size as i64).collect())
}
