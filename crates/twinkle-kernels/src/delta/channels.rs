//! What happens to a row before it meets the memory: the convolution, its activation, heads of unit length.

use crate::features::multiversion;
use crate::numbers::{LANES, rounded, sigmoid, total};

/// What is added to a head's squared length before the root.
const UNIT_EPSILON: f32 = 1e-6;

/// `ln(1 + eˣ)`.
pub(super) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// `Σ x y`, in an order that depends on the length alone.
#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    for (lane, (x, y)) in lanes.iter_mut().zip(xs.remainder().iter().zip(ys.remainder())) {
        *lane += x * y;
    }
    for (x, y) in xs.zip(ys) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    total(lanes)
}

multiversion! {
    /// `y += x ⊙ factors`.
    pub(super) fn add_products(x: &[f32], factors: &[f32], y: &mut [f32]) {
        for ((y, x), factor) in y.iter_mut().zip(x).zip(factors) {
            *y += x * factor;
        }
    }

    /// `y = silu(x)`, `x` and `y` rounded where the model rounds.
    pub(super) fn activate(x: &mut [f32], rounds: bool, y: &mut [f32]) {
        if rounds {
            for (y, x) in y.iter_mut().zip(x) {
                *x = rounded(*x);
                *y = rounded(*x * sigmoid(*x));
            }
        } else {
            for (y, x) in y.iter_mut().zip(x) {
                *y = *x * sigmoid(*x);
            }
        }
    }

    /// Replaces the gradient of `silu(x)` by that of `x`.
    pub(super) fn activate_backward(x: &[f32], d: &mut [f32]) {
        for (d, x) in d.iter_mut().zip(x) {
            let sigma = sigmoid(*x);
            *d *= sigma * (1.0 + *x * (1.0 - sigma));
        }
    }

    /// Rows of unit length times `scale`, and what they were multiplied by for it.
    pub(super) fn normalise(x: &[f32], width: usize, scale: f32, y: &mut [f32], inverse: &mut [f32]) {
        for ((x, y), inverse) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(inverse) {
            *inverse = 1.0 / (dot(x, x) + UNIT_EPSILON).sqrt();
            for (y, x) in y.iter_mut().zip(x) {
                *y = x * *inverse * scale;
            }
        }
    }

    /// Replaces the gradient of [`normalise`]'s rows by that of what it was given: with `u = y / scale`,
    /// `dx = r (du − u · Σ u du)`.
    pub(super) fn normalise_backward(y: &[f32], width: usize, scale: f32, inverse: &[f32], d: &mut [f32]) {
        for ((y, d), inverse) in y.chunks_exact(width).zip(d.chunks_exact_mut(width)).zip(inverse) {
            // u · Σ u du = y / scale · Σ y dy
            let along = dot(y, d) / scale;
            for (d, y) in d.iter_mut().zip(y) {
                *d = (*d * scale - *y * along) * *inverse;
            }
        }
    }
}
