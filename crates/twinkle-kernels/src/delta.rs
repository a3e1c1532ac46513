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

use crate::features::multiversion;
use crate::numbers::{LANES, rounded, sigmoid, total};
use crate::pool::{self, Shared};

/// Columns of a memory that are computed together.
const BLOCK: usize = 64;
/// Tokens between the memories that a backward pass keeps.
const STRIDE: usize = 16;
/// What is added to a head's squared length before the root.
const UNIT_EPSILON: f32 = 1e-6;

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
        let (q, k) = (head.queries(), head.keys());
        for value_head in head.value_heads() {
            // SAFETY: each task has value heads of its own.
            let memory = unsafe { memories[place].part(value_head * size..(value_head + 1) * size) };
            let (v, gates) = (head.values(value_head), head.gates(value_head));
            for first in (0..shape.value_dim).step_by(BLOCK) {
                let width = BLOCK.min(shape.value_dim - first);
                let values = columns(&v.activated, shape.value_dim, first);
                let mut block = columns(memory, shape.value_dim, first);
                let mut answers = vec![0.0; values.len()];
                scan_block(&q.unit, &k.unit, &values, &gates.beta, &gates.decay, &mut block, &mut answers);
                for (memory, block) in memory.chunks_exact_mut(shape.value_dim).zip(block.chunks_exact(BLOCK)) {
                    memory[first..first + width].copy_from_slice(&block[..width]);
                }
                for (row, answers) in answers.chunks_exact(BLOCK).enumerate() {
                    let start = row * shape.value_width() + value_head * shape.value_dim + first;
                    // SAFETY: each task has columns of its own.
                    unsafe { outs[place].part(start..start + width) }.copy_from_slice(&answers[..width]);
                }
            }
        }
    });
}

/// The gradients of a whole sequence's rows.
#[derive(Debug)]
pub struct DeltaGradients<'a> {
    /// `[n, channels]`.
    pub qkv: &'a mut [f32],
    /// `[n, value heads]`.
    pub b: &'a mut [f32],
    /// `[n, value heads]`.
    pub a: &'a mut [f32],
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
    }
    let into: Vec<[Shared<f32>; 3]> = into
        .iter_mut()
        .map(|into| [Shared::new(&mut *into.qkv), Shared::new(&mut *into.b), Shared::new(&mut *into.a)])
        .collect();
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

/// One key head of one sequence.
#[derive(Clone, Copy)]
struct HeadWork<'a> {
    rows: DeltaRows<'a>,
    weights: DeltaWeights<'a>,
    shape: DeltaShape,
    key_head: usize,
}

/// Some channels after the convolution, `[n, width]`.
struct Channels {
    first: usize,
    width: usize,
    convolved: Vec<f32>,
    activated: Vec<f32>,
}

/// Queries or keys.
struct Units {
    channels: Channels,
    /// Of unit length, queries divided by the root of their width, `[n, key dim]`.
    unit: Vec<f32>,
    /// What each row was multiplied by.
    inverse: Vec<f32>,
    scale: f32,
}

/// Per row of a value head.
struct HeadGates {
    beta: Vec<f32>,
    /// `e^g`.
    decay: Vec<f32>,
}

