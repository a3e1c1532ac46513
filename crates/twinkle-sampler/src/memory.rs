//! How much memory the caches of an engine may take, and how the scheduler counts it.

use twinkle_nn::CostModel;

/// Room for the caches of one sampler. Whoever plans a node's memory makes it; the engine goes by it.
///
/// The scheduler counts in tokens. A token is counted with the room that a cache which has just grown has beside it, and
/// a sequence with what it takes however short it is, so that caches never take more than [`CacheBudget::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheBudget {
    /// Bytes of all caches together.
    pub bytes: u64,
    /// Bytes that a token is counted as.
    pub bytes_per_token: u64,
    /// Bytes that a sequence is counted as beside its tokens.
    pub bytes_per_sequence: u64,
}

impl CacheBudget {
    /// So many bytes for sequences of this model.
    #[must_use]
    pub fn new(cost: &CostModel, bytes: u64) -> Self {
        let bytes_per_sequence = cost.cache_bytes(0);
        let bytes_per_token = (cost.cache_bytes(2) - bytes_per_sequence).div_ceil(2);
        Self { bytes, bytes_per_token: bytes_per_token.max(1), bytes_per_sequence }
    }

    /// Tokens of all caches together, what sequences are counted as among them.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        (self.bytes / self.bytes_per_token) as usize
    }

    /// Tokens that a sequence is counted as beside its own.
    #[must_use]
    pub const fn sequence_tokens(&self) -> usize {
        self.bytes_per_sequence.div_ceil(self.bytes_per_token) as usize
    }

    /// How many sequences of so many tokens fit at once.
    #[must_use]
    pub const fn sequences_of(&self, tokens: usize) -> usize {
        let sequence = tokens + self.sequence_tokens();
        match self.tokens().checked_div(sequence) {
            Some(sequences) => sequences,
            None => 0,
        }
    }
}
