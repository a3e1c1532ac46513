//! The inputs of an adapter's last forward, which wait for its loss.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use twinkle_core::call::{ForwardOptions, LossSpec};

use super::data::LossInputs;
use super::rows::Rows;

/// About how many bytes a token takes with its label.
pub(super) const BYTES_PER_TOKEN: usize = 16;

/// The inputs of the last forward.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) rows: Arc<Rows>,
    pub(super) options: ForwardOptions,
    pub(super) is_embedding: bool,
    pub(super) is_training: bool,
    /// What came with the forward.
    pub(super) inputs: LossInputs,
    /// The loss that was computed of it: what gradients are of.
    pub(super) computed: Option<(LossSpec, LossInputs)>,
    /// Whether metrics have seen it with its loss.
    pub(super) is_seen: Arc<AtomicBool>,
}

impl Kept {
    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        let tokens: usize = self.rows.list.iter().map(|row| row.tokens.len()).sum();
        let computed = self.computed.as_ref().map_or(0, |(_, inputs)| inputs.bytes());
        1024 + BYTES_PER_TOKEN * tokens + self.inputs.bytes() + computed
    }
}