impl HeadWork<'_> {
    fn count(&self) -> usize {
        self.rows.qkv.len() / self.shape.channels()
    }

    fn value_heads(&self) -> std::ops::Range<usize> {
        self.key_head * self.shape.group..(self.key_head + 1) * self.shape.group
    }

    fn queries(&self) -> Units {
        self.units(self.key_head * self.shape.key_dim, 1.0 / (self.shape.key_dim as f32).sqrt())
    }

    fn keys(&self) -> Units {
        self.units(self.shape.keys() + self.key_head * self.shape.key_dim, 1.0)
    }

    fn values(&self, value_head: usize) -> Channels {
        self.channels(2 * self.shape.keys() + value_head * self.shape.value_dim, self.shape.value_dim)
    }

    fn channels(&self, first: usize, width: usize) -> Channels {
        let (channels, reach) = (self.shape.channels(), self.shape.kernel - 1);
        let mut convolved = vec![0.0; self.count() * width];
        for (row, y) in convolved.chunks_exact_mut(width).enumerate() {
            for (tap, factors) in self.weights.taps.chunks_exact(channels).enumerate() {
                let source = if row + tap >= reach {
                    &self.rows.qkv[(row + tap - reach) * channels..]
                } else if self.rows.tail.is_empty() {
                    continue;
                } else {
                    &self.rows.tail[(row + tap) * channels..]
                };
                add_products(&source[first..first + width], &factors[first..first + width], y);
            }
        }
        let mut activated = vec![0.0; convolved.len()];
        activate(&mut convolved, self.weights.rounds, &mut activated);
        Channels { first, width, convolved, activated }
    }

    fn units(&self, first: usize, scale: f32) -> Units {
        let channels = self.channels(first, self.shape.key_dim);
        let mut unit = vec![0.0; channels.activated.len()];
        let mut inverse = vec![0.0; self.count()];
        normalise(&channels.activated, channels.width, scale, &mut unit, &mut inverse);
        Units { channels, unit, inverse, scale }
    }

    fn gates(&self, value_head: usize) -> HeadGates {
        let (rate, dt_bias) = (self.weights.rate[value_head], self.weights.dt_bias[value_head]);
        let of = |rows: &'_ [f32]| -> Vec<f32> {
            rows.iter().skip(value_head).step_by(self.shape.value_heads()).copied().collect()
        };
        let strength = |b: f32| {
            let beta = 1.0 / (1.0 + (-b).exp());
            if self.weights.rounds { rounded(beta) } else { beta }
        };
        HeadGates {
            beta: of(self.rows.b).into_iter().map(strength).collect(),
            decay: of(self.rows.a).into_iter().map(|a| (rate * softplus(a + dt_bias)).exp()).collect(),
        }
    }

    fn differentiate(&self, d_out: &[f32], into: [Shared<f32>; 3]) {
        let (shape, count) = (self.shape, self.count());
        let [d_qkv, d_b, d_a] = into;
        let (q, k) = (self.queries(), self.keys());
        let (mut dq, mut dk) = (vec![0.0; q.unit.len()], vec![0.0; k.unit.len()]);
        for value_head in self.value_heads() {
            let (v, gates) = (self.values(value_head), self.gates(value_head));
            let (mut d_beta, mut d_decay) = (vec![0.0; count], vec![0.0; count]);
            let mut dv = vec![0.0; v.activated.len()];
            for first in (0..shape.value_dim).step_by(BLOCK) {
                let width = BLOCK.min(shape.value_dim - first);
                let values = columns(&v.activated, shape.value_dim, first);
                let d_answers = columns_of(d_out, shape.value_width(), value_head * shape.value_dim + first, width);
                let mut d_values = vec![0.0; values.len()];
                let read = Read { q: &q.unit, k: &k.unit, values: &values, gates: &gates, key_dim: shape.key_dim };
                read.backward(&d_answers, &mut dq, &mut dk, &mut d_values, (&mut d_beta, &mut d_decay));
                for (dv, own) in dv.chunks_exact_mut(shape.value_dim).zip(d_values.chunks_exact(BLOCK)) {
                    dv[first..first + width].copy_from_slice(&own[..width]);
                }
            }
            self.add_channels(&v, &mut dv, d_qkv);
            let (rate, dt_bias) = (self.weights.rate[value_head], self.weights.dt_bias[value_head]);
            for row in 0..count {
                let place = row * shape.value_heads() + value_head;
                let slope = 1.0 / (1.0 + (-(self.rows.a[place] + dt_bias)).exp());
                let beta = gates.beta[row];
                // SAFETY: each task has value heads of its own.
                unsafe {
                    d_b.part(place..place + 1)[0] = d_beta[row] * (beta - beta * beta);
                    d_a.part(place..place + 1)[0] = d_decay[row] * gates.decay[row] * rate * slope;
                }
            }
        }
        for (units, mut d) in [(q, dq), (k, dk)] {
            normalise_backward(&units.unit, units.channels.width, units.scale, &units.inverse, &mut d);
            self.add_channels(&units.channels, &mut d, d_qkv);
        }
    }

    /// Writes the gradient of some channels' rows, given that after their activation.
    fn add_channels(&self, own: &Channels, d_activated: &mut [f32], d_qkv: Shared<f32>) {
        let (channels, reach, width) = (self.shape.channels(), self.shape.kernel - 1, own.width);
        activate_backward(&own.convolved, d_activated);
        for row in 0..self.count() {
            let start = row * channels + own.first;
            // SAFETY: each task has channels of its own.
            let target = unsafe { d_qkv.part(start..start + width) };
            target.fill(0.0);
            // The row is the oldest that the one `reach` below sees, and the newest that it sees itself.
            for (tap, factors) in self.weights.taps.chunks_exact(channels).enumerate().rev() {
                let below = row + reach - tap;
                if let Some(d) = d_activated.get(below * width..(below + 1) * width) {
                    add_products(d, &factors[own.first..own.first + width], target);
                }
            }
        }
    }
}

