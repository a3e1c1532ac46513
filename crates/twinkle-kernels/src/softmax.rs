//! Log-softmax over the vocabulary and its gradient, row by row of bf16 logits.

use half::bf16;

use crate::features::multiversion;
use crate::numbers::{LANES, exp, narrow, total, wide};
use crate::pool::{self, Shared};

/// What a logit costs, in multiply-adds.
const COST: usize = 24;

/// `ln Σ eˣ` of every row of `[rows, width]`, fp32.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn log_sum_exp(logits: &[bf16], width: usize, result: &mut [f32]) {
    assert!(width > 0 && logits.len() == width * result.len(), "{} rows of {width} logits", result.len());
    let target = Shared::new(result);
    pool::for_each(logits.len() / width, logits.len() * COST, |row| {
        // SAFETY: every task has a row of its own.
        log_sum_exp_row(&logits[row * width..(row + 1) * width], unsafe { target.part(row..row + 1) });
    });
}

/// Replaces logits `[rows, width]` by the gradient of `Σ_row Σ_k c_k · logprob(target_k)`:
/// `Σ_k c_k 1[j = target_k] − (Σ_k c_k) · softmax_j`.
///
/// Each row has the same number of targets, all different or with `c = 0` where repeated; `sums` is `Σ_k c_k`.
///
/// # Panics
/// If the slices' lengths do not fit together or a target is not below `width`.
pub fn log_softmax_backward(
    logits: &mut [bf16],
    width: usize,
    log_sum_exp: &[f32],
    targets: &[u32],
    derivatives: &[f32],
    sums: &[f32],
) {
    let rows = sums.len();
    assert!(width > 0 && logits.len() == width * rows && log_sum_exp.len() == rows, "{rows} rows of {width} logits");
    assert!(targets.len() == derivatives.len() && (rows == 0 || targets.len().is_multiple_of(rows)), "targets");
    assert!(targets.iter().all(|target| (*target as usize) < width), "a target outside {width} logits");
    let each = targets.len().checked_div(rows).unwrap_or(0);
    let cost = logits.len() * COST;
    let shared = Shared::new(logits);
    pool::for_each(rows, cost, |row| {
        // SAFETY: every task has a row of its own.
        let logits = unsafe { shared.part(row * width..(row + 1) * width) };
        let own = row * each..(row + 1) * each;
        let places = targets[own.clone()].iter().map(|target| *target as usize);
        // The logits of the targets, before they are overwritten.
        let kept: Vec<(usize, f32, f32)> =
            places.zip(&derivatives[own]).map(|(place, c)| (place, wide(logits[place]), *c)).collect();
        backward_row(logits, log_sum_exp[row], -sums[row]);
        for (place, logit, c) in kept {
            if c != 0.0 {
                logits[place] = narrow(exp(logit - log_sum_exp[row]) * -sums[row] + c);
            }
        }
    });
}

multiversion! {
    fn log_sum_exp_row(logits: &[bf16], result: &mut [f32]) {
        let mut largest = [f32::NEG_INFINITY; LANES];
        for chunk in logits.chunks(LANES) {
            for (largest, x) in largest.iter_mut().zip(chunk) {
                let x = wide(*x);
                *largest = if x > *largest { x } else { *largest };
            }
        }
        let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let mut sums = [0.0_f32; LANES];
        let mut chunks = logits.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum += exp(wide(*x) - largest);
            }
        }
        for (sum, x) in sums.iter_mut().zip(chunks.remainder()) {
            *sum += exp(wide(*x) - largest);
        }
        result[0] = largest + total(sums).ln();
    }

    fn backward_row(logits: &mut [bf16], log_sum_exp: f32, factor: f32) {
        for x in logits {
            *x = narrow(exp(wide(*x) - log_sum_exp) * factor);
        }
    }
}
