//! [`crate::attention()`] and its gradient by blocks of queries, with the panels of the matrix products.

use std::arch::x86_64::{__m512, __m512i, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps};
use std::cell::RefCell;

use half::bf16;

use crate::attention::{Attended, HeadShape, Sequence};
use crate::features::multiversion;
use crate::numbers::{LANES, exp, narrow, total, wide};
use crate::panel::{PANEL, Panel, add_rows, store};
use crate::pool::{self, Shared};
use crate::product::Right;

/// Queries that are taken together; even, so that their pairs are whole.
const QUERIES: usize = 64;

/// What a thread keeps between blocks.
#[derive(Default)]
struct Scratch {
    /// Keys or values turned, panel by panel of 64 keys: `dim / 2` pairs of four vectors each.
    turned_keys: Vec<__m512i>,
    turned_values: Vec<__m512i>,
    /// Keys or values as they are, panel by panel of 64 numbers of a head: a pair of keys of up to four vectors each.
    keys: Vec<__m512i>,
    /// Packed rows of one block.
    block: Vec<__m512i>,
    /// fp32 scores, `[panel][row][PANEL]`, and their gradients.
    scores: Vec<__m512>,
    d_scores: Vec<__m512>,
    /// Probabilities and scores' gradients rounded, `[row][keys]` and turned, `[key][QUERIES]`.
    rounded: Vec<bf16>,
    turned: [Vec<bf16>; 2],
    /// Sums of one output, `[row][vector]`.
    sums: Vec<__m512>,
    /// The gradients of keys and values, per panel of a head `[key][vector]`.
    d_keys: Vec<Vec<__m512>>,
    d_values: Vec<Vec<__m512>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Attention; the shapes have been checked.
pub(crate) fn forward(sequences: &[Sequence], shape: HeadShape, out: &mut [bf16], log_sum_exp: &mut [f32]) {
    assert!(crate::has_bf16_products(), "this processor has no AVX512-BF16");
    let mut tasks = Vec::new();
    let (mut before, mut cost) = (0, 0);
    for sequence in sequences {
        let (rows, keys) = (sequence.q.len() / shape.query_width(), sequence.k.len() / shape.kv_width());
        for head in 0..shape.kv {
            tasks.extend((0..rows).step_by(QUERIES).map(|first| (sequence, before, first, head)));
        }
        before += rows;
        cost += rows * keys * shape.query_width();
    }
    let (out, log_sum_exp) = (Shared::new(out), Shared::new(log_sum_exp));
    pool::for_each(tasks.len(), cost, |task| {
        let (sequence, before, first, head) = tasks[task];
        let block = Block::new(sequence, shape, head, first);
        // SAFETY: AVX512-BF16 was checked above; a task has rows and heads of its own.
        SCRATCH.with_borrow_mut(|scratch| unsafe { block.forward(scratch, before, out, log_sum_exp) });
    });
}

/// The gradients; the shapes have been checked.
pub(crate) fn backward(sequences: &[Attended], shape: HeadShape, dq: &mut [bf16], dk: &mut [bf16], dv: &mut [bf16]) {
    assert!(crate::has_bf16_products(), "this processor has no AVX512-BF16");
    let mut tasks = Vec::new();
    let (mut before, mut cost) = (0, 0);
    for attended in sequences {
        let rows = attended.sequence.q.len() / shape.query_width();
        tasks.extend((0..shape.kv).map(|head| (attended, before, head)));
        before += rows;
        cost += 2 * rows * rows * shape.query_width();
    }
    let into = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    pool::for_each(tasks.len(), cost, |task| {
        let (attended, before, head) = tasks[task];
        // SAFETY: AVX512-BF16 was checked above; a task has rows and heads of its own.
        SCRATCH.with_borrow_mut(|scratch| unsafe { backward_head(attended, shape, head, scratch, before, into) });
    });
}

/// Some queries of one key head's group, and the keys they may see.
struct Block<'a> {
    sequence: &'a Sequence<'a>,
    shape: HeadShape,
    /// The key head.
    head: usize,
    /// The first query's row and how many there are.
    first: usize,
    rows: usize,
    /// Keys that the first query sees.
    seen: usize,
    /// Keys that the last query sees.
    keys: usize,
}

impl<'a> Block<'a> {
    fn new(sequence: &'a Sequence, shape: HeadShape, head: usize, first: usize) -> Self {
        let all = sequence.q.len() / shape.query_width();
        let rows = QUERIES.min(all - first);
        let seen = sequence.k.len() / shape.kv_width() - all + first + 1;
        Self { sequence, shape, head, first, rows, seen, keys: seen + rows - 1 }
    }

