//! The recurrence on the processor: its own kernel ([`twinkle_kernels::delta_scan`]), token by token, without chunks.
//!
//! Whole sequences, pieces of prompts and decoding steps are the same computation there, so they have the same bits.

use tch::{Device, Kind, TchError, Tensor};
use twinkle_kernels::{
    DeltaGradients, DeltaRows, DeltaShape, DeltaWeightGradients, DeltaWeights, delta_scan, delta_scan_backward,
};
use twinkle_torch::slices::{f32s, f32s_mut};

use super::features::FeatureMap;
use super::sequence::Rows;
use super::state::DeltaState;
use super::weights::WeightSums;
use crate::torch::TorchResult;

impl FeatureMap {
    /// Whether the kernel is for rows on this device.
    pub(super) fn is_native(device: Device) -> bool {
        device == Device::Cpu
    }

    /// What the memories answer to rows `[T, W]` of sequences of these lengths, one after the other, and the memories
    /// after them. Each sequence goes on from its state.
    pub(super) fn scan_native(
        &self,
        rows: &Rows,
        lengths: &[usize],
        states: &[&DeltaState],
    ) -> TorchResult<(Tensor, Vec<DeltaState>)> {
        let total = rows.qkv.size()[0];
        let floats = Floats::of(rows)?;
        let tails: Vec<Tensor> = states.iter().map(|state| float(&state.tail)).collect::<TorchResult<_>>()?;
        let mut memories = Vec::with_capacity(states.len());
        for state in states {
            let mut memory = Tensor::f_empty_like(&state.memory)?;
            memory.f_copy_(&state.memory)?;
            memories.push(memory);
        }
        let mut out = Tensor::f_zeros([total, self.shape.value_width()], (Kind::Float, Device::Cpu))?;
        {
            let sequences = floats.sequences(self, lengths, &tails)?;
            let mut memories: Vec<&mut [f32]> = memories.iter_mut().map(numbers_mut).collect::<TorchResult<_>>()?;
            let mut outs = split(numbers_mut(&mut out)?, lengths, self.shape.value_width() as usize);
            delta_scan(&sequences, self.weights()?, self.kernel_shape(), &mut memories, &mut outs);
        }
        let mut after = Vec::with_capacity(states.len());
        let mut start = 0;
        for ((state, memory), length) in states.iter().zip(memories).zip(lengths) {
            after.push(DeltaState { tail: self.tail_after(state, &rows.narrow(start, *length as i64)?)?, memory });
            start += *length as i64;
        }
        Ok((out, after))
    }

    /// The gradients of whole sequences' rows, in the model's dtype, given that of the answers, `[T, W]`. Per sequence those
    /// of the weights replace what is in `sums`, if they are wanted.
    pub(super) fn scan_backward_native(
        &self,
        rows: &Rows,
        lengths: &[usize],
        d_out: &Tensor,
        sums: &mut [Option<WeightSums>],
    ) -> TorchResult<Rows> {
        let (floats, d_out) = (Floats::of(rows)?, float(d_out)?);
        let zeros = |x: &Tensor| Tensor::f_zeros(x.size().as_slice(), (Kind::Float, Device::Cpu));
        let mut d = Rows { qkv: zeros(&rows.qkv)?, b: zeros(&rows.b)?, a: zeros(&rows.a)? };
        {
            let sequences = floats.sequences(self, lengths, &[])?;
            let (heads, channels) = (self.shape.value_heads() as usize, self.shape.channels() as usize);
            let d_outs = parts(numbers(&d_out)?, lengths, self.shape.value_width() as usize);
            let qkv = split(numbers_mut(&mut d.qkv)?, lengths, channels);
            let b = split(numbers_mut(&mut d.b)?, lengths, heads);
            let a = split(numbers_mut(&mut d.a)?, lengths, heads);
            let weights: Vec<Option<DeltaWeightGradients>> = sums
                .iter_mut()
                .map(|sums| sums.as_mut().map(weight_gradients).transpose())
                .collect::<TorchResult<_>>()?;
            let parts = qkv.into_iter().zip(b).zip(a).zip(weights);
            let mut into: Vec<DeltaGradients> =
                parts.map(|(((qkv, b), a), weights)| DeltaGradients { qkv, b, a, weights }).collect();
            delta_scan_backward(&sequences, self.weights()?, self.kernel_shape(), &d_outs, &mut into);
        }
        let kind = |x: &Tensor| x.f_to_kind(self.kind);
        Ok(Rows { qkv: kind(&d.qkv)?, b: kind(&d.b)?, a: kind(&d.a)? })
    }

