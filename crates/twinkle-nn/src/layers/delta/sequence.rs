//! The recurrence over one sequence, chunk by chunk, and over many sequences, a token each.
//!
//! Every chunk is 64 rows of one sequence, counted from where the pass begins in it and filled up with rows that change
//! nothing. All chunks of all sequences are the same computation on the same shapes, so neighbours cannot matter.

use tch::{Kind, Tensor};

use super::features::{FeatureMap, Features, FeaturesTape};
use super::functions::{padded, unit};
use super::rule::Chunk;
use super::shape::CHUNK;
use super::state::DeltaState;
use super::weights::WeightSums;
use crate::torch::TorchResult;

/// What the projections made of one sequence's rows.
#[derive(Debug)]
pub(super) struct Rows {
    /// Queries, keys and values before the convolution, `[n, 2K + W]`.
    pub(super) qkv: Tensor,
    /// Write strengths before their sigmoid, `[n, n_v]`.
    pub(super) b: Tensor,
    /// Decays before their softplus, `[n, n_v]`.
    pub(super) a: Tensor,
}

impl Rows {
    pub(super) fn narrow(&self, start: i64, count: i64) -> TorchResult<Self> {
        let rows = |x: &Tensor| x.f_narrow(0, start, count);
        Ok(Self { qkv: rows(&self.qkv)?, b: rows(&self.b)?, a: rows(&self.a)? })
    }

    /// Room for as many numbers.
    pub(super) fn empty_like(&self) -> TorchResult<Self> {
        let empty = Tensor::f_empty_like;
        Ok(Self { qkv: empty(&self.qkv)?, b: empty(&self.b)?, a: empty(&self.a)? })
    }

    fn count(&self) -> i64 {
        self.qkv.size()[0]
    }

    /// The first row of each chunk.
    fn chunks(&self) -> impl Iterator<Item = i64> + use<> {
        (0..self.count()).step_by(CHUNK as usize)
    }
}

impl FeatureMap {
    /// Writes what the memory answers to each row, `[n, W]`, into `out`; returns the memory after the last.
    pub(super) fn scan(&self, rows: &Rows, state: &DeltaState, out: &Tensor) -> TorchResult<DeltaState> {
        let mut memory = state.memory.shallow_clone();
        for start in rows.chunks() {
            let (features, _) = self.chunk(rows, Some(&state.tail), start)?;
            let outcome = Chunk::new(self.shape, &features)?.forward(&memory)?;
            memory = outcome.memory;
            let count = CHUNK.min(rows.count() - start);
            let by_row = outcome.out.f_permute([1, 0, 2])?.f_narrow(0, 0, count)?;
            let mut target = out.f_narrow(0, start, count)?.f_view([count, self.shape.value_heads(), -1])?;
            target.f_copy_(&by_row)?;
        }
        Ok(DeltaState { tail: self.tail_after(state, rows)?, memory })
    }

    /// The last rows before the convolution, once these have come.
    pub(super) fn tail_after(&self, state: &DeltaState, rows: &Rows) -> TorchResult<Tensor> {
        let reach = self.convolution.reach();
        let new = rows.count().min(reach);
        let (old, new) = (state.tail.f_narrow(0, new, reach - new)?, rows.qkv.f_narrow(0, rows.count() - new, new)?);
        Tensor::f_cat(&[old, new], 0)
    }

    /// The gradients of a whole sequence's rows, written into `into`, given that of [`FeatureMap::scan`]'s output `[n, W]`.
    ///
    /// Those of the weights are added to `sums`, if they are wanted. The memories that the chunks met are computed again,
    /// because keeping them takes more room than all other rows.
    pub(super) fn scan_backward(
        &self,
        rows: &Rows,
        d_out: &Tensor,
        into: &Rows,
        mut sums: Option<&mut WeightSums>,
    ) -> TorchResult<()> {
        let (count, device) = (rows.count(), rows.qkv.device());
        let empty = Tensor::f_zeros(
            [self.shape.value_heads(), self.shape.key_dim, self.shape.value_dim],
            (Kind::Float, device),
        )?;
        let mut memories = vec![empty.shallow_clone()];
        for start in rows.chunks().filter(|start| start + CHUNK < count) {
            let (features, _) = self.chunk(rows, None, start)?;
            let memory = memories.last().unwrap_or(&empty);
            memories.push(Chunk::new(self.shape, &features)?.forward(memory)?.memory);
        }

        let reach = self.convolution.reach();
        let room = [reach + memories.len() as i64 * CHUNK, self.shape.channels()];
        let d_qkv = Tensor::f_zeros(room, (Kind::Float, device))?;
        let mut d_memory = empty;
        for (start, memory) in rows.chunks().zip(memories).collect::<Vec<_>>().into_iter().rev() {
            let (features, tape) = self.chunk(rows, None, start)?;
            let chunk = Chunk::new(self.shape, &features)?;
            let outcome = chunk.forward(&memory)?;
            let rows_here = CHUNK.min(count - start);
            let d_rows = padded(&d_out.f_narrow(0, start, rows_here)?, CHUNK)?;
            let d_heads = d_rows.f_view([CHUNK, self.shape.value_heads(), -1])?.f_permute([1, 0, 2])?.f_contiguous()?;
            let (gradients, d_before) = chunk.backward(&memory, &outcome, &d_heads, &d_memory)?;
            let d_window = d_qkv.f_narrow(0, start, reach + CHUNK)?;
            let (db, da) = self.backward(&features, &tape, &gradients, &d_window, sums.as_deref_mut())?;
            into.b.f_narrow(0, start, rows_here)?.f_copy_(&db)?;
            into.a.f_narrow(0, start, rows_here)?.f_copy_(&da)?;
            d_memory = d_before;
        }
        into.qkv.shallow_clone().f_copy_(&d_qkv.f_narrow(0, reach, count)?)
    }

