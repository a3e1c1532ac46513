//! [`crate::multiply`] in blocks that fit the caches.

use std::arch::x86_64::{__m512, _mm512_add_ps, _mm512_mul_ps, _mm512_set1_ps};
use std::ops::Range;

use half::bf16;

use crate::panel::{PANEL, Panel, Scratch, add_rows, load, store};
use crate::pool::{self, Shared};
use crate::product::{Finish, Right, Term};

/// Rows whose fp32 sums of one panel are held at once; few, so that they stay in the first-level cache.
const ROW_BLOCK: usize = 48;
/// Rows for which packing a panel again is no loss.
const ROW_SHARE: usize = 512;

/// Inner dimensions from this on are taken in parts: neither a packed panel nor the left rows would fit into a cache whole.
const LONG: usize = 16_384;
/// How long a part is: the rows of a share, in it, stay in the second-level cache for all panels of a task.
const PART: usize = 512;

/// The product; the shapes have been checked.
pub(crate) fn multiply(terms: &[Term], finish: Finish, y: &mut [bf16], columns: usize) {
    assert!(crate::has_bf16_products(), "this processor has no AVX512-BF16");
    let rows = y.len() / columns;
    let is_long = terms.iter().any(|term| term.inner >= LONG) && terms.iter().all(|term| term.inner.is_multiple_of(2));
    let panels = columns.div_ceil(PANEL);
    // How many columns a task takes.
    let width = if is_long { panels.div_ceil(2 * pool::threads()) * PANEL } else { PANEL };
    let all: Vec<&Term> = terms.iter().collect();
    let strips = match strips(terms, rows) {
        apart if apart.len() > 1 && !is_long => apart,
        _ => {
            let share = if is_long { rows.min(ROW_SHARE) } else { rows.div_ceil(row_shares(rows, panels)) };
            let share_at = |start: usize| Strip { rows: start..(start + share).min(rows), terms: all.clone() };
            (0..rows).step_by(share).map(share_at).collect()
        }
    };
    let cost: usize = terms.iter().map(|term| term.rows.len() * term.inner * columns).sum();
    let target = pool::Shared::new(y);
    let parts = columns.div_ceil(width);
    pool::for_each(parts * strips.len(), cost, |task| {
        let (strip, first) = (&strips[task / parts], task % parts * width);
        let width = width.min(columns - first);
        let job = Job { terms: &strip.terms, finish, columns, first, width, rows: strip.rows.clone() };
        // SAFETY: AVX512-BF16 was checked above; every task writes rows and columns that no other task does.
        unsafe { if is_long { job.run_long(target) } else { job.run(target) } };
    });
}

/// Rows that a task takes, and the terms that may add to them.
struct Strip<'a> {
    rows: Range<usize>,
    terms: Vec<&'a Term<'a>>,
}

/// The rows cut wherever no term reaches across, each strip with its own terms. Of a product with all rows that is one strip;
/// of the products of many experts one for each, so that a task packs one expert's panel and uses it at once.
fn strips<'a>(terms: &'a [Term<'a>], rows: usize) -> Vec<Strip<'a>> {
    let mut ranges: Vec<&Range<usize>> = terms.iter().map(|term| &term.rows).filter(|rows| !rows.is_empty()).collect();
    ranges.sort_by_key(|range| range.start);
    let mut strips: Vec<Strip> = Vec::new();
    for range in ranges {
        match strips.last_mut() {
            Some(last) if range.start < last.rows.end => last.rows.end = last.rows.end.max(range.end),
            last => {
                // Rows before the first term, or between two, are finished with what comes before them.
                if let Some(last) = last {
                    last.rows.end = range.start;
                }
                let start = if strips.is_empty() { 0 } else { range.start };
                strips.push(Strip { rows: start..range.end, terms: Vec::new() });
            }
        }
    }
    if let Some(last) = strips.last_mut() {
        last.rows.end = rows;
    }
    for term in terms.iter().filter(|term| !term.rows.is_empty()) {
        let place = strips.partition_point(|strip| strip.rows.end <= term.rows.start);
        if let Some(strip) = strips.get_mut(place) {
            strip.terms.push(term);
        }
    }
    strips
}

/// Some columns of some rows.
struct Job<'a> {
    terms: &'a [&'a Term<'a>],
    finish: Finish<'a>,
    rows: Range<usize>,
    columns: usize,
    /// The first column and how many there are.
    first: usize,
    width: usize,
}