/// What a block of columns of a memory is read and corrected with.
struct Read<'a> {
    q: &'a [f32],
    k: &'a [f32],
    /// `[n, 64]`.
    values: &'a [f32],
    gates: &'a HeadGates,
    key_dim: usize,
}

impl Read<'_> {
    fn backward(
        &self,
        d_answers: &[f32],
        dq: &mut [f32],
        dk: &mut [f32],
        d_values: &mut [f32],
        (d_beta, d_decay): (&mut [f32], &mut [f32]),
    ) {
        let (count, size) = (self.gates.beta.len(), self.key_dim * BLOCK);
        let mut memory = vec![0.0; size];
        let mut answers = vec![0.0; STRIDE * BLOCK];
        let mut kept = Vec::new();
        for first in (0..count).step_by(STRIDE) {
            kept.push(memory.clone());
            let last = (first + STRIDE).min(count);
            let (keys, block) = (first * self.key_dim..last * self.key_dim, first * BLOCK..last * BLOCK);
            let (beta, decay) = (&self.gates.beta[first..last], &self.gates.decay[first..last]);
            let room = &mut answers[..block.len()];
            scan_block(&self.q[keys.clone()], &self.k[keys], &self.values[block], beta, decay, &mut memory, room);
        }
        let mut d_memory = vec![0.0; size];
        // The memories before each token of a stretch, and after the last.
        let mut memories = vec![0.0; (STRIDE + 1) * size];
        for (first, start) in (0..count).step_by(STRIDE).zip(kept).rev() {
            let last = (first + STRIDE).min(count);
            memories[..size].copy_from_slice(&start);
            for (place, token) in (first..last).enumerate() {
                let (before, after) = memories[place * size..(place + 2) * size].split_at_mut(size);
                after.copy_from_slice(before);
                let (keys, block) =
                    (token * self.key_dim..(token + 1) * self.key_dim, token * BLOCK..(token + 1) * BLOCK);
                let (beta, decay) = (&self.gates.beta[token..=token], &self.gates.decay[token..=token]);
                let room = &mut answers[..BLOCK];
                scan_block(&self.q[keys.clone()], &self.k[keys], &self.values[block], beta, decay, after, room);
            }
            for (place, token) in (first..last).enumerate().rev() {
                let (before, after) = memories[place * size..(place + 2) * size].split_at(size);
                let (keys, block) =
                    (token * self.key_dim..(token + 1) * self.key_dim, token * BLOCK..(token + 1) * BLOCK);
                token_backward(
                    &self.q[keys.clone()],
                    &self.k[keys.clone()],
                    &self.values[block.clone()],
                    self.gates.beta[token],
                    self.gates.decay[token],
                    before,
                    after,
                    &d_answers[block.clone()],
                    &mut d_memory,
                    &mut dq[keys.clone()],
                    &mut dk[keys],
                    &mut d_values[block],
                    &mut d_beta[token],
                    &mut d_decay[token],
                );
            }
        }
    }
}