    /// One more token of each of some sequences: writes the answers `[B, W]` into `out`; returns the memories after them.
    pub(super) fn step(&self, rows: &Rows, states: &[&DeltaState], out: &Tensor) -> TorchResult<Vec<DeltaState>> {
        let count = states.len() as i64;
        let windows: Vec<Tensor> = states
            .iter()
            .enumerate()
            .map(|(place, state)| Tensor::f_cat(&[&state.tail, &rows.qkv.f_narrow(0, place as i64, 1)?], 0))
            .collect::<TorchResult<_>>()?;
        let (activated, _) = self.activate(&self.convolution.step(&Tensor::f_stack(&windows, 0)?)?)?;
        let (q, k, v) = self.shape.split(&activated)?;
        let q = unit(&q)?.0.f_mul_scalar(self.query_scale())?;
        let k = unit(&k)?.0;
        let mut after = Vec::with_capacity(states.len());
        for first in (0..count).step_by(CHUNK as usize) {
            let here = CHUNK.min(count - first);
            let part = rows.narrow(first, here)?;
            let gated = self.gates.forward(&part.b, &part.a)?;
            let decay = gated.log_decay.f_exp()?;
            for row in 0..here {
                let place = first + row;
                let Some((state, window)) = states.get(place as usize).zip(windows.get(place as usize)) else { break };
                let factor = |x: &Tensor| x.f_get(row)?.f_view([self.shape.value_heads(), 1, 1]);
                let (q, k) = (self.shape.repeated(&q.f_get(place)?)?, self.shape.repeated(&k.f_get(place)?)?);
                let mut memory = state.memory.f_mul(&factor(&decay)?)?;
                let mut correction = v.f_get(place)?.f_unsqueeze(1)?.f_sub(&k.f_bmm(&memory)?)?;
                let _ = correction.f_mul_(&factor(&gated.beta)?)?;
                let _ = memory.f_addcmul_(&k.f_transpose(1, 2)?, &correction)?;
                let answer = q.f_bmm(&memory)?.f_view([1, self.shape.value_width()])?;
                out.f_narrow(0, place, 1)?.f_copy_(&answer)?;
                // A view would keep the oldest row alive, one more than is counted.
                let mut tail = Tensor::f_empty_like(&state.tail)?;
                tail.f_copy_(&window.f_narrow(0, 1, self.convolution.reach())?)?;
                after.push(DeltaState { tail, memory });
            }
        }
        Ok(after)
    }

    /// The features of the chunk that begins at row `start`. Before the first row lies `tail`, or nothing.
    fn chunk(&self, rows: &Rows, tail: Option<&Tensor>, start: i64) -> TorchResult<(Features, FeaturesTape)> {
        let count = CHUNK.min(rows.count() - start);
        let part = rows.narrow(start, count)?;
        let reach = self.convolution.reach();
        if start >= reach && count == CHUNK {
            return self.forward(&rows.qkv.f_narrow(0, start - reach, reach + CHUNK)?, &part);
        }
        let window = Tensor::f_zeros([reach + CHUNK, self.shape.channels()], (rows.qkv.kind(), rows.qkv.device()))?;
        if start >= reach {
            let rows = rows.qkv.f_narrow(0, start - reach, reach + count)?;
            window.f_narrow(0, 0, reach + count)?.f_copy_(&rows)?;
        } else {
            window.f_narrow(0, reach, count)?.f_copy_(&part.qkv)?;
            if let Some(tail) = tail {
                window.f_narrow(0, 0, reach)?.f_copy_(tail)?;
            }
        }
        self.forward(&window, &part)
    }
}
