//! [`crate::multiply`] in blocks that fit the caches.

use std::arch::x86_64::{__m512, _mm512_add_ps, _mm512_mul_ps, _mm512_set1_ps};
use std::ops::Range;

use half::bf16;

use crate::panel::{PANEL, Panel, Scratch, load, store};
use crate::pool::{self, Shared};
use crate::product::{Finish, Right, Term};

/// Rows whose fp32 sums of one panel are held at once; few, so that they stay in the first-level cache.
const ROW_BLOCK: usize = 48;
/// Rows for which packing a panel again is no loss.
const ROW_SHARE: usize = 512;

/// The product; the shapes have been checked.
pub(crate) fn multiply(terms: &[Term], finish: Finish, y: &mut [bf16], columns: usize) {
    assert!(crate::has_bf16_products(), "this processor has no AVX512-BF16");
    let rows = y.len() / columns;
    let panels = columns.div_ceil(PANEL);
    let shares = row_shares(rows, panels);
    let share = rows.div_ceil(shares);
    let cost: usize = terms.iter().map(|term| term.rows.len() * term.inner * columns).sum();
    let target = pool::Shared::new(y);
    // A task is one panel of one share of the rows.
    pool::for_each(panels * shares, cost, |task| {
        let (first, start) = (task / shares * PANEL, task % shares * share);
        let job = Job { terms, finish, columns, first, rows: start..(start + share).min(rows) };
        // SAFETY: AVX512-BF16 was checked above; every task writes rows and columns that no other task does.
        unsafe { job.run(target) };
    });
}

/// One panel of some rows.
struct Job<'a> {
    terms: &'a [Term<'a>],
    finish: Finish<'a>,
    rows: Range<usize>,
    columns: usize,
    /// The panel's first column.
    first: usize,
}

impl Job<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn run(&self, target: Shared<bf16>) {
        let width = PANEL.min(self.columns - self.first);
        let vectors = width.div_ceil(16);
        Scratch::with(|scratch| {
            // The right sides are packed once for all rows of the job.
            scratch.packed.clear();
            let panels: Vec<(Panel, usize)> = self
                .terms
                .iter()
                .map(|term| {
                    let (right, inner, first) = (term.right, term.inner, self.first);
                    let stride = match right {
                        Right::Transposed(_) => inner,
                        Right::Plain(_) => self.columns,
                    };
                    let (panel, start) = (Panel { right, inner, stride, first, width }, scratch.packed.len());
                    if term.rows.start < self.rows.end && self.rows.start < term.rows.end {
                        // SAFETY: the caller vouches for the processor.
                        unsafe { panel.pack_whole(&mut scratch.packed) };
                    }
                    (panel, start)
                })
                .collect();
            for start in self.rows.clone().step_by(ROW_BLOCK) {
                let block = start..(start + ROW_BLOCK).min(self.rows.end);
                scratch.clear(block.len() * vectors);
                let Scratch { packed, sums, padded } = &mut *scratch;
                for (Term { rows, left, inner, .. }, (panel, place)) in self.terms.iter().zip(&panels) {
                    let (start, end) = (rows.start.max(block.start), rows.end.min(block.end));
                    if start < end {
                        let left = &left[(start - rows.start) * inner..(end - rows.start) * inner];
                        // SAFETY: the caller vouches for the processor.
                        unsafe {
                            panel.add(left, &packed[*place..], &mut sums[(start - block.start) * vectors..], padded)
                        };
                    }
                }
                // SAFETY: the caller vouches for the processor and for sole use of these rows and columns.
                unsafe { self.finish(block, sums, vectors, target) };
            }
        });
    }

    /// Rounds the sums into the result.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn finish(&self, rows: Range<usize>, sums: &[__m512], vectors: usize, target: Shared<bf16>) {
        let scale = self.finish.scale.map(|scale| _mm512_set1_ps(scale));
        for (row, sums) in rows.zip(sums.chunks_exact(vectors)) {
            let row = row * self.columns;
            for (vector, sum) in sums.iter().enumerate() {
                let column = self.first + 16 * vector;
                let count = (self.columns - column).min(16);
                let mut sum = *sum;
                if let Some(scale) = scale {
                    sum = _mm512_mul_ps(sum, scale);
                }
                if let Some(bias) = self.finish.bias {
                    sum = _mm512_add_ps(sum, load(bias, column, count));
                }
                if let Some(residual) = self.finish.residual {
                    sum = _mm512_add_ps(sum, load(residual, row + column, count));
                }
                // SAFETY: `count` numbers of the row are left from `column` on, and no other task writes them.
                unsafe { store(sum, target.at(row + column), count) };
            }
        }
    }
}

/// In how many shares the rows are taken: as few as keep all threads busy, for each share packs its panels again.
fn row_shares(rows: usize, panels: usize) -> usize {
    let (threads, most) = (pool::threads(), (rows / ROW_SHARE).max(1));
    // With four tasks per thread the last one to end does not leave the others idle for long.
    (4 * threads).div_ceil(panels).min(most)
}
