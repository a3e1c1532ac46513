//! Rotary position embedding (Su et al. 2021) of bf16 heads, by half-split pairs.

use half::bf16;

use crate::features::multiversion;
use crate::numbers::{narrow, rounded, wide};
use crate::pool::{self, Shared};

/// Rows that one task rotates.
const ROWS: usize = 16;
/// What a number costs, in multiply-adds.
const COST: usize = 8;

/// Rotates the first `2 · pairs` numbers of every head in place: `(a, b) → (a c − b s, b c + a s)` of the pairs
/// `(i, i + pairs)`; each product is rounded, then their sum. `inverse` rotates back.
///
/// `heads` is `[rows, n, dim]`, `cos` and `sin` are `[rows, pairs]`.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn rotate(heads: &mut [bf16], (n, dim): (usize, usize), cos: &[bf16], sin: &[bf16], pairs: usize, inverse: bool) {
    let width = n * dim;
    assert!(width > 0 && pairs > 0 && 2 * pairs <= dim && heads.len().is_multiple_of(width), "{n} heads of {dim}");
    let rows = heads.len() / width;
    assert!(cos.len() == rows * pairs && sin.len() == rows * pairs, "{rows} rows of {pairs} angles");
    let shared = Shared::new(heads);
    pool::for_each(rows.div_ceil(ROWS), rows * width * COST, |task| {
        let (start, end) = (task * ROWS, ((task + 1) * ROWS).min(rows));
        // SAFETY: every task has rows of its own.
        let heads = unsafe { shared.part(start * width..end * width) };
        let angles = start * pairs..end * pairs;
        rotate_rows(heads, width, dim, &cos[angles.clone()], &sin[angles], pairs, inverse);
    });
}

multiversion! {
    fn rotate_rows(
        heads: &mut [bf16],
        width: usize,
        dim: usize,
        cos: &[bf16],
        sin: &[bf16],
        pairs: usize,
        inverse: bool,
    ) {
        let sign = if inverse { -1.0_f32 } else { 1.0 };
        let angles = cos.chunks_exact(pairs).zip(sin.chunks_exact(pairs));
        for (row, (cos, sin)) in heads.chunks_exact_mut(width).zip(angles) {
            for head in row.chunks_exact_mut(dim) {
                let (first, rest) = head.split_at_mut(pairs);
                for (((a, b), c), s) in first.iter_mut().zip(&mut rest[..pairs]).zip(cos).zip(sin) {
                    let (x, y, c, s) = (wide(*a), wide(*b), wide(*c), sign * wide(*s));
                    *a = narrow(rounded(x * c) - rounded(y * s));
                    *b = narrow(rounded(y * c) + rounded(x * s));
                }
            }
        }
    }
}