    /// The scores of one query head against all keys, `[panel][row][PANEL]`, not yet scaled.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn scores(&self, left: &[bf16], query_head: usize, turned: &[__m512i], scores: &mut Vec<__m512>) {
        let (width, dim) = (self.shape.query_width(), self.shape.dim);
        let left = (&left[self.first * width + query_head * dim..], width);
        let panels = self.keys.div_ceil(PANEL);
        scores.clear();
        scores.resize(panels * self.rows * PANEL / 16, _mm512_setzero_ps());
        for (turned, sums) in turned.chunks(dim / 2 * 4).zip(scores.chunks_exact_mut(self.rows * PANEL / 16)) {
            // SAFETY: the caller vouches for the processor.
            unsafe { add_rows(self.rows, left, dim / 2, turned, 4, sums) };
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn forward(&self, scratch: &mut Scratch, before: usize, out: Shared<bf16>, log_sum_exp: Shared<f32>) {
        let HeadShape { group, dim, .. } = self.shape;
        let (heads, width) = (self.shape.kv * group, self.shape.query_width());
        let kv_width = self.shape.kv_width();
        let Scratch { turned_keys, keys: values, scores, rounded, sums, .. } = scratch;
        let scale = 1.0 / (dim as f32).sqrt();
        let stride = self.keys.next_multiple_of(2);
        // SAFETY: the caller vouches for the processor.
        unsafe {
            pack_turned(self.sequence.k, kv_width, self.head * dim, dim, self.keys, turned_keys);
            pack_plain(self.sequence.v, kv_width, self.head * dim, dim, self.keys, values);
        }
        let mut totals = [0.0; QUERIES];
        for query_head in self.head * group..(self.head + 1) * group {
            // SAFETY: the caller vouches for the processor.
            unsafe { self.scores(self.sequence.q, query_head, turned_keys, scores) };
            rounded.clear();
            rounded.resize(self.rows * stride, bf16::ZERO);
            for row in 0..self.rows {
                let mut normaliser = (0.0, 0.0);
                let probabilities = &mut rounded[row * stride..][..self.seen + row];
                softmax(floats(scores), self.rows, row, scale, probabilities, &mut normaliser);
                totals[row] = normaliser.1;
                // SAFETY: this task's rows and heads.
                unsafe {
                    *log_sum_exp.at((before + self.first + row) * heads + query_head) =
                        normaliser.0 + normaliser.1.ln();
                }
            }
            let mut packed = &values[..];
            for first in (0..dim).step_by(PANEL) {
                let vectors = vectors_of(dim, first);
                let (own, rest) = packed.split_at(stride / 2 * vectors);
                packed = rest;
                sums.clear();
                sums.resize(self.rows * vectors, _mm512_setzero_ps());
                // SAFETY: the caller vouches for the processor and for these rows and heads.
                unsafe {
                    add_rows(self.rows, (rounded, stride), stride / 2, own, vectors, sums);
                    for (row, sums) in sums.chunks_exact(vectors).enumerate() {
                        let place = (before + self.first + row) * width + query_head * dim + first;
                        let inverse = _mm512_set1_ps(1.0 / totals[row]);
                        for (vector, sum) in sums.iter().enumerate() {
                            let count = (dim - first - 16 * vector).min(16);
                            store(_mm512_mul_ps(*sum, inverse), out.at(place + 16 * vector), count);
                        }
                    }
                }
            }
        }
    }
}

/// The gradients of one key head and its group of query heads, over one whole sequence.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn backward_head(
    attended: &Attended,
    shape: HeadShape,
    head: usize,
    scratch: &mut Scratch,
    before: usize,
    (dq, dk, dv): (Shared<bf16>, Shared<bf16>, Shared<bf16>),
) {
    let Attended { sequence, out, log_sum_exp, d_out } = attended;
    let HeadShape { group, dim, kv } = shape;
    let (width, kv_width, heads) = (shape.query_width(), shape.kv_width(), kv * group);
    let rows = sequence.q.len() / width;
    let scale = 1.0 / (dim as f32).sqrt();
    let Scratch {
        turned_keys,
        turned_values,
        keys,
        block: packed,
        scores,
        d_scores,
        rounded,
        turned,
        sums,
        d_keys,
        d_values,
    } = scratch;
    // SAFETY: the caller vouches for the processor.
    unsafe {
        pack_turned(sequence.k, kv_width, head * dim, dim, rows, turned_keys);
        pack_turned(sequence.v, kv_width, head * dim, dim, rows, turned_values);
        pack_plain(sequence.k, kv_width, head * dim, dim, rows, keys);
    }
    let all_pairs = rows.div_ceil(2);
    for gradients in [&mut *d_keys, &mut *d_values] {
        gradients.clear();
        gradients.extend((0..dim).step_by(PANEL).map(|first| vec![_mm512_setzero_ps(); rows * vectors_of(dim, first)]));
    }
    for query_head in head * group..(head + 1) * group {
        for first in (0..rows).step_by(QUERIES) {
            let block = Block::new(sequence, shape, head, first);
            let stride = block.keys.next_multiple_of(2);
            // SAFETY: the caller vouches for the processor.
            unsafe {
                block.scores(sequence.q, query_head, turned_keys, scores);
                block.scores(d_out, query_head, turned_values, d_scores);
            }
            // [row][keys] of dS, [key][QUERIES] of P and dS.
            rounded.clear();
            rounded.resize(block.rows * stride, bf16::ZERO);
            for turned in &mut *turned {
                turned.clear();
                turned.resize(block.keys * QUERIES, bf16::ZERO);
            }
            let [turned_p, turned_ds] = turned;
            for row in 0..block.rows {
                let place = (first + row) * width + query_head * dim..(first + row) * width + (query_head + 1) * dim;
                let mut delta = 0.0;
                dot(&out[place.clone()], &d_out[place], &mut delta);
                let parameters = (scale, log_sum_exp[(first + row) * heads + query_head], delta);
                let (p, ds) = (floats_mut(scores), floats(d_scores));
                let seen = block.seen + row;
                d_softmax(p, ds, block.rows, row, parameters, &mut rounded[row * stride..][..seen]);
                for (key, ds) in rounded[row * stride..][..seen].iter().enumerate() {
                    turned_ds[key * QUERIES + row] = *ds;
                    turned_p[key * QUERIES + row] = narrow(p[(key / PANEL * block.rows + row) * PANEL + key % PANEL]);
                }
            }
            let mut packed_keys = &keys[..];
            for (panel, column) in (0..dim).step_by(PANEL).enumerate() {
                let vectors = vectors_of(dim, column);
                let (own, rest) = packed_keys.split_at(all_pairs * vectors);
                packed_keys = rest;
                sums.clear();
                sums.resize(block.rows * vectors, _mm512_setzero_ps());
                // SAFETY: the caller vouches for the processor and for these rows and heads.
                unsafe {
                    add_rows(block.rows, (rounded, stride), stride / 2, own, vectors, sums);
                    for (row, sums) in sums.chunks_exact(vectors).enumerate() {
                        let place = (before + first + row) * width + query_head * dim + column;
                        write(sums, dim - column, dq, place);
                    }
                    for (from, turned, into) in
                        [(sequence.q, &*turned_ds, &mut d_keys[panel]), (d_out, &*turned_p, &mut d_values[panel])]
                    {
                        let inner = block.rows;
                        let right = Right::Plain(&from[first * width..]);
                        let first = query_head * dim + column;
                        packed.clear();
                        Panel { right, inner, stride: width, first, width: PANEL.min(dim - column) }.pack_whole(packed);
                        add_rows(block.keys, (turned, QUERIES), inner.div_ceil(2), packed, vectors, into);
                    }
                }
            }
        }
    }
    for (panel, column) in (0..dim).step_by(PANEL).enumerate() {
        let vectors = vectors_of(dim, column);
        for (gradients, into) in [(&d_keys[panel], dk), (&d_values[panel], dv)] {
            for (row, sums) in gradients.chunks_exact(vectors).enumerate() {
                // SAFETY: the caller vouches for the processor and for these rows and heads.
                unsafe { write(sums, dim - column, into, (before + row) * kv_width + head * dim + column) };
            }
        }
    }
}

