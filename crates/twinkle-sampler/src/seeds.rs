//! Seeds for requests that name none.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use twinkle_nn::philox::Philox;

/// Seeds for requests that name none.
#[derive(Debug)]
pub struct Seeds {
    key: u64,
    drawn: AtomicU64,
}

impl Seeds {
    /// Seeds from `key`, or from the operating system's randomness.
    #[must_use]
    pub fn new(key: Option<u64>) -> Self {
        let key = key.unwrap_or_else(|| RandomState::new().hash_one("sampler"));
        Self { key, drawn: AtomicU64::new(0) }
    }

    /// The next seed.
    pub fn draw(&self) -> u64 {
        let [low, high, ..] = Philox::new(self.key, 0).block(self.drawn.fetch_add(1, Ordering::Relaxed));
        u64::from(low) | u64::from(high) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_without_a_seed_get_different_ones_and_a_configured_seed_repeats_them() {
        let seeds = |key| {
            let seeds = Seeds::new(key);
            [seeds.draw(), seeds.draw()]
        };
        assert_ne!(seeds(None)[0], seeds(None)[1]);
        assert_ne!(seeds(None), seeds(None));
        assert_eq!(seeds(Some(3)), seeds(Some(3)));
    }
}