    fn weights(&self) -> TorchResult<DeltaWeights<'_>> {
        let (rate, dt_bias) = self.gates.parameters();
        Ok(DeltaWeights {
            taps: numbers(self.convolution.taps())?,
            rate: numbers(rate)?,
            dt_bias: numbers(dt_bias)?,
            rounds: self.kind == Kind::BFloat16,
        })
    }

    fn kernel_shape(&self) -> DeltaShape {
        DeltaShape {
            key_heads: self.shape.key_heads as usize,
            group: self.shape.group as usize,
            key_dim: self.shape.key_dim as usize,
            value_dim: self.shape.value_dim as usize,
            kernel: self.convolution.reach() as usize + 1,
        }
    }
}

/// Rows in fp32.
struct Floats(Rows);

impl Floats {
    fn of(rows: &Rows) -> TorchResult<Self> {
        Ok(Self(Rows { qkv: float(&rows.qkv)?, b: float(&rows.b)?, a: float(&rows.a)? }))
    }

    /// The rows of each sequence; `tails` are before them, or nothing is.
    fn sequences<'a>(
        &'a self,
        map: &FeatureMap,
        lengths: &[usize],
        tails: &'a [Tensor],
    ) -> TorchResult<Vec<DeltaRows<'a>>> {
        let (heads, channels) = (map.shape.value_heads() as usize, map.shape.channels() as usize);
        let qkv = parts(numbers(&self.0.qkv)?, lengths, channels);
        let b = parts(numbers(&self.0.b)?, lengths, heads);
        let a = parts(numbers(&self.0.a)?, lengths, heads);
        let tail = |place: usize| tails.get(place).filter(|tail| tail.numel() > 0).map_or(Ok(&[][..]), numbers);
        let parts = qkv.into_iter().zip(b).zip(a).enumerate();
        parts.map(|(place, ((qkv, b), a))| Ok(DeltaRows { qkv, b, a, tail: tail(place)? })).collect()
    }
}

fn weight_gradients(sums: &mut WeightSums) -> TorchResult<DeltaWeightGradients<'_>> {
    Ok(DeltaWeightGradients {
        taps: numbers_mut(&mut sums.taps)?,
        a_log: numbers_mut(&mut sums.a_log)?,
        dt_bias: numbers_mut(&mut sums.dt_bias)?,
    })
}

fn float(x: &Tensor) -> TorchResult<Tensor> {
    x.f_to_kind(Kind::Float)?.f_contiguous()
}

fn numbers(x: &Tensor) -> TorchResult<&[f32]> {
    f32s(x).ok_or_else(not_numbers)
}

fn numbers_mut(x: &mut Tensor) -> TorchResult<&mut [f32]> {
    f32s_mut(x).ok_or_else(not_numbers)
}

fn not_numbers() -> TchError {
    TchError::Torch("linear attention got rows that are not fp32 on the processor".to_owned())
}

/// The rows of each sequence.
fn parts<'a>(mut rows: &'a [f32], lengths: &[usize], width: usize) -> Vec<&'a [f32]> {
    let part = |length: &usize| {
        let (own, rest) = rows.split_at((length * width).min(rows.len()));
        rows = rest;
        own
    };
    lengths.iter().map(part).collect()
}

/// The rows of each sequence, for writing.
fn split<'a>(mut rows: &'a mut [f32], lengths: &[usize], width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(lengths.len());
    for length in lengths {
        let (own, rest) = rows.split_at_mut((length * width).min(rows.len()));
        parts.push(own);
        rows = rest;
    }
    parts
}
