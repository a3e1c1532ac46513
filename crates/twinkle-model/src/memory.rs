//! What an application may take beside its weights.

/// Most bytes for each kind of thing that grows with use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Runs in memory, all together.
    pub runs: u64,
    /// What one pass keeps and works with.
    pub pass: u64,
}

impl MemoryLimits {
    /// No limit.
    pub const NONE: Self = Self { runs: u64::MAX, pass: u64::MAX };

    /// One half for runs, one for a pass.
    #[must_use]
    pub const fn divide(total: u64) -> Self {
        Self { runs: total / 2, pass: total - total / 2 }
    }
}