/// 64 columns of rows `[n, width]` from `first` on, zeros where there are fewer.
fn columns(rows: &[f32], width: usize, first: usize) -> Vec<f32> {
    columns_of(rows, width, first, BLOCK.min(width - first))
}

/// `count` columns of rows `[n, width]` from `first` on, filled up to 64 with zeros.
fn columns_of(rows: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    let mut block = vec![0.0; rows.len() / width * BLOCK];
    for (row, block) in rows.chunks_exact(width).zip(block.chunks_exact_mut(BLOCK)) {
        block[..count].copy_from_slice(&row[first..first + count]);
    }
    block
}

/// `ln(1 + eˣ)`.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// The sum of 64 numbers, in a fixed order.
#[inline(always)]
fn block_sum(numbers: &[f32; BLOCK]) -> f32 {
    let mut lanes = [0.0; LANES];
    for part in numbers.chunks_exact(LANES) {
        for (lane, number) in lanes.iter_mut().zip(part) {
            *lane += number;
        }
    }
    total(lanes)
}

/// `Σ x y`, in an order that depends on the length alone.
#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    for (lane, (x, y)) in lanes.iter_mut().zip(xs.remainder().iter().zip(ys.remainder())) {
        *lane += x * y;
    }
    for (x, y) in xs.zip(ys) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    total(lanes)
}

