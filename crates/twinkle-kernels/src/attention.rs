//! Causal grouped-query attention (Vaswani et al. 2017, Ainslie et al. 2023) of bf16 rows, and its gradient.
//!
//! A row's scores, its softmax and its sum over the values are chains of fp32 operations over the keys from the first on;
//! a key it must not see adds an exact zero at the end. So a row has the same bits in a whole sequence, in a piece of a
//! prompt and alone in a decoding step.

use half::bf16;

#[cfg(target_arch = "x86_64")]
use crate::heads;

/// The dimensions of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Key and value heads.
    pub kv: usize,
    /// Query heads per key head; consecutive ones share it.
    pub group: usize,
    /// Width of a head; even.
    pub dim: usize,
}

impl HeadShape {
    /// Numbers in a row of queries.
    #[must_use]
    pub fn query_width(self) -> usize {
        self.kv * self.group * self.dim
    }

    /// Numbers in a row of keys or of values.
    #[must_use]
    pub fn kv_width(self) -> usize {
        self.kv * self.dim
    }
}

/// Queries of one sequence and everything they may see. The queries are those of the last rows.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// `[n, kv · group, dim]`.
    pub q: &'a [bf16],
    /// `[past + n, kv, dim]`.
    pub k: &'a [bf16],
    /// `[past + n, kv, dim]`.
    pub v: &'a [bf16],
}

/// `softmax(q kᵀ / √dim) v` for every query of every sequence, and per row and head the log-sum-exp of its scores.
///
/// `out` has the rows of all sequences one after the other, `[Σ n, kv · group · dim]`; `log_sum_exp` is `[Σ n, kv · group]`.
///
/// # Panics
/// If the slices' lengths do not fit together. Call only where [`crate::has_bf16_products`] and `dim` is even.
pub fn attention(sequences: &[Sequence], shape: HeadShape, out: &mut [bf16], log_sum_exp: &mut [f32]) {
    let rows: usize = sequences.iter().map(|sequence| check(sequence, shape)).sum();
    assert!(out.len() == rows * shape.query_width(), "the outputs of {rows} rows");
    assert!(log_sum_exp.len() == rows * shape.kv * shape.group, "the log-sum-exps of {rows} rows");
    #[cfg(target_arch = "x86_64")]
    heads::forward(sequences, shape, out, log_sum_exp);
}

/// What [`attention_backward`] reads of one whole sequence (`past` is 0), besides its [`Sequence`].
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// Queries, keys and values.
    pub sequence: Sequence<'a>,
    /// What [`attention`] returned for it.
    pub out: &'a [bf16],
    /// What [`attention`] returned for it.
    pub log_sum_exp: &'a [f32],
    /// The gradient of `out`.
    pub d_out: &'a [bf16],
}

/// The gradients of queries, keys and values of whole sequences, each with the rows of all sequences one after the other.
///
/// # Panics
/// As [`attention`].
pub fn attention_backward(sequences: &[Attended], shape: HeadShape, dq: &mut [bf16], dk: &mut [bf16], dv: &mut [bf16]) {
    let mut rows = 0;
    for Attended { sequence, out, log_sum_exp, d_out } in sequences {
        let n = check(sequence, shape);
        assert!(sequence.k.len() == n * shape.kv_width(), "a sequence with a past");
        assert!(out.len() == sequence.q.len() && d_out.len() == sequence.q.len(), "the outputs of {n} rows");
        assert!(log_sum_exp.len() == n * shape.kv * shape.group, "the log-sum-exps of {n} rows");
        rows += n;
    }
    assert!(dq.len() == rows * shape.query_width(), "the gradients of {rows} rows");
    assert!(dk.len() == rows * shape.kv_width() && dv.len() == dk.len(), "the gradients of {rows} rows");
    #[cfg(target_arch = "x86_64")]
    heads::backward(sequences, shape, dq, dk, dv);
}

/// How many queries the sequence has.
fn check(sequence: &Sequence, shape: HeadShape) -> usize {
    let (wide, narrow) = (shape.query_width(), shape.kv_width());
    assert!(crate::has_bf16_products() && shape.dim.is_multiple_of(2) && wide > 0, "heads of {} here", shape.dim);
    let rows = sequence.q.len() / wide;
    assert!(sequence.q.len() == rows * wide, "queries are not {wide} wide");
    assert!(sequence.k.len().is_multiple_of(narrow) && sequence.v.len() == sequence.k.len(), "keys and values");
    assert!(sequence.k.len() / narrow >= rows, "{rows} queries and fewer keys");
    rows
}
