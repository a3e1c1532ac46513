//! [`crate::multiply`] in blocks that fit the caches.

use std::arch::x86_64::{__m512, _mm512_add_ps, _mm512_mul_ps, _mm512_set1_ps};
use std::ops::Range;

use half::bf16;

use crate::panel::{PANEL, Panel, Scratch, load, store};
use crate::pool::{self, Shared};
use crate::product::{Finish, Term};

/// Rows whose fp32 sums of one panel are held at once; they fit into the second-level cache.
const ROW_BLOCK: usize = 1024;

/// The product; the shapes have been checked.
pub(crate) fn multiply(terms: &[Term], finish: Finish, y: &mut [bf16], columns: usize) {
    assert!(crate::has_bf16_products(), "this processor has no AVX512-BF16");
    let rows = y.len() / columns;
    let panels = columns.div_ceil(PANEL);
    let blocks = row_blocks(rows, panels);
    let block = rows.div_ceil(blocks);
    let cost: usize = terms.iter().map(|term| term.rows.len() * term.inner * columns).sum();
    let target = pool::Shared::new(y);
    // A task is one panel of one block of rows.
    pool::for_each(panels * blocks, cost, |task| {
        let (first, start) = (task / blocks * PANEL, task % blocks * block);
        let job = Job { terms, finish, columns, first, rows: start..(start + block).min(rows) };
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
            scratch.clear(self.rows.len() * vectors);
            for Term { rows, left, right, inner } in self.terms {
                let (start, end) = (rows.start.max(self.rows.start), rows.end.min(self.rows.end));
                if start < end {
                    let left = &left[(start - rows.start) * inner..(end - rows.start) * inner];
                    let (inner, columns, first) = (*inner, self.columns, self.first);
                    let panel = Panel { right: *right, inner, columns, first, width };
                    // SAFETY: the caller vouches for the processor.
                    unsafe { panel.add(left, start - self.rows.start, scratch) };
                }
            }
            // SAFETY: the caller vouches for the processor and for sole use of these rows and columns.
            unsafe { self.finish(&scratch.sums, vectors, target) };
        });
    }

    /// Rounds the sums into the result.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn finish(&self, sums: &[__m512], vectors: usize, target: Shared<bf16>) {
        let scale = self.finish.scale.map(|scale| _mm512_set1_ps(scale));
        for (offset, sums) in sums.chunks_exact(vectors).enumerate() {
            let row = (self.rows.start + offset) * self.columns;
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

/// In how many blocks the rows are taken: enough that all threads have the same share.
fn row_blocks(rows: usize, panels: usize) -> usize {
    let mut blocks = rows.div_ceil(ROW_BLOCK).max(1);
    let threads = pool::threads();
    // An uneven number of tasks leaves a thread idle at the end; it weighs most when there are few.
    while panels * blocks < 8 * threads && (panels * blocks) % threads != 0 && rows / (blocks + 1) >= 128 {
        blocks += 1;
    }
    blocks
}