/// Rounds the sums of one row to `place`; `left` numbers of the head are left there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn write(sums: &[__m512], left: usize, into: Shared<bf16>, place: usize) {
    for (vector, sum) in sums.iter().enumerate() {
        // SAFETY: by the caller's promise the numbers lie in the head and no other task writes them.
        unsafe { store(*sum, into.at(place + 16 * vector), (left - 16 * vector).min(16)) };
    }
}

/// Vectors of 16 in the panel of a head that begins at `first`.
fn vectors_of(dim: usize, first: usize) -> usize {
    PANEL.min(dim - first).div_ceil(16)
}

/// Packs `count` rows of keys for a product over a head's numbers: per panel of 64 keys.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pack_turned(from: &[bf16], stride: usize, place: usize, dim: usize, count: usize, packed: &mut Vec<__m512i>) {
    packed.clear();
    for first in (0..count).step_by(PANEL) {
        let start = packed.len();
        let width = PANEL.min(count - first);
        let panel = Panel { right: Right::Transposed(&from[place..]), inner: dim, stride, first, width };
        // SAFETY: the caller vouches for the processor.
        unsafe { panel.pack_whole(packed) };
        if panel.vectors() < 4 {
            // The last panel too has four vectors per pair, so that all scores lie alike.
            let few: Vec<__m512i> = packed.drain(start..).collect();
            for pair in few.chunks_exact(panel.vectors()) {
                packed.extend_from_slice(pair);
                packed.extend(std::iter::repeat_n(std::arch::x86_64::_mm512_setzero_si512(), 4 - panel.vectors()));
            }
        }
    }
}

