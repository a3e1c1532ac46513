//! [`crate::accumulate_outer`] by panels of the wide side, sum by sum.

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
    let transposed: Vec<Vec<bf16>> = segments.iter().map(|segment| transpose(narrow, n, &segment.rows)).collect();
    let rows: usize = segments.iter().map(|segment| segment.rows.len()).sum();
    // The segments of each sum, in their order.
    let mut of_sum: Vec<Vec<usize>> = vec![Vec::new(); sums.len()];
    for (place, segment) in segments.iter().enumerate() {
        of_sum[segment.sum].push(place);
    }
    let sums: Vec<Shared<f32>> = sums.iter_mut().map(|sum| Shared::new(sum)).collect();
    let used: Vec<(Shared<f32>, Vec<usize>)> =
        sums.into_iter().zip(of_sum).filter(|(_, places)| !places.is_empty()).collect();
    let panels = w.div_ceil(PANEL);
    pool::for_each(used.len() * panels, rows * n * w, |task| {
        let (sum, places) = &used[task / panels];
        let first = task % panels * PANEL;
        let width = PANEL.min(w - first);
        Scratch::with(|scratch| {
            for place in places {
                let (segment, left) = (&segments[*place], &transposed[*place]);
                let inner = segment.rows.len();
                let right = Right::Plain(&wide[segment.wide * w..(segment.wide + inner) * w]);
                let panel = Panel { right, inner, stride: w, first, width };
                // SAFETY: AVX512-BF16 was checked above; the task alone touches these columns of this sum.
                unsafe { add(&panel, left, n, layout, *sum, scratch) };
            }
        });
    });
}

/// `[n, rows]` of these rows of `[.., n]`.
fn transpose(values: &[bf16], n: usize, rows: &Range<usize>) -> Vec<bf16> {
    let count = rows.len();
    let mut transposed = vec![bf16::ZERO; n * count];
    for (index, row) in values[rows.start * n..rows.end * n].chunks_exact(n).enumerate() {
        for (column, value) in row.iter().enumerate() {
            transposed[column * count + index] = *value;
        }
    }
    transposed
}

/// # Safety
/// The processor must have AVX512-BF16, and nobody else may touch the panel's columns of the sum.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn add(panel: &Panel, left: &[bf16], n: usize, layout: Layout, sum: Shared<f32>, scratch: &mut Scratch) {
    let (vectors, columns) = (panel.vectors(), panel.first..panel.first + panel.width);
    scratch.clear(n * vectors);
    scratch.packed.clear();
    let Scratch { packed, sums, padded } = scratch;
    // SAFETY: the caller vouches for the processor.
    unsafe {
        panel.pack_whole(packed);
        panel.add(left, packed, sums, padded);
    }
    let mut own = [0.0; PANEL];
    match layout {
        Layout::NarrowByWide => {
            for (row, vectors) in sums.chunks_exact(vectors).enumerate() {
                let start = row * panel.stride;
                // SAFETY: no other task touches these columns.
                let sum = unsafe { sum.part(start + columns.start..start + columns.end) };
                spread(vectors, &mut own);
                for (sum, own) in sum.iter_mut().zip(&own) {
                    *sum += own;
                }
            }
        }
        Layout::WideByNarrow => {
            // SAFETY: as above.
            let sum = unsafe { sum.part(columns.start * n..columns.end * n) };
            for (row, vectors) in sums.chunks_exact(vectors).enumerate() {
                spread(vectors, &mut own);
                for (sum, own) in sum.chunks_exact_mut(n).zip(&own) {
                    sum[row] += own;
                }
            }
        }
    }
}

/// The numbers of up to four vectors, one after the other.
#[target_feature(enable = "avx512f")]
fn spread(vectors: &[__m512], into: &mut [f32; PANEL]) {
    for (vector, into) in vectors.iter().zip(into.chunks_exact_mut(16)) {
        // SAFETY: there is room for 16 numbers.
        unsafe { _mm512_storeu_ps(into.as_mut_ptr(), *vector) };
    }
}
