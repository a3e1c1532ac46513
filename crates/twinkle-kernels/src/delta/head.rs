//! One key head of one sequence, with the value heads that share it: a task of its own.

use std::ops::Range;

use super::channels::{activate, activate_backward, add_products, normalise, normalise_backward, softplus};
use super::memory::{BLOCK, Read, columns, columns_of, scan_block};
use super::{DeltaGradients, DeltaRows, DeltaShape, DeltaWeights};
use crate::numbers::rounded;
use crate::pool::Shared;

/// One key head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct HeadWork<'a> {
    pub(super) rows: DeltaRows<'a>,
    pub(super) weights: DeltaWeights<'a>,
    pub(super) shape: DeltaShape,
    pub(super) key_head: usize,
}

/// Where the gradients of a sequence go; every task writes the channels and heads of its own.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    qkv: Shared<'a, f32>,
    b: Shared<'a, f32>,
    a: Shared<'a, f32>,
    weights: Option<WeightTarget<'a>>,
}

/// Where those of the weights go.
#[derive(Clone, Copy)]
struct WeightTarget<'a> {
    taps: Shared<'a, f32>,
    a_log: Shared<'a, f32>,
    dt_bias: Shared<'a, f32>,
}

impl<'a> Target<'a> {
    pub(super) fn new(into: &'a mut DeltaGradients<'_>) -> Self {
        let weights = into.weights.as_mut().map(|weights| WeightTarget {
            taps: Shared::new(weights.taps),
            a_log: Shared::new(weights.a_log),
            dt_bias: Shared::new(weights.dt_bias),
        });
        Self { qkv: Shared::new(into.qkv), b: Shared::new(into.b), a: Shared::new(into.a), weights }
    }
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
pub(super) struct HeadGates {
    pub(super) beta: Vec<f32>,
    /// `e^g`.
    pub(super) decay: Vec<f32>,
}

impl HeadWork<'_> {
    /// Reads and corrects the memories of the value heads `[value heads, key dim, value dim]`, and writes the answers.
    pub(super) fn scan(&self, memories: Shared<f32>, outs: Shared<f32>) {
        let shape = self.shape;
        let size = shape.key_dim * shape.value_dim;
        let (q, k) = (self.queries(), self.keys());
        for value_head in self.value_heads() {
            // SAFETY: each task has value heads of its own.
            let memory = unsafe { memories.part(value_head * size..(value_head + 1) * size) };
            let (v, gates) = (self.values(value_head), self.gates(value_head));
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
                    unsafe { outs.part(start..start + width) }.copy_from_slice(&answers[..width]);
                }
            }
        }
    }

    /// Writes the gradients of the head's channels, gates and weights, given that of the answers.
    pub(super) fn differentiate(&self, d_out: &[f32], into: Target) {
        let (shape, count) = (self.shape, self.count());
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
            self.write_channels(&v, &mut dv, into);
            self.write_gates(value_head, &gates, (&d_beta, &d_decay), into);
        }
        for (units, mut d) in [(q, dq), (k, dk)] {
            normalise_backward(&units.unit, units.channels.width, units.scale, &units.inverse, &mut d);
            self.write_channels(&units.channels, &mut d, into);
        }
    }

    /// The gradients of some channels' rows and of their convolution, given that after their activation.
    fn write_channels(&self, own: &Channels, d_activated: &mut [f32], into: Target) {
        let (channels, reach, width) = (self.shape.channels(), self.shape.kernel - 1, own.width);
        activate_backward(&own.convolved, d_activated);
        let d_convolved = &*d_activated;
        for row in 0..self.count() {
            let start = row * channels + own.first;
            // SAFETY: each task has channels of its own.
            let target = unsafe { into.qkv.part(start..start + width) };
            target.fill(0.0);
            // The row is the oldest that the one `reach` below sees, and the newest that it sees itself.
            for (tap, factors) in self.weights.taps.chunks_exact(channels).enumerate().rev() {
                let below = row + reach - tap;
                if let Some(d) = d_convolved.get(below * width..(below + 1) * width) {
                    add_products(d, &factors[own.first..own.first + width], target);
                }
            }
        }
        let Some(WeightTarget { taps, .. }) = into.weights else { return };
        for tap in 0..self.shape.kernel {
            let start = tap * channels + own.first;
            // SAFETY: each task has channels of its own.
            let target = unsafe { taps.part(start..start + width) };
            target.fill(0.0);
            // A whole sequence has nothing before its first row.
            let first = reach - tap;
            let sources = self.rows.qkv.chunks_exact(channels);
            for (d, source) in d_convolved.chunks_exact(width).skip(first).zip(sources) {
                add_products(d, &source[own.first..own.first + width], target);
            }
        }
    }

    /// The gradients of a value head's gates and their weights, given those of `β` and `e^g`.
    fn write_gates(&self, value_head: usize, gates: &HeadGates, (d_beta, d_decay): (&[f32], &[f32]), into: Target) {
        let (rate, dt_bias) = (self.weights.rate[value_head], self.weights.dt_bias[value_head]);
        let (mut for_a_log, mut for_dt_bias) = (0.0, 0.0);
        for row in 0..self.count() {
            let place = row * self.shape.value_heads() + value_head;
            let time_step = self.rows.a[place] + dt_bias;
            let slope = 1.0 / (1.0 + (-time_step).exp());
            let beta = gates.beta[row];
            // g = rate · softplus(a + dt_bias), and rate = −e^(A_log) is its own derivative.
            let for_g = d_decay[row] * gates.decay[row];
            let for_a = for_g * rate * slope;
            for_a_log += for_g * rate * softplus(time_step);
            for_dt_bias += for_a;
            // SAFETY: each task has value heads of its own.
            unsafe {
                into.b.part(place..place + 1)[0] = d_beta[row] * (beta - beta * beta);
                into.a.part(place..place + 1)[0] = for_a;
            }
        }
        let Some(WeightTarget { a_log, dt_bias, .. }) = into.weights else { return };
        // SAFETY: each task has value heads of its own.
        unsafe {
            a_log.part(value_head..value_head + 1)[0] = for_a_log;
            dt_bias.part(value_head..value_head + 1)[0] = for_dt_bias;
        }
    }

    fn count(&self) -> usize {
        self.rows.qkv.len() / self.shape.channels()
    }

    fn value_heads(&self) -> Range<usize> {
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
}
