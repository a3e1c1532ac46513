//! Matrix products of bf16 rows whose bits do not depend on how many rows there are.
//!
//! Every number of the result is one chain of fp32 additions: the terms one after the other, each along its inner
//! dimension from 0 up, two bf16 products at a time (`vdpbf16ps`). Blocking and threads decide when a step of the chain is
//! made, never in which order. So a row has the same bits alone and among thousands: no row tiles are needed, and a prompt,
//! a decoding step and a training pass agree bit for bit.

use std::ops::Range;

use half::bf16;

use crate::mirror;
#[cfg(target_arch = "x86_64")]
use crate::{blocked, outer};

/// One summand of a product: some rows times a matrix.
#[derive(Clone, Debug)]
pub struct Term<'a> {
    /// Which rows of the result it adds to.
    pub rows: Range<usize>,
    /// Those rows of the left side, row-major `[rows, inner]`.
    pub left: &'a [bf16],
    /// The right side.
    pub right: Right<'a>,
    /// The inner dimension.
    pub inner: usize,
}

/// How the right side of a [`Term`] lies in memory.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// `[columns, inner]`, a weight as checkpoints store it: `y = x Wᵀ`.
    Transposed(&'a [bf16]),
    /// `[inner, columns]`: `dx = dy W`.
    Plain(&'a [bf16]),
}

impl Right<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Transposed(values) | Self::Plain(values) => values.len(),
        }
    }
}

/// What is done with the fp32 sums.
///
/// `round(scale · sums + bias + residual)`, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Finish<'a> {
    /// Added to every row before rounding, `[columns]`.
    pub bias: Option<&'a [bf16]>,
    /// Multiplied with the sums; 1 when `None`.
    pub scale: Option<f32>,
    /// Added to the sums before rounding, `[rows, columns]`.
    pub residual: Option<&'a [bf16]>,
}

/// `y = round(scale · Σ terms + bias + residual)`, `[rows, columns]`.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn multiply(terms: &[Term], finish: Finish, y: &mut [bf16], columns: usize) {
    if columns == 0 || y.is_empty() {
        return;
    }
    let rows = y.len() / columns;
    assert_eq!(y.len(), rows * columns, "the result is not {columns} columns wide");
    for term in terms {
        assert!(term.rows.start <= term.rows.end && term.rows.end <= rows, "rows {:?} of {rows}", term.rows);
        assert_eq!(term.left.len(), term.rows.len() * term.inner, "the left side of a term");
        assert_eq!(term.right.len(), term.inner * columns, "the right side of a term");
    }
    assert!(finish.bias.is_none_or(|bias| bias.len() == columns), "the bias");
    assert!(finish.residual.is_none_or(|residual| residual.len() == y.len()), "the residual");
    #[cfg(target_arch = "x86_64")]
    if crate::has_bf16_products() {
        blocked::multiply(terms, finish, y, columns);
        return;
    }
    mirror::multiply(terms, finish, y, columns);
}

/// How a sum of outer products lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[narrow, wide]`.
    NarrowByWide,
    /// `[wide, narrow]`.
    WideByNarrow,
}

/// The rows of one sequence and the sum they add to.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Which rows of the narrow side.
    pub rows: Range<usize>,
    /// The first of as many rows of the wide side.
    pub wide: usize,
    /// The place of its sum in `sums`.
    pub sum: usize,
}