impl Job<'_> {
    /// One panel, packed whole; few rows at a time, so that their sums stay in the first-level cache.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn run(&self, target: Shared<bf16>) {
        let width = self.width;
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
                            panel.add(left, &packed[*place..], &mut sums[(start - block.start) * vectors..], padded);
                        }
                    }
                }
                // SAFETY: the caller vouches for the processor and for sole use of these rows and columns.
                unsafe { self.finish((block, self.first), sums, vectors, target) };
            }
        });
    }

    /// Several panels, a part of the inner dimension after the other, with the sums of all of them kept meanwhile.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn run_long(&self, target: Shared<bf16>) {
        let panels = || (self.first..self.first + self.width).step_by(PANEL);
        let vectors_of = |first: usize| PANEL.min(self.first + self.width - first).div_ceil(16);
        // All panels but the last have four vectors of sums per row.
        let place_of = |first: usize| (first - self.first) / PANEL * self.rows.len() * 4;
        Scratch::with(|scratch| {
            scratch.clear(panels().count() * self.rows.len() * 4);
            for Term { rows, left, right, inner } in self.terms {
                let (start, end) = (rows.start.max(self.rows.start), rows.end.min(self.rows.end));
                if start >= end {
                    continue;
                }
                for from in (0..*inner).step_by(PART) {
                    let (right, stride) = match right {
                        Right::Transposed(weight) => (Right::Transposed(&weight[from..]), *inner),
                        Right::Plain(weight) => (Right::Plain(&weight[from * self.columns..]), self.columns),
                    };
                    let left = (&left[(start - rows.start) * inner + from..], *inner);
                    for first in panels() {
                        let (inner, width) = (PART.min(inner - from), PANEL.min(self.first + self.width - first));
                        let panel = Panel { right, inner, stride, first, width };
                        let sums = place_of(first) + (start - self.rows.start) * vectors_of(first);
                        let Scratch { packed, sums: all, .. } = &mut *scratch;
                        packed.clear();
                        // SAFETY: the caller vouches for the processor.
                        unsafe {
                            panel.pack_whole(packed);
                            add_rows(end - start, left, panel.pairs(), packed, panel.vectors(), &mut all[sums..]);
                        }
                    }
                }
            }
            for first in panels() {
                let (place, vectors) = (place_of(first), vectors_of(first));
                let sums = &scratch.sums[place..place + self.rows.len() * vectors];
                // SAFETY: the caller vouches for the processor and for sole use of these rows and columns.
                unsafe { self.finish((self.rows.clone(), first), sums, vectors, target) };
            }
        });
    }

    /// Rounds the sums of one panel, whose first column is `first`, into the result.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn finish(
        &self,
        (rows, first): (Range<usize>, usize),
        sums: &[__m512],
        vectors: usize,
        target: Shared<bf16>,
    ) {
        let scale = self.finish.scale.map(|scale| _mm512_set1_ps(scale));
        for (row, sums) in rows.zip(sums.chunks_exact(vectors)) {
            let row = row * self.columns;
            for (vector, sum) in sums.iter().enumerate() {
                let column = first + 16 * vector;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn term(rows: Range<usize>) -> Term<'static> {
        Term { rows, left: &[], right: Right::Plain(&[]), inner: 1 }
    }

    #[test]
    fn rows_are_cut_where_no_term_reaches_across_and_all_of_them_are_taken() {
        let cut = |terms: &[Term], rows: usize| -> Vec<(Range<usize>, Vec<Range<usize>>)> {
            let own = |strip: Strip| (strip.rows, strip.terms.iter().map(|term| term.rows.clone()).collect());
            strips(terms, rows).into_iter().map(own).collect()
        };
        let whole = [term(0..9), term(2..4), term(4..9)];
        assert_eq!(cut(&whole, 9), [(0..9, vec![0..9, 2..4, 4..9])]);
        // Two experts and an adapter on each, and rows of nobody.
        let experts = [term(1..4), term(6..8), term(2..4), term(6..7), term(9..9)];
        assert_eq!(cut(&experts, 10), [(0..6, vec![1..4, 2..4]), (6..10, vec![6..8, 6..7])]);
        assert!(cut(&[], 3).is_empty());
    }
}
