//! The gated delta rule (Yang, Kautz & Hatamizadeh 2024) token by token, with the short convolution before it, and its
//! gradient.
//!
//! ```text
//! S ← e^g S;   S ← S + k (β (v − Sᵀ k))ᵀ;   o = Sᵀ q
//! ```
//!
//! The columns of a memory `S` have nothing to do with each other, so a block of them stays in the processor's nearest
//! cache for a whole sequence. A row's bits are the same in a whole sequence, in a piece of a prompt and in a decoding
//! step, and every head of every sequence is a task of its own.

//!
//! [`channels`] is what happens before the memory, [`memory`] how it is read and corrected, [`head`] the two together for
//! one head.

mod channels;
mod head;
mod memory;

use self::head::{HeadWork, Target};
use crate::pool::{self, Shared};

/// The dimensions of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Query and key heads.
    pub key_heads: usize,
    /// Value heads per key head; consecutive ones share it.
    pub group: usize,
    /// Width of a query or key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Rows that the convolution sees, a row itself included.
    pub kernel: usize,
}

impl DeltaShape {
    /// Value heads.
    #[must_use]
    pub fn value_heads(self) -> usize {
        self.key_heads * self.group
    }

    /// Numbers in a row of values.
    #[must_use]
    pub fn value_width(self) -> usize {
        self.value_heads() * self.value_dim
    }

    /// Numbers in a row of queries, keys and values.
    #[must_use]
    pub fn channels(self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_width()
    }

    fn keys(self) -> usize {
        self.key_heads * self.key_dim
    }
}

/// The frozen numbers between the projections and the memory.
#[derive(Clone, Copy, Debug)]
pub struct DeltaWeights<'a> {
    /// The convolution, the oldest row's factors first, `[kernel, channels]`.
    pub taps: &'a [f32],
    /// `−e^(A_log)`, `[value heads]`.
    pub rate: &'a [f32],
    /// `[value heads]`.
    pub dt_bias: &'a [f32],
    /// Whether the convolution, its activation and the write strengths are rounded to bf16.
    pub rounds: bool,
}

/// Rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRows<'a> {
    /// Queries, keys and values before the convolution, `[n, channels]`.
    pub qkv: &'a [f32],
    /// Write strengths before their sigmoid, `[n, value heads]`.
    pub b: &'a [f32],
    /// Decays before their softplus, `[n, value heads]`.
    pub a: &'a [f32],
    /// The rows before the first, `[kernel − 1, channels]`; nothing at the start of a sequence.
    pub tail: &'a [f32],
}

/// Reads and corrects the memory of each sequence row by row.
///
/// `memories[i]` is `[value heads, key dim, value dim]`, of the rows before; `outs[i]` takes the answers, `[n, value width]`.
///
/// # Panics
/// If the slices' lengths do not fit together.
pub fn delta_scan(
    sequences: &[DeltaRows],
    weights: DeltaWeights,
    shape: DeltaShape,
    memories: &mut [&mut [f32]],
    outs: &mut [&mut [f32]],
) {
    assert!(sequences.len() == memories.len() && sequences.len() == outs.len(), "sequences, memories and outputs");
    let rows = check(sequences, weights, shape);
    let size = shape.key_dim * shape.value_dim;
    for ((sequence, memory), out) in sequences.iter().zip(&*memories).zip(&*outs) {
        let count = sequence.qkv.len() / shape.channels();
        assert!(memory.len() == shape.value_heads() * size, "a memory");
        assert!(out.len() == count * shape.value_width(), "the answers to {count} rows");
    }
    let memories: Vec<Shared<f32>> = memories.iter_mut().map(|memory| Shared::new(memory)).collect();
    let outs: Vec<Shared<f32>> = outs.iter_mut().map(|out| Shared::new(out)).collect();
    let cost = rows * shape.value_heads() * size * 2;
    pool::for_each(sequences.len() * shape.key_heads, cost, |task| {
        let (place, key_head) = (task / shape.key_heads, task % shape.key_heads);
        let head = HeadWork { rows: sequences[place], weights, shape, key_head };
        head.scan(memories[place], outs[place]);
    });
}

