//! From a row of numbers, one per token, to its largest ones or to draws from it. Pure.

use twinkle_nn::philox::Philox;

use crate::logits::GREEDY_BELOW;

/// The `k` tokens with the largest numbers, the largest first and the lower id among equals; all when there are fewer.
#[must_use]
pub fn likeliest(row: &[f32], k: usize) -> Vec<u32> {
    if k == 0 {
        return Vec::new();
    }
    let before = |left: &u32, right: &u32| {
        let value = |token: &u32| row.get(*token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        value(right).total_cmp(&value(left)).then(left.cmp(right))
    };
    let mut best: Vec<u32> = Vec::with_capacity(2 * k.min(row.len()));
    // Once k are held, a later token must be larger than the smallest of them: among equals the lower id stays.
    let mut threshold = f32::NEG_INFINITY;
    let mut has_threshold = false;
    for (token, value) in row.iter().enumerate() {
        if has_threshold && *value <= threshold {
            continue;
        }
        best.push(token as u32);
        if best.len() == 2 * k {
            let (_, kth, _) = best.select_nth_unstable_by(k - 1, before);
            threshold = row.get(*kth as usize).copied().unwrap_or(f32::NEG_INFINITY);
            has_threshold = true;
            best.truncate(k);
        }
    }
    best.sort_unstable_by(before);
    best.truncate(k);
    best
}

/// `k` independent draws, with replacement, from `softmax(logprobs / temperature)`; at temperature 0 the likeliest each time.
///
/// The distribution function is summed in fp64 in the order of ids, and each draw looks a uniform number up in it, so a
/// draw depends on its row and its number in `noise` only. `sums` is room to work in.
#[must_use]
pub fn draws(logprobs: &[f32], temperature: f32, k: usize, noise: Philox, sums: &mut Vec<f64>) -> Vec<u32> {
    let Some(best) = likeliest(logprobs, 1).first().copied() else { return Vec::new() };
    if temperature < GREEDY_BELOW {
        return vec![best; k];
    }
    let largest = logprobs.get(best as usize).copied().unwrap_or_default();
    sums.clear();
    let mut sum = 0.0;
    for logprob in logprobs {
        sum += f64::from(((logprob - largest) / temperature).exp());
        sums.push(sum);
    }
    let draw = |index: usize| {
        let wanted = noise.uniform_f64(index as u64) * sum;
        sums.partition_point(|sum| *sum <= wanted).min(logprobs.len() - 1) as u32
    };
    (0..k).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equals_come_in_the_order_of_their_ids() {
        let row = [1.0, 3.0, 2.0, 3.0, 2.0, 3.0, 0.0];
        assert_eq!(likeliest(&row, 1), [1]);
        assert_eq!(likeliest(&row, 4), [1, 3, 5, 2]);
        assert_eq!(likeliest(&row, 5), [1, 3, 5, 2, 4]);
        assert_eq!(likeliest(&row, 100).len(), 7);
        assert_eq!(likeliest(&row, 0), [0; 0]);
        assert_eq!(likeliest(&[f32::NEG_INFINITY; 5], 2), [0, 1]);
    }

    proptest! {
        #[test]
        fn the_likeliest_are_the_first_of_the_sorted_row(values in prop::collection::vec(-4_i8..4, 1..200), k in 1_usize..40) {
            let row: Vec<f32> = values.iter().map(|value| f32::from(*value)).collect();
            let mut sorted: Vec<u32> = (0..row.len() as u32).collect();
            sorted.sort_by(|left, right| row[*right as usize].total_cmp(&row[*left as usize]));
            sorted.truncate(k);
            prop_assert_eq!(likeliest(&row, k), sorted);
        }

        #[test]
        fn a_draw_does_not_depend_on_how_many_there_are(seed in any::<u64>(), k in 1_usize..30) {
            let row: Vec<f32> = (0..50).map(|index| Philox::new(seed, 1).uniform(index) * -9.0).collect();
            let mut room = Vec::new();
            let many = draws(&row, 0.8, 30, Philox::new(seed, 2), &mut room);
            prop_assert_eq!(&draws(&row, 0.8, k, Philox::new(seed, 2), &mut room)[..], &many[..k]);
        }
    }

    #[test]
    fn draws_have_the_distribution_at_the_temperature() {
        let row = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln(), -200.0];
        for temperature in [1.0_f32, 0.5, 2.0] {
            let drawn = draws(&row, temperature, 60_000, Philox::new(3, 9), &mut Vec::new());
            let weights: Vec<f64> = row.iter().map(|logprob| f64::from(logprob / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (token, weight) in weights.iter().enumerate() {
                let seen = drawn.iter().filter(|drawn| **drawn == token as u32).count() as f64 / 60_000.0;
                assert!((seen - weight / total).abs() < 0.01, "token {token} at {temperature}: {seen}");
            }
        }
        assert_eq!(draws(&row, 0.0, 3, Philox::new(3, 9), &mut Vec::new()), [0, 0, 0]);
        assert_eq!(draws(&[], 1.0, 3, Philox::new(3, 9), &mut Vec::new()), [0; 0]);
    }
}
