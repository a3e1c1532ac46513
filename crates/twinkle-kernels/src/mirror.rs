//! The products number by number: what runs where there is no vector unit for them, and what the fast ones are tested
//! against. The sums are made in the same order, but each product is rounded on its own.

use half::bf16;

use crate::numbers::{narrow, wide};
use crate::product::{Finish, Layout, Right, Segment, Term};

/// See [`crate::multiply`].
pub(crate) fn multiply(terms: &[Term], finish: Finish, y: &mut [bf16], columns: usize) {
    for (row, y) in y.chunks_exact_mut(columns).enumerate() {
        for (column, y) in y.iter_mut().enumerate() {
            let mut sum = 0.0_f32;
            for Term { rows, left, right, inner } in terms.iter().filter(|term| term.rows.contains(&row)) {
                let left = &left[(row - rows.start) * inner..][..*inner];
                for (k, left) in left.iter().enumerate() {
                    let right = match right {
                        Right::Transposed(weight) => weight[column * inner + k],
                        Right::Plain(weight) => weight[k * columns + column],
                    };
                    sum += wide(*left) * wide(right);
                }
            }
            if let Some(scale) = finish.scale {
                sum *= scale;
            }
            if let Some(bias) = finish.bias {
                sum += wide(bias[column]);
            }
            if let Some(residual) = finish.residual {
                sum += wide(residual[row * columns + column]);
            }
            *y = narrow(sum);
        }
    }
}

/// See [`crate::accumulate_outer`].
pub(crate) fn accumulate_outer(
    segments: &[Segment],
    (left, n): (&[bf16], usize),
    (right, w): (&[bf16], usize),
    layout: Layout,
    sums: &mut [&mut [f32]],
) {
    for Segment { rows, wide: first, sum } in segments {
        for i in 0..n {
            for j in 0..w {
                let pairs = rows.clone().zip(*first..);
                let own: f32 = pairs.map(|(row, other)| wide(left[row * n + i]) * wide(right[other * w + j])).sum();
                let place = match layout {
                    Layout::NarrowByWide => i * w + j,
                    Layout::WideByNarrow => j * n + i,
                };
                sums[*sum][place] += own;
            }
        }
    }
}