/// Adds to its sum, for each segment in order, `Σ_row narrowᵀ · wide` over the segment's rows: gradients of low-rank factors.
///
/// `narrow` is `[.., n]`, `wide` is `[.., w]`, a sum has `n · w` numbers. A segment's own sum is complete, one chain of
/// fp32 additions over its rows, before it is added, so that its bits do not depend on what was there.
///
/// # Panics
/// If a slice is not as long as its shape says.
pub fn accumulate_outer(
    segments: &[Segment],
    narrow: (&[bf16], usize),
    wide: (&[bf16], usize),
    layout: Layout,
    sums: &mut [&mut [f32]],
) {
    let ((left, n), (right, w)) = (narrow, wide);
    assert!(sums.iter().all(|sum| sum.len() == n * w), "a sum is not {n} by {w}");
    for Segment { rows, wide, sum } in segments {
        assert!(rows.start <= rows.end && *sum < sums.len(), "a segment of rows {rows:?}");
        let fits = rows.end * n <= left.len() && (wide + rows.len()) * w <= right.len();
        assert!(fits, "a segment of rows {rows:?} and {wide}");
    }
    if n == 0 || w == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if crate::has_bf16_products() {
        outer::accumulate(segments, narrow, wide, layout, sums);
        return;
    }
    mirror::accumulate_outer(segments, narrow, wide, layout, sums);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::numbers::wide;
    use crate::random::random;

    /// The sums agree but for the order of roundings, the results but for one rounding to bf16 more.
    fn assert_close(found: &[bf16], expected: &[bf16], inner: usize) {
        for (found, expected) in found.iter().zip(expected) {
            let allowed = 0.01 * wide(*expected).abs() + 1e-5 * (1 + inner) as f32;
            assert!((wide(*found) - wide(*expected)).abs() <= allowed, "{found}, not {expected}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_product_is_that_of_the_mirror_and_a_row_has_the_same_bits_alone(
            rows in 1_usize..80, columns in 1_usize..150, inner in 1_usize..700, rank in 1_usize..20,
            is_transposed: bool, has_bias: bool, has_residual: bool, seed: u64,
        ) {
            let (x, weight) = (random(rows * inner, seed), random(columns * inner, seed ^ 1));
            let (low, expand) = (random(rows * rank, seed ^ 2), random(columns * rank, seed ^ 3));
            let (bias, residual) = (random(columns, seed ^ 4), random(rows * columns, seed ^ 5));
            let right = if is_transposed { Right::Transposed(&weight) } else { Right::Plain(&weight) };
            let run = |from: Range<usize>, adapted: Range<usize>, multiply: fn(&[Term], Finish, &mut [bf16], usize)| {
                let count = from.len();
                let own = adapted.start.max(from.start)..adapted.end.min(from.end).max(adapted.start.max(from.start));
                let terms = [
                    Term { rows: 0..count, left: &x[from.start * inner..from.end * inner], right, inner },
                    Term {
                        rows: own.start - from.start..own.end - from.start,
                        left: &low[own.start * rank..own.end * rank],
                        right: Right::Plain(&expand),
                        inner: rank,
                    },
                ];
                let finish = Finish {
                    bias: has_bias.then_some(&bias[..]),
                    scale: has_bias.then_some(0.5),
                    residual: has_residual.then(|| &residual[from.start * columns..from.end * columns]),
                };
                let mut y = vec![bf16::ZERO; count * columns];
                multiply(&terms, finish, &mut y, columns);
                y
            };
            let adapted = rows / 3..rows;
            let whole = run(0..rows, adapted.clone(), multiply);
            assert_close(&whole, &run(0..rows, adapted.clone(), mirror::multiply), inner + rank);
            for from in [0..1, rows - 1..rows, rows / 2..rows] {
                let place = from.start * columns..from.end * columns;
                if adapted.start <= from.start {
                    prop_assert!(run(from, adapted.clone(), multiply) == whole[place]);
                }
            }
        }

        #[test]
        fn a_sum_of_outer_products_is_that_of_the_mirror_and_each_segment_adds_its_own(
            lengths in prop::collection::vec(0_usize..90, 1..5), n in 1_usize..20, w in 1_usize..150, by_narrow: bool, seed: u64,
        ) {
            // The wide rows lie three rows further on, and segments take turns with two sums.
            let (rows, shift) = (lengths.iter().sum::<usize>(), 3);
            let (narrow, wide) = (random(rows * n, seed), random((rows + shift) * w, seed ^ 1));
            let layout = if by_narrow { Layout::WideByNarrow } else { Layout::NarrowByWide };
            let mut end = 0;
            let segments: Vec<Segment> = lengths.iter().enumerate().map(|(place, length)| {
                end += length;
                Segment { rows: end - length..end, wide: end - length + shift, sum: place % 2 }
            }).collect();
            let [mut sums, mut expected, mut one_by_one] = [(); 3].map(|()| vec![0.25; 2 * n * w]);
            let parts = |sums: &mut Vec<f32>, add: &dyn Fn(&mut [&mut [f32]])| {
                let (first, second) = sums.split_at_mut(n * w);
                add(&mut [first, second]);
            };
            parts(&mut sums, &|sums| accumulate_outer(&segments, (&narrow, n), (&wide, w), layout, sums));
            parts(&mut expected, &|sums| mirror::accumulate_outer(&segments, (&narrow, n), (&wide, w), layout, sums));
            for (sum, expected) in sums.iter().zip(&expected) {
                prop_assert!((sum - expected).abs() <= 1e-5 * (1 + rows) as f32, "{sum}, not {expected}");
            }
            for Segment { rows, wide: first, sum } in &segments {
                let narrow = &narrow[rows.start * n..rows.end * n];
                let wide = &wide[first * w..(first + rows.len()) * w];
                let own = [Segment { rows: 0..rows.len(), wide: 0, sum: *sum }];
                parts(&mut one_by_one, &|sums| accumulate_outer(&own, (narrow, n), (wide, w), layout, sums));
            }
            prop_assert!(sums == one_by_one);
        }
    }

    #[test]
    fn long_inner_dimensions_keep_the_order_of_the_sums() {
        // An inner dimension that is taken in parts.
        let (rows, columns, inner) = (70, 200, 17_000);
        let (x, weight) = (random(rows * inner, 3), random(columns * inner, 4));
        let run = |rows: Range<usize>, right: Right, multiply: fn(&[Term], Finish, &mut [bf16], usize)| {
            let mut y = vec![bf16::ZERO; rows.len() * columns];
            let left = &x[rows.start * inner..rows.end * inner];
            multiply(&[Term { rows: 0..rows.len(), left, right, inner }], Finish::default(), &mut y, columns);
            y
        };
        for right in [Right::Transposed(&weight), Right::Plain(&weight)] {
            let whole = run(0..rows, right, multiply);
            assert_close(&whole, &run(0..rows, right, mirror::multiply), inner);
            assert!(run(33..34, right, multiply) == whole[33 * columns..34 * columns]);
        }
    }

    #[test]
    fn many_rows_have_the_bits_of_few() {
        let (rows, columns, inner) = (1500, 200, 330);
        let (x, weight) = (random(rows * inner, 1), random(columns * inner, 2));
        let run = |rows: Range<usize>| {
            let mut y = vec![bf16::ZERO; rows.len() * columns];
            let left = &x[rows.start * inner..rows.end * inner];
            let terms = [Term { rows: 0..rows.len(), left, right: Right::Transposed(&weight), inner }];
            multiply(&terms, Finish::default(), &mut y, columns);
            y
        };
        let whole = run(0..rows);
        for rows in [0..1, 700..707, 1023..1026, 1499..1500] {
            assert!(run(rows.clone()) == whole[rows.start * columns..rows.end * columns], "rows {rows:?}");
        }
    }
}