multiversion! {
    /// `y += x ⊙ factors`.
    fn add_products(x: &[f32], factors: &[f32], y: &mut [f32]) {
        for ((y, x), factor) in y.iter_mut().zip(x).zip(factors) {
            *y += x * factor;
        }
    }

    /// `y = silu(x)`, `x` and `y` rounded where the model rounds.
    fn activate(x: &mut [f32], rounds: bool, y: &mut [f32]) {
        if rounds {
            for (y, x) in y.iter_mut().zip(x) {
                *x = rounded(*x);
                *y = rounded(*x * sigmoid(*x));
            }
        } else {
            for (y, x) in y.iter_mut().zip(x) {
                *y = *x * sigmoid(*x);
            }
        }
    }

    /// Replaces the gradient of `silu(x)` by that of `x`.
    fn activate_backward(x: &[f32], d: &mut [f32]) {
        for (d, x) in d.iter_mut().zip(x) {
            let sigma = sigmoid(*x);
            *d *= sigma * (1.0 + *x * (1.0 - sigma));
        }
    }

    /// Rows of unit length times `scale`, and what they were multiplied by for it.
    fn normalise(x: &[f32], width: usize, scale: f32, y: &mut [f32], inverse: &mut [f32]) {
        for ((x, y), inverse) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(inverse) {
            *inverse = 1.0 / (dot(x, x) + UNIT_EPSILON).sqrt();
            for (y, x) in y.iter_mut().zip(x) {
                *y = x * *inverse * scale;
            }
        }
    }

    /// Replaces the gradient of [`normalise`]'s rows by that of what it was given: with `u = y / scale`,
    /// `dx = r (du − u · Σ u du)`.
    fn normalise_backward(y: &[f32], width: usize, scale: f32, inverse: &[f32], d: &mut [f32]) {
        for ((y, d), inverse) in y.chunks_exact(width).zip(d.chunks_exact_mut(width)).zip(inverse) {
            // u · Σ u du = y / scale · Σ y dy
            let along = dot(y, d) / scale;
            for (d, y) in d.iter_mut().zip(y) {
                *d = (*d * scale - *y * along) * *inverse;
            }
        }
    }

    /// Reads and corrects 64 columns of a memory, `[key dim, 64]`, token by token.
    fn scan_block(
        q: &[f32],
        k: &[f32],
        values: &[f32],
        beta: &[f32],
        decay: &[f32],
        memory: &mut [f32],
        answers: &mut [f32],
    ) {
        let width = memory.len() / BLOCK;
        for (token, (values, answers)) in values.chunks_exact(BLOCK).zip(answers.chunks_exact_mut(BLOCK)).enumerate() {
            let (q, k) = (&q[token * width..(token + 1) * width], &k[token * width..(token + 1) * width]);
            let (beta, decay) = (beta[token], decay[token]);
            let mut predicted = [0.0_f32; BLOCK];
            for (memory, k) in memory.chunks_exact_mut(BLOCK).zip(k) {
                for j in 0..BLOCK {
                    let own = decay * memory[j];
                    memory[j] = own;
                    predicted[j] += own * k;
                }
            }
            let mut correction = [0.0_f32; BLOCK];
            for j in 0..BLOCK {
                correction[j] = beta * (values[j] - predicted[j]);
            }
            let mut sum = [0.0_f32; BLOCK];
            for ((memory, k), q) in memory.chunks_exact_mut(BLOCK).zip(k).zip(q) {
                for j in 0..BLOCK {
                    let own = memory[j] + k * correction[j];
                    memory[j] = own;
                    sum[j] += own * q;
                }
            }
            answers.copy_from_slice(&sum);
        }
    }

    /// The gradients of one token's numbers, given that of its answer, and of the memory before it in place of that after.
    fn token_backward(
        q: &[f32],
        k: &[f32],
        values: &[f32],
        beta: f32,
        decay: f32,
        before: &[f32],
        after: &[f32],
        d_answer: &[f32],
        d_memory: &mut [f32],
        dq: &mut [f32],
        dk: &mut [f32],
        d_values: &mut [f32],
        d_beta: &mut f32,
        d_decay: &mut f32,
    ) {
        let mut predicted = [0.0_f32; BLOCK];
        for (before, k) in before.chunks_exact(BLOCK).zip(k) {
            for j in 0..BLOCK {
                predicted[j] += decay * before[j] * k;
            }
        }
        let (mut surprise, mut correction) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK]);
        for j in 0..BLOCK {
            surprise[j] = values[j] - predicted[j];
            correction[j] = beta * surprise[j];
        }
        // o = Sᵀ q; S = e^g S' + k (β (v − m))ᵀ
        let mut d_correction = [0.0_f32; BLOCK];
        for (i, (d_memory, after)) in d_memory.chunks_exact_mut(BLOCK).zip(after.chunks_exact(BLOCK)).enumerate() {
            let (mut for_q, mut for_k) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK]);
            for j in 0..BLOCK {
                let own = d_memory[j] + q[i] * d_answer[j];
                d_memory[j] = own;
                d_correction[j] += own * k[i];
                for_q[j] = after[j] * d_answer[j];
                for_k[j] = own * correction[j];
            }
            dq[i] += block_sum(&for_q);
            dk[i] += block_sum(&for_k);
        }
        let (mut d_predicted, mut for_beta) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK]);
        for j in 0..BLOCK {
            for_beta[j] = d_correction[j] * surprise[j];
            d_values[j] = beta * d_correction[j];
            d_predicted[j] = -d_values[j];
        }
        *d_beta += block_sum(&for_beta);
        // m = (e^g S')ᵀ k
        let mut for_decay = [0.0_f32; BLOCK];
        for (i, (d_memory, before)) in d_memory.chunks_exact_mut(BLOCK).zip(before.chunks_exact(BLOCK)).enumerate() {
            let mut for_k = [0.0_f32; BLOCK];
            for j in 0..BLOCK {
                let own = d_memory[j] + k[i] * d_predicted[j];
                for_k[j] = decay * before[j] * d_predicted[j];
                for_decay[j] += own * before[j];
                d_memory[j] = decay * own;
            }
            dk[i] += block_sum(&for_k);
        }
        *d_decay += block_sum(&for_decay);
    }
}
