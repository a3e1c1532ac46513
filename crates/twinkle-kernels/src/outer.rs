//! [`crate::accumulate_outer`] by panels of the wide side.

use std::arch::x86_64::{__m512, _mm512_storeu_ps};
use std::ops::Range;

use half::bf16;

use crate::panel::{PANEL, Panel, Scratch};
use crate::pool::{self, Shared};
use crate::product::{Layout, Right, Segment};

/// The sums; the shapes have been checked.
pub(crate) fn accumulate(
    segments: &[Segment],
    (narrow, n): (&[bf16], usize),
    (wide, w): (&[bf16], usize),
    layout: Layout,
    sums: &mut [&mut [f32]],
) {
    assert!(crate::has_bf16_products(), "this processor has no AVX512-BF16");
    let transposed: Vec<(usize, Vec<bf16>)> =
        segments.iter().map(|segment| transpose(narrow, n, &segment.rows)).collect();
    let rows: usize = segments.iter().map(|segment| segment.rows.len()).sum();
    let sums: Vec<Shared<f32>> = sums.iter_mut().map(|sum| Shared::new(sum)).collect();
    pool::for_each(w.div_ceil(PANEL), rows * n * w, |task| {
        let first = task * PANEL;
        let width = PANEL.min(w - first);
        Scratch::with(|scratch| {
            for (segment, (inner, left)) in segments.iter().zip(&transposed) {
                let right = Right::Plain(&wide[segment.rows.start * w..segment.rows.end * w]);
                let panel = Panel { right, inner: *inner, stride: w, first, width };
                // SAFETY: AVX512-BF16 was checked above; the task alone touches the panel's columns.
                unsafe { add(&panel, left, n, layout, sums[segment.sum], scratch) };
            }
        });
    });
}

/// `[n, rows]` of these rows of `[.., n]`, and how many rows.
fn transpose(values: &[bf16], n: usize, rows: &Range<usize>) -> (usize, Vec<bf16>) {
    let count = rows.len();
    let mut transposed = vec![bf16::ZERO; n * count];
    for (index, row) in values[rows.start * n..rows.end * n].chunks_exact(n).enumerate() {
        for (column, value) in row.iter().enumerate() {
            transposed[column * count + index] = *value;
        }
    }
    (count, transposed)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn add(panel: &Panel, left: &[bf16], n: usize, layout: Layout, sum: Shared<f32>, scratch: &mut Scratch) {
    let vectors = panel.vectors();
    scratch.clear(n * vectors);
    scratch.packed.clear();
    let Scratch { packed, sums, padded } = scratch;
    // SAFETY: the caller vouches for the processor.
    unsafe {
        panel.pack_whole(packed);
        panel.add(left, packed, sums, padded);
    }
    for (row, own) in sums.chunks_exact(vectors).enumerate() {
        for (vector, own) in own.iter().enumerate() {
            let column = 16 * vector;
            for (offset, value) in lanes(*own).iter().enumerate().take(panel.width - column) {
                let column = panel.first + column + offset;
                let place = match layout {
                    Layout::NarrowByWide => row * panel.stride + column,
                    Layout::WideByNarrow => column * n + row,
                };
                // SAFETY: inside the sum, and no other task touches this column.
                unsafe { *sum.at(place) += value };
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn lanes(vector: __m512) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    // SAFETY: there is room for 16 numbers.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), vector) };
    lanes
}
