//! The row-wise kernels against their formulas in fp64, and the independence of a row from its neighbours.

mod common;

use common::random;
use half::bf16;
use proptest::prelude::*;
use twinkle_kernels::{
    NormFlavour, log_softmax_backward, log_sum_exp, rms_norm, rms_norm_backward, rotate, swiglu, swiglu_backward,
};

fn wide(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// A few roundings to bf16 may lie between the two.
fn assert_close(found: &[bf16], expected: impl IntoIterator<Item = f64>) {
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = 0.02 * expected.abs() + 0.02;
        assert!((found.to_f64() - expected).abs() <= allowed, "{place}: {found}, not {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn norms(rows in 1_usize..70, width in 1_usize..90, zero_centred: bool, seed: u64) {
        let flavour = if zero_centred { NormFlavour::ZeroCentred } else { NormFlavour::Plain };
        let (x, weight) = (random(rows * width, seed), random(width, seed ^ 1));
        let (dy, before) = (random(rows * width, seed ^ 2), random(rows * width, seed ^ 3));
        let mut y = vec![bf16::ZERO; x.len()];
        rms_norm(&x, &weight, 1e-2, flavour, &mut y);
        let mut dx = before.clone();
        rms_norm_backward(&x, &weight, 1e-2, flavour, &dy, &mut dx);
        let weights: Vec<f64> = wide(&weight).into_iter().map(|w| if zero_centred { 1.0 + w } else { w }).collect();
        for row in 0..rows {
            let place = row * width..(row + 1) * width;
            let (x64, dy64) = (wide(&x[place.clone()]), wide(&dy[place.clone()]));
            let inverse = 1.0 / (x64.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-2).sqrt();
            assert_close(&y[place.clone()], x64.iter().zip(&weights).map(|(x, w)| x * inverse * w));
            let g: Vec<f64> = dy64.iter().zip(&weights).map(|(dy, w)| dy * w).collect();
            let mean = g.iter().zip(&x64).map(|(g, x)| g * x * inverse).sum::<f64>() / width as f64;
            let expected = g.iter().zip(&x64).zip(wide(&before[place.clone()]));
            assert_close(&dx[place.clone()], expected.map(|((g, x), b)| b + inverse * (g - x * inverse * mean)));
            let (mut alone, mut alone_dx) = (vec![bf16::ZERO; width], before[place.clone()].to_vec());
            rms_norm(&x[place.clone()], &weight, 1e-2, flavour, &mut alone);
            rms_norm_backward(&x[place.clone()], &weight, 1e-2, flavour, &dy[place.clone()], &mut alone_dx);
            prop_assert!(alone == y[place.clone()] && alone_dx == dx[place]);
        }
    }

    #[test]
    fn gated_activations(count in 1_usize..40_000, seed: u64) {
        let (gate, up, dy) = (random(count, seed), random(count, seed ^ 1), random(count, seed ^ 2));
        let mut y = vec![bf16::ZERO; count];
        swiglu(&gate, &up, &mut y);
        let (mut d_gate, mut d_up) = (gate.clone(), up.clone());
        swiglu_backward(&mut d_gate, &mut d_up, &dy);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let all = || wide(&gate).into_iter().zip(wide(&up)).zip(wide(&dy));
        assert_close(&y, all().map(|((g, u), _)| g * sigmoid(g) * u));
        assert_close(&d_up, all().map(|((g, _), dy)| g * sigmoid(g) * dy));
        assert_close(&d_gate, all().map(|((g, u), dy)| sigmoid(g) * (1.0 + g * (1.0 - sigmoid(g))) * u * dy));
        let last = count - 1..count;
        let mut alone = vec![bf16::ZERO];
        swiglu(&gate[last.clone()], &up[last.clone()], &mut alone);
        prop_assert!(alone == y[last]);
    }

    #[test]
    fn softmax(rows in 1_usize..9, width in 2_usize..300, seed: u64) {
        let logits = random(rows * width, seed);
        let mut normalisers = vec![0.0; rows];
        log_sum_exp(&logits, width, &mut normalisers);
        let targets: Vec<u32> = (0..rows).flat_map(|row| [(row % width) as u32, ((row + 1) % width) as u32]).collect();
        let derivatives: Vec<f32> = (0..2 * rows).map(|i| 0.3 - 0.2 * (i % 4) as f32).collect();
        let sums: Vec<f32> = derivatives.chunks(2).map(|two| two[0] + two[1]).collect();
        let mut gradient = logits.clone();
        log_softmax_backward(&mut gradient, width, &normalisers, &targets, &derivatives, &sums);
        for row in 0..rows {
            let place = row * width..(row + 1) * width;
            let x = wide(&logits[place.clone()]);
            let normaliser = x.iter().map(|x| x.exp()).sum::<f64>().ln();
            prop_assert!((f64::from(normalisers[row]) - normaliser).abs() < 1e-5);
            let expected = x.iter().enumerate().map(|(j, x)| {
                let hits = (0..2).filter(|k| targets[2 * row + k] as usize == j);
                let direct: f64 = hits.map(|k| f64::from(derivatives[2 * row + k])).sum();
                direct - f64::from(sums[row]) * (x - normaliser).exp()
            });
            for (found, expected) in gradient[place.clone()].iter().zip(expected) {
                prop_assert!((found.to_f64() - expected).abs() <= 0.005 * expected.abs() + 1e-6);
            }
            let mut alone = [0.0];
            log_sum_exp(&logits[place], width, &mut alone);
            prop_assert!(alone[0].to_bits() == normalisers[row].to_bits());
        }
    }

    #[test]
    fn rotations(rows in 1_usize..40, heads in 1_usize..4, pairs in 1_usize..20, rest in 0_usize..9, seed: u64) {
        let dim = 2 * pairs + rest;
        let before = random(rows * heads * dim, seed);
        let angles: Vec<f64> = (0..rows * pairs).map(|i| i as f64 * 0.37).collect();
        let cos: Vec<bf16> = angles.iter().map(|angle| bf16::from_f64(angle.cos())).collect();
        let sin: Vec<bf16> = angles.iter().map(|angle| bf16::from_f64(angle.sin())).collect();
        let mut turned = before.clone();
        rotate(&mut turned, (heads, dim), &cos, &sin, pairs, false);
        for head in 0..rows * heads {
            let (place, own) = (head * dim..(head + 1) * dim, head / heads * pairs..(head / heads + 1) * pairs);
            let (x, c, s) = (wide(&before[place.clone()]), wide(&cos[own.clone()]), wide(&sin[own]));
            let expected = (0..dim).map(|i| match i {
                i if i < pairs => x[i] * c[i] - x[i + pairs] * s[i],
                i if i < 2 * pairs => x[i] * c[i - pairs] + x[i - pairs] * s[i - pairs],
                i => x[i],
            });
            assert_close(&turned[place], expected);
        }
        let first = heads * dim;
        let mut alone = before[..first].to_vec();
        rotate(&mut alone, (heads, dim), &cos[..pairs], &sin[..pairs], pairs, false);
        prop_assert!(alone == turned[..first]);
        rotate(&mut turned, (heads, dim), &cos, &sin, pairs, true);
        assert_close(&turned, wide(&before));
    }
}

#[test]
fn what_is_not_a_number_stays_visible() {
    let mut y = [bf16::ZERO; 2];
    swiglu(&[bf16::NAN, bf16::ONE], &[bf16::ONE; 2], &mut y);
    assert!(y[0].is_nan() && !y[1].is_nan());
    let mut normaliser = [0.0];
    log_sum_exp(&[bf16::ONE, bf16::NAN, bf16::ZERO], 3, &mut normaliser);
    assert!(normaliser[0].is_nan());
    let mut y = [bf16::ZERO; 2];
    rms_norm(&[bf16::INFINITY, bf16::ONE], &[bf16::ONE; 2], 1e-6, NormFlavour::Plain, &mut y);
    assert!(y.iter().any(|y| !y.is_finite()));
}
