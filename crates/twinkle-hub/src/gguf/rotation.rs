//! Llama 3.1's stretched rotation, recognised.
//!
//! GGUF keeps what each frequency is divided by (`rope_freqs.weight`), `config.json` the few numbers that follows
//! from. There are two such models; anything else is refused.

use serde_json::{Value, json};

/// A setting of `rope_scaling` with `rope_type: llama3`.
struct Stretch {
    factor: f64,
    low: f64,
    high: f64,
    context: f64,
}

/// Llama 3.1 and 3.3, and Llama 3.2.
const KNOWN: [Stretch; 2] = [
    Stretch { factor: 8.0, low: 1.0, high: 4.0, context: 8192.0 },
    Stretch { factor: 32.0, low: 1.0, high: 4.0, context: 8192.0 },
];

/// How far a divisor may be off: GGUF keeps it in fp32.
const TOLERANCE: f64 = 1e-3;

/// The `rope_scaling` that divides the frequencies like this.
pub(super) fn recognise(divisors: &[f32], base: f64) -> Option<Value> {
    let fits = |stretch: &&Stretch| {
        let expected = (0..divisors.len()).map(|index| stretch.divisor(index, divisors.len(), base));
        divisors.iter().zip(expected).all(|(found, expected)| (f64::from(*found) / expected - 1.0).abs() < TOLERANCE)
    };
    KNOWN.iter().find(fits).map(|stretch| {
        json!({
            "factor": stretch.factor,
            "high_freq_factor": stretch.high,
            "low_freq_factor": stretch.low,
            "original_max_position_embeddings": stretch.context as u64,
            "rope_type": "llama3",
        })
    })
}

impl Stretch {
    /// What the frequency of a pair is divided by: nothing for short waves, all for long ones, a blend between.
    fn divisor(&self, index: usize, pairs: usize, base: f64) -> f64 {
        let frequency = base.powf(-(index as f64) / pairs as f64);
        let turns = self.context * frequency / (2.0 * std::f64::consts::PI);
        if turns > self.high {
            return 1.0;
        }
        if turns < self.low {
            return self.factor;
        }
        let smooth = (turns - self.low) / (self.high - self.low);
        1.0 / ((1.0 - smooth) / self.factor + smooth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_known_stretches_are_told_apart_and_others_are_not_guessed() {
        for stretch in &KNOWN {
            let divisors: Vec<f32> = (0..32).map(|index| stretch.divisor(index, 32, 5e5) as f32).collect();
            assert_eq!(recognise(&divisors, 5e5).unwrap()["factor"], stretch.factor);
        }
        let other = Stretch { factor: 16.0, low: 1.0, high: 4.0, context: 8192.0 };
        let divisors: Vec<f32> = (0..32).map(|index| other.divisor(index, 32, 5e5) as f32).collect();
        assert!(recognise(&divisors, 5e5).is_none());
    }

    #[test]
    fn short_waves_are_kept_and_long_ones_divided_by_the_whole_factor() {
        let stretch = &KNOWN[0];
        assert!((stretch.divisor(0, 64, 5e5) - 1.0).abs() < 1e-12);
        assert!((stretch.divisor(63, 64, 5e5) - 8.0).abs() < 1e-12);
    }
}