/// Packs `count` rows of keys or values for a product over the keys: per panel of 64 numbers of the head.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pack_plain(from: &[bf16], stride: usize, place: usize, dim: usize, count: usize, packed: &mut Vec<__m512i>) {
    packed.clear();
    for first in (0..dim).step_by(PANEL) {
        let width = PANEL.min(dim - first);
        let panel = Panel { right: Right::Plain(&from[place..]), inner: count, stride, first, width };
        // SAFETY: the caller vouches for the processor.
        unsafe { panel.pack_whole(packed) };
    }
}

fn floats(vectors: &[__m512]) -> &[f32] {
    // SAFETY: a vector is 16 fp32 numbers.
    unsafe { std::slice::from_raw_parts(vectors.as_ptr().cast(), 16 * vectors.len()) }
}

fn floats_mut(vectors: &mut [__m512]) -> &mut [f32] {
    // SAFETY: a vector is 16 fp32 numbers.
    unsafe { std::slice::from_raw_parts_mut(vectors.as_mut_ptr().cast(), 16 * vectors.len()) }
}

multiversion! {
    /// One row's `exp(scale · score − largest)`, rounded, for the keys that `probabilities` has room for; and the largest
    /// scaled score with the sum of the exponentials.
    fn softmax(
        scores: &[f32], rows: usize, row: usize, scale: f32, probabilities: &mut [bf16], normaliser: &mut (f32, f32),
    ) {
        let panel = |index: usize| &scores[(index * rows + row) * PANEL..][..PANEL];
        let mut largest = [f32::NEG_INFINITY; LANES];
        for (index, part) in probabilities.chunks(PANEL).enumerate() {
            for chunk in panel(index)[..part.len()].chunks(LANES) {
                for (largest, x) in largest.iter_mut().zip(chunk) {
                    *largest = if *x > *largest { *x } else { *largest };
                }
            }
        }
        let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max) * scale;
        let mut sums = [0.0_f32; LANES];
        for (index, part) in probabilities.chunks_mut(PANEL).enumerate() {
            for (part, scores) in part.chunks_mut(LANES).zip(panel(index).chunks(LANES)) {
                for ((sum, p), x) in sums.iter_mut().zip(part).zip(scores) {
                    let value = exp(*x * scale - largest);
                    *sum += value;
                    *p = narrow(value);
                }
            }
        }
        *normaliser = (largest, total(sums));
    }

    /// One row's probabilities, in place of its scores, and the gradients of its scores from those of its probabilities.
    fn d_softmax(
        scores: &mut [f32], d_probabilities: &[f32], rows: usize, row: usize, parameters: (f32, f32, f32), ds: &mut [bf16],
    ) {
        let (scale, log_sum_exp, delta) = parameters;
        for (index, part) in ds.chunks_mut(PANEL).enumerate() {
            let place = (index * rows + row) * PANEL;
            let (scores, d_probabilities) = (&mut scores[place..][..PANEL], &d_probabilities[place..][..PANEL]);
            for ((ds, x), dp) in part.iter_mut().zip(scores).zip(d_probabilities) {
                let p = exp(*x * scale - log_sum_exp);
                *x = p;
                *ds = narrow(p * (*dp - delta) * scale);
            }
        }
    }

    fn dot(left: &[bf16], right: &[bf16], result: &mut f32) {
        let mut sums = [0.0_f32; LANES];
        for (left, right) in left.chunks(LANES).zip(right.chunks(LANES)) {
            for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
                *sum += wide(*left) * wide(*right);
            }
        }
        *result = total(sums);
    }
}
