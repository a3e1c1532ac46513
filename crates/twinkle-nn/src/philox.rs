//! Philox4x32-10, a counter-based random generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! A number depends on its key and counter only, so a draw does not depend on what was drawn before,
//! on the batch it sits in, or on a restart.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four random words for this counter and key.
#[must_use]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut state = counter;
    let mut key = key;
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let left = u64::from(MULTIPLIERS[0]) * u64::from(state[0]);
        let right = u64::from(MULTIPLIERS[1]) * u64::from(state[2]);
        state = [
            (right >> 32) as u32 ^ state[1] ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ state[3] ^ key[1],
            left as u32,
        ];
    }
    state
}

/// A stream of numbers: the key is a 64-bit seed, the counter's upper half names the stream, its lower half the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    stream: [u32; 2],
}

impl Philox {
    /// The stream named `stream` under `seed`.
    #[must_use]
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stream: [stream as u32, (stream >> 32) as u32] }
    }

    /// The `index`-th block of four words.
    #[must_use]
    pub fn block(&self, index: u64) -> [u32; 4] {
        philox4x32([index as u32, (index >> 32) as u32, self.stream[0], self.stream[1]], self.key)
    }

    /// The `index`-th number, uniform in `[0, 1)`, a multiple of 2⁻²⁴.
    #[must_use]
    pub fn uniform(&self, index: u64) -> f32 {
        let word = self.block(index / 4)[(index % 4) as usize];
        (word >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// The `index`-th number, uniform in `[0, 1)`, a multiple of 2⁻⁵³.
    #[must_use]
    pub fn uniform_f64(&self, index: u64) -> f64 {
        let block = self.block(index / 2);
        let pair = if index.is_multiple_of(2) { [block[0], block[1]] } else { [block[2], block[3]] };
        let word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
        (word >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }
}

/// A 64-bit name for a text, for use as a stream (FNV-1a, 64 bits).
#[must_use]
pub fn stream_of_name(name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors of Random123 1.14 (`kat_vectors`, `philox4x32 10`).
    #[test]
    fn known_answers_of_random123() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_numbers_stay_in_range_and_fill_it() {
        let stream = Philox::new(7, stream_of_name("model.layers.0.mlp.up_proj"));
        let numbers: Vec<f64> = (0..40_000).map(|index| f64::from(stream.uniform(index))).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
        let mean = (0..40_000).map(|index| stream.uniform_f64(index)).sum::<f64>() / 40_000.0;
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
    }

    #[test]
    fn streams_and_seeds_differ() {
        let draw =
            |seed, name| (0..8).map(|index| Philox::new(seed, stream_of_name(name)).uniform(index)).collect::<Vec<_>>();
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_eq!(draw(1, "a"), draw(1, "a"));
    }
}
