//! RMS normalisation (Zhang & Sennrich 2019) of bf16 rows.

use half::bf16;

use crate::features::multiversion;
use crate::numbers::{LANES, narrow, rounded, total, wide};
use crate::pool::{self, Shared};

/// What the weight means and where the result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormFlavour {
    /// `round(round(x / rms) · w)`.
    Plain,
    /// `round(x / rms · (1 + w))`.
    ZeroCentred,
}

/// Rows that one task normalises.
const ROWS: usize = 16;
/// What a number of a row costs, in multiply-adds.
const COST: usize = 16;

/// `y = x / √(mean x² + ε)` times the weight `[width]`, row by row of `[rows, width]`; the mean in fp32.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn rms_norm(x: &[bf16], weight: &[bf16], epsilon: f32, flavour: NormFlavour, y: &mut [bf16]) {
    let width = weight.len();
    assert!(width > 0 && x.len().is_multiple_of(width) && y.len() == x.len(), "rows of {width}");
    let target = Shared::new(y);
    pool::for_each(x.len().div_ceil(ROWS * width), x.len() * COST, |task| {
        let place = task * ROWS * width..((task + 1) * ROWS * width).min(x.len());
        // SAFETY: every task has rows of its own.
        let y = unsafe { target.part(place.clone()) };
        forward_rows(&x[place], weight, epsilon, flavour, y);
    });
}

/// The gradient of `x` given `dy`, that of the result: with `n = x r` and `g = w dy` it is `r (g − n mean(g n))`.
/// It is added to what `dx` holds.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn rms_norm_backward(
    x: &[bf16],
    weight: &[bf16],
    epsilon: f32,
    flavour: NormFlavour,
    dy: &[bf16],
    dx: &mut [bf16],
) {
    let width = weight.len();
    assert!(
        width > 0 && x.len().is_multiple_of(width) && dy.len() == x.len() && dx.len() == x.len(),
        "rows of {width}"
    );
    let target = Shared::new(dx);
    pool::for_each(x.len().div_ceil(ROWS * width), x.len() * COST, |task| {
        let place = task * ROWS * width..((task + 1) * ROWS * width).min(x.len());
        // SAFETY: every task has rows of its own.
        let dx = unsafe { target.part(place.clone()) };
        backward_rows(&x[place.clone()], weight, epsilon, flavour, &dy[place], dx);
    });
}

/// `1 / √(mean x² + ε)`.
#[inline(always)]
fn inverse_deviation(x: &[bf16], epsilon: f32) -> f32 {
    let mut squares = [0.0_f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (sum, x) in squares.iter_mut().zip(chunk) {
            *sum += wide(*x) * wide(*x);
        }
    }
    for (sum, x) in squares.iter_mut().zip(chunks.remainder()) {
        *sum += wide(*x) * wide(*x);
    }
    1.0 / (total(squares) / x.len() as f32 + epsilon).sqrt()
}

/// What the row is multiplied by besides `1 / rms`.
#[inline(always)]
fn factor(weight: bf16, flavour: NormFlavour) -> f32 {
    match flavour {
        NormFlavour::Plain => wide(weight),
        NormFlavour::ZeroCentred => 1.0 + wide(weight),
    }
}

multiversion! {
    fn forward_rows(x: &[bf16], weight: &[bf16], epsilon: f32, flavour: NormFlavour, y: &mut [bf16]) {
        for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
            let inverse = inverse_deviation(x, epsilon);
            match flavour {
                NormFlavour::Plain => {
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        *y = narrow(rounded(wide(*x) * inverse) * wide(*w));
                    }
                }
                NormFlavour::ZeroCentred => {
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        *y = narrow(wide(*x) * inverse * (1.0 + wide(*w)));
                    }
                }
            }
        }
    }

    fn backward_rows(x: &[bf16], weight: &[bf16], epsilon: f32, flavour: NormFlavour, dy: &[bf16], dx: &mut [bf16]) {
        let width = weight.len();
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let inverse = inverse_deviation(x, epsilon);
            let mut products = [0.0_f32; LANES];
            for ((x, dy), w) in x.chunks(LANES).zip(dy.chunks(LANES)).zip(weight.chunks(LANES)) {
                for (((sum, x), dy), w) in products.iter_mut().zip(x).zip(dy).zip(w) {
                    *sum += factor(*w, flavour) * wide(*dy) * (wide(*x) * inverse);
                }
            }
            let mean = total(products) / width as f32;
            for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                let g = factor(*w, flavour) * wide(*dy);
                let gradient = (g - wide(*x) * inverse * mean) * inverse;
                *dx = narrow(wide(*dx) + gradient);
            }
        }
    }
}