/// The gradients of a whole sequence's rows. What is there is replaced.
#[derive(Debug)]
pub struct DeltaGradients<'a> {
    /// `[n, channels]`.
    pub qkv: &'a mut [f32],
    /// `[n, value heads]`.
    pub b: &'a mut [f32],
    /// `[n, value heads]`.
    pub a: &'a mut [f32],
    /// Those of the weights through this sequence, if they are trained.
    pub weights: Option<DeltaWeightGradients<'a>>,
}

/// The gradients of the numbers between the projections and the memory. What is there is replaced.
#[derive(Debug)]
pub struct DeltaWeightGradients<'a> {
    /// Of the convolution, the oldest row's factors first, `[kernel, channels]`.
    pub taps: &'a mut [f32],
    /// Of `A_log`, `[value heads]`.
    pub a_log: &'a mut [f32],
    /// `[value heads]`.
    pub dt_bias: &'a mut [f32],
}

/// The gradients of the rows of whole sequences, given those of the answers of [`delta_scan`] from empty memories.
///
/// # Panics
/// If the slices' lengths do not fit together, or a sequence has a tail.
pub fn delta_scan_backward(
    sequences: &[DeltaRows],
    weights: DeltaWeights,
    shape: DeltaShape,
    d_outs: &[&[f32]],
    into: &mut [DeltaGradients],
) {
    assert!(sequences.len() == d_outs.len() && sequences.len() == into.len(), "sequences and gradients");
    let rows = check(sequences, weights, shape);
    for ((sequence, d_out), into) in sequences.iter().zip(d_outs).zip(&*into) {
        let count = sequence.qkv.len() / shape.channels();
        assert!(sequence.tail.is_empty(), "a whole sequence has no rows before it");
        assert!(d_out.len() == count * shape.value_width(), "the gradients of {count} answers");
        let fits = into.qkv.len() == sequence.qkv.len() && into.b.len() == sequence.b.len();
        assert!(fits && into.a.len() == sequence.a.len(), "the gradients of {count} rows");
        let of_weights = into.weights.as_ref().is_none_or(|own| {
            let gates = own.a_log.len() == shape.value_heads() && own.dt_bias.len() == shape.value_heads();
            gates && own.taps.len() == weights.taps.len()
        });
        assert!(of_weights, "the gradients of the weights");
    }
    let into: Vec<Target> = into.iter_mut().map(Target::new).collect();
    let cost = rows * shape.value_heads() * shape.key_dim * shape.value_dim * 6;
    pool::for_each(sequences.len() * shape.key_heads, cost, |task| {
        let (place, key_head) = (task / shape.key_heads, task % shape.key_heads);
        let head = HeadWork { rows: sequences[place], weights, shape, key_head };
        head.differentiate(d_outs[place], into[place]);
    });
}

/// How many rows there are, if everything fits.
fn check(sequences: &[DeltaRows], weights: DeltaWeights, shape: DeltaShape) -> usize {
    let (channels, heads) = (shape.channels(), shape.value_heads());
    assert!(channels > 0 && shape.kernel > 0 && weights.taps.len() == shape.kernel * channels, "the convolution");
    assert!(weights.rate.len() == heads && weights.dt_bias.len() == heads, "the decays of {heads} heads");
    let mut rows = 0;
    for sequence in sequences {
        let count = sequence.qkv.len() / channels;
        assert!(sequence.qkv.len() == count * channels, "rows are not {channels} wide");
        assert!(sequence.b.len() == count * heads && sequence.a.len() == count * heads, "the gates of {count} rows");
        assert!(sequence.tail.is_empty() || sequence.tail.len() == (shape.kernel - 1) * channels, "the rows before");
        rows += count;
    }
    rows
}
