//! The memory itself: 64 of its columns go through the tokens, forward and back.

use super::head::HeadGates;
use crate::features::multiversion;
use crate::numbers::{LANES, total};

/// Columns of a memory that are computed together.
pub(super) const BLOCK: usize = 64;
/// Tokens between the memories that a backward pass keeps.
const STRIDE: usize = 16;

/// What a block of columns of a memory is read and corrected with.
pub(super) struct Read<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    /// `[n, 64]`.
    pub(super) values: &'a [f32],
    pub(super) gates: &'a HeadGates,
    pub(super) key_dim: usize,
}

impl Read<'_> {
    pub(super) fn backward(
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
pub(super) fn columns(rows: &[f32], width: usize, first: usize) -> Vec<f32> {
    columns_of(rows, width, first, BLOCK.min(width - first))
}

/// `count` columns of rows `[n, width]` from `first` on, filled up to 64 with zeros.
pub(super) fn columns_of(rows: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    let mut block = vec![0.0; rows.len() / width * BLOCK];
    for (row, block) in rows.chunks_exact(width).zip(block.chunks_exact_mut(BLOCK)) {
        block[..count].copy_from_slice(&row[first..first + count]);
    }
    block
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

multiversion! {
    /// Reads and corrects 64 columns of a memory, `[key dim, 64]`, token by token.
    pub(super) fn scan_block(
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
