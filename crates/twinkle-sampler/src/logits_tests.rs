use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(serde::Deserialize)]
struct Golden {
    logits: HashMap<String, Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    row: String,
    name: String,
    temperature: f32,
    top_k: i64,
    top_p: f32,
    kept: Vec<usize>,
    scaled_logprobs: Vec<f64>,
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/sampling.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn params(temperature: f32, top_k: i64, top_p: f32) -> DrawParams {
    DrawParams { temperature, top_k: usize::try_from(top_k).ok().and_then(NonZeroUsize::new), top_p }
}

/// A draw without the likeliest tokens.
fn plain(logits: &[f32], params: &DrawParams, noise: Noise) -> Result<Draw, NonFinite> {
    draw(logits, &task(*params, noise, 0))
}

/// No penalties, and logprobs as they are drawn from.
fn task(params: DrawParams, noise: Noise, top: usize) -> RowTask {
    RowTask { params, noise, top, bias: None, seen: None, numbers: LogprobsMode::Processed }
}

fn random_row(seed: u64, length: usize) -> Vec<f32> {
    let stream = Philox::new(seed, 99);
    (0..length).map(|index| (stream.uniform(index as u64) - 0.5) * 12.0).collect()
}

#[test]
fn the_same_tokens_are_kept_as_in_the_reference() {
    for case in golden().cases {
        let golden = golden();
        let params = params(case.temperature, case.top_k, case.top_p);
        let row = &golden.logits[&case.row];
        let expected = if params.is_greedy() { (0..row.len()).collect() } else { case.kept.clone() };
        let kept = kept(row, &params).unwrap_or_else(|| (0..row.len()).collect());
        assert_eq!(kept, expected, "row `{}`, case `{}`", case.row, case.name);
    }
}

#[test]
fn drawn_tokens_are_kept_ones_with_the_reference_logprob() {
    let golden = golden();
    for case in &golden.cases {
        let params = params(case.temperature, case.top_k, case.top_p);
        for position in 0..50 {
            let draw = plain(&golden.logits[&case.row], &params, Noise::new(5, position)).unwrap();
            assert!(case.kept.contains(&(draw.token as usize)), "row `{}`, case `{}`", case.row, case.name);
            let expected = case.scaled_logprobs[draw.token as usize];
            assert!((f64::from(draw.logprob) - expected).abs() < 1e-5, "row `{}`, case `{}`", case.row, case.name);
        }
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let draw = plain(&[0.0, 3.0, 1.0, 3.0], &params(0.0, 1, 0.1), Noise::new(1, 1)).unwrap();
    assert_eq!(draw.token, 1);
    let unscaled = 3.0 - (1.0_f64 + 2.0 * 3.0_f64.exp() + 1.0_f64.exp()).ln();
    assert!((f64::from(draw.logprob) - unscaled).abs() < 1e-6);
}

#[test]
fn a_row_that_is_not_finite_fails() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(plain(&[0.0, bad, 1.0], &params(1.0, 0, 1.0), Noise::new(1, 1)), Err(NonFinite));
    }
    assert_eq!(plain(&[], &params(1.0, 0, 1.0), Noise::new(1, 1)), Err(NonFinite));
}

#[test]
fn a_bad_row_does_not_fail_its_neighbours() {
    let mut logits = random_row(1, 3 * 50_000);
    logits[50_007] = f32::NAN;
    let tasks: Vec<RowTask> = (0..3).map(|row| task(params(1.0, 0, 1.0), Noise::new(row, 4), 0)).collect();
    let together = draw_rows(&logits, 50_000, &tasks);
    assert_eq!(together[1], Err(NonFinite));
    for row in [0, 2] {
        assert_eq!(
            together[row],
            plain(&logits[row * 50_000..(row + 1) * 50_000], &tasks[row].params, tasks[row].noise)
        );
    }
}

/// Pearson's χ² of 100,000 draws; the limit is the 0.9999 quantile (Wilson–Hilferty), the seed is fixed.
fn chi_squared_holds(logits: &[f32], params: DrawParams) {
    const DRAWS: u32 = 100_000;
    let kept = kept(logits, &params).unwrap_or_else(|| (0..logits.len()).collect());
    let weights: Vec<f64> =
        kept.iter().map(|token| (f64::from(logits[*token]) / f64::from(params.temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut counts = vec![0_u32; logits.len()];
    for position in 0..DRAWS {
        counts[plain(logits, &params, Noise::new(20_260, u64::from(position))).unwrap().token as usize] += 1;
    }
    assert_eq!(kept.iter().map(|token| counts[*token]).sum::<u32>(), DRAWS, "a dropped token was drawn");
    // Cells with an expectation under 5 are pooled.
    let mut cells = Vec::new();
    let mut pooled = (0.0, 0.0);
    for (token, weight) in kept.iter().zip(&weights) {
        let expected = weight / total * f64::from(DRAWS);
        let seen = f64::from(counts[*token]);
        if expected < 5.0 {
            pooled = (pooled.0 + expected, pooled.1 + seen);
        } else {
            cells.push((expected, seen));
        }
    }
    if pooled.0 >= 1.0 {
        cells.push(pooled);
    }
    let statistic: f64 = cells.iter().map(|(expected, seen)| (seen - expected).powi(2) / expected).sum();
    let freedom = cells.len() as f64 - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    let limit = freedom * (1.0 - spread + 3.719 * spread.sqrt()).powi(3);
    assert!(statistic < limit, "χ² {statistic} above {limit} with {freedom} degrees of freedom");
}

#[test]
fn draws_follow_the_distribution() {
    let golden = golden();
    let row = &golden.logits["random"];
    chi_squared_holds(row, params(1.0, 0, 1.0));
    chi_squared_holds(row, params(1.7, 0, 1.0));
    chi_squared_holds(row, params(1.3, 12, 1.0));
    chi_squared_holds(row, params(1.5, 30, 0.9));
}

#[test]
fn consecutive_sample_keys_draw_independently() {
    let row = vec![0.0; 64];
    let draws = |key| -> Vec<u32> {
        (0..500).map(|position| plain(&row, &params(1.0, 0, 1.0), Noise::new(key, position)).unwrap().token).collect()
    };
    let (left, right) = (draws(6), draws(7));
    assert_eq!(left, draws(6));
    let equal = left.iter().zip(&right).filter(|(left, right)| left == right).count();
    assert!(equal < 30, "{equal} of 500 draws agree, about 8 are expected");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_blockwise_draw_is_the_plain_argmax(seed: u64, length in 1_usize..1500, temperature in 0.05_f32..3.0) {
        let row = random_row(seed, length);
        let noise = Noise::new(seed, 7);
        let all: Vec<usize> = (0..length).collect();
        let drawn = plain(&row, &params(temperature, 0, 1.0), noise).unwrap();
        prop_assert_eq!(drawn.token as usize, draw_of_few(&row, &all, temperature, noise));
    }

    #[test]
    fn truncation_agrees_with_a_full_sort(seed: u64, length in 1_usize..900, k in 0_i64..900, p in 0.01_f32..=1.0) {
        let row = random_row(seed, length);
        let params = params(0.8, k, p);
        let mut order: Vec<usize> = (0..length).collect();
        order.sort_by(|left, right| row[*right].total_cmp(&row[*left]).then(left.cmp(right)));
        if k > 0 && (k as usize) < length {
            let smallest = row[order[k as usize - 1]];
            order.retain(|token| row[*token] >= smallest);
        }
        let (_, largest) = largest(&row).unwrap();
        let weight = |token: usize| f64::from(((row[token] - largest) / 0.8).exp());
        let total: f64 = order.iter().map(|token| weight(*token)).sum();
        let mut mass = 0.0;
        let mut expected = Vec::new();
        for token in order {
            if !expected.is_empty() && p < 1.0 && mass >= f64::from(p) * total - 1e-12 * total {
                break;
            }
            mass += weight(token);
            expected.push(token);
        }
        expected.sort_unstable();
        let kept = kept(&row, &params).unwrap_or_else(|| (0..length).collect());
        prop_assert!(kept.len().abs_diff(expected.len()) <= 1);
        prop_assert!(kept.iter().all(|token| expected.contains(token)) || expected.iter().all(|token| kept.contains(token)));
    }
}

#[test]
fn the_likeliest_have_the_logprobs_a_draw_of_them_would_report() {
    for (temperature, top_k) in [(1.0, 0), (0.6, 2), (0.0, 0)] {
        let row = random_row(8, 300);
        for position in 0..20 {
            let drawn = draw(&row, &task(params(temperature, top_k, 1.0), Noise::new(1, position), 300)).unwrap();
            let same = drawn.likeliest.iter().find(|(token, _)| *token == drawn.token).unwrap();
            assert_eq!(same.1.to_bits(), drawn.logprob.to_bits());
            assert!(drawn.likeliest.is_sorted_by(|left, right| left.1 >= right.1));
            let sum: f64 = drawn.likeliest.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        }
    }
}

/// What is drawn from `row` with these numbers wanted, and with tokens 0 and 1 held back by two.
fn numbered(row: &[f32], temperature: f32, numbers: LogprobsMode) -> Draw {
    let penalties = twinkle_core::call::Penalties { presence: 2.0, ..Default::default() };
    let mut seen = Seen::new(penalties, &[]).unwrap();
    seen.drew(0);
    seen.drew(1);
    let task = task(params(temperature, 0, 1.0), Noise::new(3, 1), row.len());
    draw(row, &RowTask { seen: Some(Arc::new(seen)), numbers, ..task }).unwrap()
}

#[test]
fn each_mode_tells_its_own_numbers_of_the_same_token() {
    let row = [3.0_f32, 2.5, 2.0, -1.0];
    let (held_back, temperature) = ([1.0_f32, 0.5, 2.0, -1.0], 0.5);
    let softmax = |row: [f32; 4], temperature: f32| {
        let sum: f32 = row.iter().map(|logit| (logit / temperature).exp()).sum();
        row.map(|logit| logit / temperature - sum.ln())
    };
    for (numbers, expected) in [
        (LogprobsMode::Processed, softmax(held_back, temperature)),
        (LogprobsMode::Raw, softmax(row, 1.0)),
        (LogprobsMode::ProcessedLogits, held_back.map(|logit| logit / temperature)),
        (LogprobsMode::RawLogits, row),
    ] {
        let drawn = numbered(&row, temperature, numbers);
        assert_eq!(drawn.token, numbered(&row, temperature, LogprobsMode::Processed).token);
        assert!((drawn.logprob - expected[drawn.token as usize]).abs() < 1e-5, "{numbers:?}");
        assert!(drawn.likeliest.is_sorted_by(|left, right| left.1 >= right.1), "{numbers:?}");
        for (token, number) in &drawn.likeliest {
            assert!((number - expected[*token as usize]).abs() < 1e-5, "{numbers:?} of {token}");
        }
    }
    assert_eq!(numbered(&row, 0.0, LogprobsMode::RawLogits).token, 2, "what is held back is not the greedy choice");
}

#[test]
fn penalties_that_hold_nothing_back_leave_every_bit_as_it_was() {
    let row = random_row(21, 3000);
    for temperature in [0.0, 0.7, 1.0] {
        let plain = task(params(temperature, 40, 0.9), Noise::new(9, 2), 5);
        // Of a token whose id has no row.
        let seen = Seen::new(twinkle_core::call::Penalties { repetition: 2.0, ..Default::default() }, &[9999]);
        let held_back = RowTask { seen: seen.map(Arc::new), ..plain.clone() };
        assert_eq!(draw(&row, &plain), draw(&row, &held_back));
    }
}

#[test]
fn a_bias_moves_its_tokens_and_no_other_row() {
    let rows = random_row(22, 2 * 50_000);
    let plain = task(params(0.7, 40, 0.9), Noise::new(9, 2), 5);
    let forced = Bias::new(vec![(77, 100.0)], 50_000).unwrap();
    let biased = RowTask { bias: forced, ..plain.clone() };
    let together = draw_rows(&rows, 50_000, &[plain.clone(), biased.clone()]);
    assert_eq!(together[0], draw(&rows[..50_000], &plain), "a neighbour's bias changed a row");
    assert_eq!(together[1].as_ref().unwrap().token, 77);
    let banned = Bias::new(vec![(77, -100.0)], 50_000).unwrap();
    let greedy = RowTask { bias: banned, ..task(params(0.0, 0, 1.0), Noise::new(1, 1), 0) };
    let mut row = random_row(23, 50_000);
    row[77] = 50.0;
    assert_ne!(draw(&row, &greedy).unwrap().token, 77);
}

#[test]
fn a_bias_comes_before_penalties() {
    let seen = Seen::new(twinkle_core::call::Penalties { repetition: 2.0, ..Default::default() }, &[0]);
    let bias = Bias::new(vec![(0, -3.0)], 2).unwrap();
    let task = task(params(0.0, 0, 1.0), Noise::new(1, 1), 2);
    let task = RowTask { bias, seen: seen.map(Arc::new), numbers: LogprobsMode::ProcessedLogits, ..task };
    // (1 - 3) * 2, not 1 / 2 - 3.
    assert_eq!(draw(&[1.0, -9.0], &task).unwrap().likeliest, [(0, -4.0), (1, -9.0)]);
}

#[test]
fn a_bias_of_nothing_leaves_every_bit_as_it_was() {
    let row = random_row(24, 3000);
    let plain = task(params(0.7, 40, 0.9), Noise::new(9, 2), 5);
    let biased = RowTask { bias: Bias::new(vec![(5, 0.0)], 3000).unwrap(), ..plain.clone() };
    assert_eq!(draw(&row, &plain), draw(&row, &biased));
}
