//! Gated `DeltaNet` (Yang, Kautz & Hatamizadeh 2024): linear attention whose memory has a constant size.
//!
//! On the processor a kernel of its own goes through the tokens ([`native`]). For other devices, and as what the kernel is
//! compared with, there is the recurrence in chunks. Read in this order: [`features`] is what happens between the
//! projections and the memory (a short [`convolution`], unit lengths, [`gates`]), [`rule`] how the memory is read and
//! corrected in chunks of 64 tokens, [`sequence`] how a sequence goes through it, [`norm`] what is done with the answers.
//! [`weights`] is for runs that train all weights.

mod convolution;
mod features;
pub(super) mod functions;
mod gates;
mod native;
mod norm;
mod rule;
mod sequence;
mod shape;
mod state;
#[cfg(test)]
mod tests;
mod weights;

use tch::Tensor;
use twinkle_core::{Error, Result};
use twinkle_torch::Frozen;

use self::convolution::ShortConvolution;
use self::features::FeatureMap;
use self::gates::Gates;
use self::norm::GatedNorm;
use self::sequence::Rows;
use self::shape::Shape;
pub(crate) use self::state::DeltaState;
use self::weights::WeightSums;
use super::decoder::{CachedPass, Pass};
use super::full;
use super::linear::{Branch, Linear, Routing, Shrunk, backward_branches};
use super::load::LayerFiles;
use crate::config::DeltaConfig;
use crate::lora::{Gradients, Projection, Site};
use crate::torch::{TorchResult, device_error};

/// The linear attention of a decoder layer.
#[derive(Debug)]
pub(crate) struct GatedDeltaNet {
    query: Linear,
    key: Linear,
    value: Linear,
    /// `in_proj_z`, what the output is gated by.
    gate: Linear,
    /// `in_proj_b`.
    beta: Linear,
    /// `in_proj_a`.
    decay: Linear,
    output: Linear,
    features: FeatureMap,
    norm: GatedNorm,
    config: DeltaConfig,
}

/// What backward needs of [`GatedDeltaNet::forward`].
#[derive(Debug)]
pub(crate) struct DeltaTape {
    rows: Rows,
    /// The output's gate before its silu, `[T, W]`.
    z: Tensor,
    /// What the memory answered, `[T, W]`.
    answers: Tensor,
    shrunk: DeltaShrunk,
    output_shrunk: Shrunk,
}

/// What the adapters on the input projections computed.
#[derive(Debug)]
struct DeltaShrunk {
    query: Shrunk,
    key: Shrunk,
    value: Shrunk,
    gate: Shrunk,
    beta: Shrunk,
    decay: Shrunk,
}

impl GatedDeltaNet {
    pub(crate) fn load(files: &mut LayerFiles) -> Result<Self> {
        let config = files
            .config
            .delta
            .clone()
            .ok_or_else(|| Error::internal("a layer of linear attention without its dimensions"))?;
        let (heads, channels) = (config.value_head_count, config.conv_channels());
        let fused = files.take("linear_attn.in_proj_qkv.weight", &[channels, files.config.hidden_size])?;
        let index = files.index;
        let (key, value) = (config.key_width() as i64, config.value_width() as i64);
        let part = |projection: Projection, start: i64, width: i64| -> Result<Linear> {
            let weight = Frozen::new(fused.tensor().f_narrow(0, start, width).map_err(device_error)?);
            Ok(Linear { weight, bias: None, site: Site::Layer(index, projection) })
        };
        let (query, key, value) = (
            part(Projection::DeltaQuery, 0, key)?,
            part(Projection::DeltaKey, key, key)?,
            part(Projection::DeltaValue, 2 * key, value)?,
        );
        let taps = files.take("linear_attn.conv1d.weight", &[channels, 1, config.conv_kernel])?;
        let kind = taps.tensor().kind();
        let a_log = files.take_exact("linear_attn.A_log", &[heads])?;
        let dt_bias = files.take_exact("linear_attn.dt_bias", &[heads])?;
        let features = FeatureMap {
            shape: Shape::new(&config),
            convolution: ShortConvolution::new(taps).map_err(device_error)?,
            gates: Gates::new(a_log, dt_bias, kind).map_err(device_error)?,
            kind,
        };
        let norm = GatedNorm {
            weight: files.take("linear_attn.norm.weight", &[config.value_head_dim])?,
            epsilon: files.config.rms_norm_eps,
        };
        Ok(Self {
            query,
            key,
            value,
            gate: files.linear(Projection::DeltaGate, false)?,
            beta: files.linear(Projection::DeltaBeta, false)?,
            decay: files.linear(Projection::DeltaDecay, false)?,
            output: files.linear(Projection::DeltaOutput, false)?,
            features,
            norm,
            config,
        })
    }

    /// The output for the normed rows of whole sequences, `[T, H]`.
    pub(crate) fn forward(&self, normed: &Tensor, pass: &Pass) -> TorchResult<(Tensor, DeltaTape)> {
        let (rows, z, shrunk) = self.project(normed, pass.routing)?;
        let empty = DeltaState::empty(&self.config, z.kind(), z.device());
        let answers = self.read(&rows, pass, &empty)?;
        let (y, output_shrunk) = self.output.forward(&self.norm.forward(&answers, &z)?, pass.routing)?;
        Ok((y, DeltaTape { rows, z, answers, shrunk, output_shrunk }))
    }

    /// The gradient of the normed rows, given that of the output.
    pub(crate) fn backward(
        &self,
        normed: &Tensor,
        dy: &Tensor,
        tape: DeltaTape,
        pass: &Pass,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let DeltaTape { rows, z, answers, shrunk, output_shrunk } = tape;
        let gated = self.norm.forward(&answers, &z)?;
        let d_gated = self.output.backward(&gated, dy, &output_shrunk, pass.routing, gradients)?;
        full::each(pass.routing, gradients, |rows, sums| {
            let Some(mut sum) = sums.weight(self.norm.weight.tensor())? else { return Ok(()) };
            let own = self.norm.weight_gradient(&rows.of(&answers)?, &rows.of(&z)?, &rows.of(&d_gated)?)?;
            let _ = sum.f_add_(&own)?;
            Ok(())
        })?;
        let (d_answers, dz) = self.norm.backward(&answers, &z, &d_gated)?;
        drop((gated, d_gated, answers, z));

        let d_rows = self.read_backward(&rows, &d_answers, pass, gradients)?;
        drop((rows, d_answers));

        let Rows { qkv, b, a } = d_rows;
        let (key, value) = (self.config.key_width() as i64, self.config.value_width() as i64);
        let part = |start: i64, width: i64| qkv.f_narrow(1, start, width)?.f_contiguous();
        let (dq, dk, dv) = (part(0, key)?, part(key, key)?, part(2 * key, value)?);
        let branches = [
            Branch { linear: &self.query, dy: &dq, shrunk: &shrunk.query },
            Branch { linear: &self.key, dy: &dk, shrunk: &shrunk.key },
            Branch { linear: &self.value, dy: &dv, shrunk: &shrunk.value },
            Branch { linear: &self.gate, dy: &dz, shrunk: &shrunk.gate },
            Branch { linear: &self.beta, dy: &b, shrunk: &shrunk.beta },
            Branch { linear: &self.decay, dy: &a, shrunk: &shrunk.decay },
        ];
        backward_branches(normed, &branches, pass.routing, gradients)
    }

    /// The output for normed rows that continue cached sequences; the memories after them join the caches.
    pub(crate) fn forward_cached(&self, index: usize, normed: &Tensor, pass: &mut CachedPass) -> TorchResult<Tensor> {
        let (rows, z, _) = self.project(normed, pass.routing)?;
        let states: Vec<&DeltaState> =
            pass.caches.iter().map(|cache| cache.memory(index)).collect::<TorchResult<_>>()?;
        let (answers, after) = if FeatureMap::is_native(z.device()) {
            let lengths = vec![pass.rows_each(normed.size()[0]) as usize; states.len()];
            let (answers, after) = self.features.scan_native(&rows, &lengths, &states)?;
            (answers.f_to_kind(z.kind())?, after)
        } else {
            let answers = Tensor::f_empty_like(&z)?;
            let after = match states[..] {
                [state] if normed.size()[0] > 1 => vec![self.features.scan(&rows, state, &answers)?],
                _ => self.features.step(&rows, &states, &answers)?,
            };
            (answers, after)
        };
        for (cache, state) in pass.caches.iter_mut().zip(after) {
            cache.remember(index, state)?;
        }
        Ok(self.output.forward(&self.norm.forward(&answers, &z)?, pass.routing)?.0)
    }

    /// What the memories answer to whole sequences, `[T, W]`.
    fn read(&self, rows: &Rows, pass: &Pass, empty: &DeltaState) -> TorchResult<Tensor> {
        if FeatureMap::is_native(rows.qkv.device()) {
            let (lengths, states) = (lengths(pass), vec![empty; pass.spans.len()]);
            return self.features.scan_native(rows, &lengths, &states)?.0.f_to_kind(rows.qkv.kind());
        }
        let size = [rows.qkv.size()[0], self.config.value_width() as i64];
        let answers = Tensor::f_empty(size, (rows.qkv.kind(), rows.qkv.device()))?;
        for span in pass.spans {
            let (start, length) = (span.start as i64, span.length as i64);
            self.features.scan(&rows.narrow(start, length)?, empty, &answers.f_narrow(0, start, length)?)?;
        }
        Ok(answers)
    }

    /// The gradients of the rows that [`GatedDeltaNet::read`] got; those of its weights are added to the runs' that train all.
    fn read_backward(
        &self,
        rows: &Rows,
        d_answers: &Tensor,
        pass: &Pass,
        gradients: &[&mut Gradients],
    ) -> TorchResult<Rows> {
        let device = rows.qkv.device();
        let trained: Vec<Option<&Gradients>> = pass.spans.iter().map(|span| full::trained(span, gradients)).collect();
        let wanted = trained.iter().map(|run| run.map(|_| WeightSums::zeros(&self.features, device)).transpose());
        let mut sums: Vec<Option<WeightSums>> = wanted.collect::<TorchResult<_>>()?;
        let d_rows = if FeatureMap::is_native(device) {
            self.features.scan_backward_native(rows, &lengths(pass), d_answers, &mut sums)?
        } else {
            let d_rows = rows.empty_like()?;
            for (span, sums) in pass.spans.iter().zip(&mut sums) {
                let (start, length) = (span.start as i64, span.length as i64);
                let (rows, into) = (rows.narrow(start, length)?, d_rows.narrow(start, length)?);
                self.features.scan_backward(&rows, &d_answers.f_narrow(0, start, length)?, &into, sums.as_mut())?;
            }
            d_rows
        };
        for (run, sums) in trained.iter().zip(&sums) {
            if let (Some(run), Some(sums)) = (run, sums) {
                sums.add_to(&self.features, run)?;
            }
        }
        Ok(d_rows)
    }

    /// Normed rows to what the memory reads, and the output's gate.
    fn project(&self, normed: &Tensor, routing: &Routing) -> TorchResult<(Rows, Tensor, DeltaShrunk)> {
        let (queries, query) = self.query.forward(normed, routing)?;
        let (keys, key) = self.key.forward(normed, routing)?;
        let (values, value) = self.value.forward(normed, routing)?;
        let qkv = Tensor::f_cat(&[queries, keys, values], 1)?;
        let (z, gate) = self.gate.forward(normed, routing)?;
        let (b, beta) = self.beta.forward(normed, routing)?;
        let (a, decay) = self.decay.forward(normed, routing)?;
        Ok((Rows { qkv, b, a }, z, DeltaShrunk { query, key, value, gate, beta, decay }))
    }
}

/// How long each sequence is.
fn lengths(pass: &Pass) -> Vec<usize> {
    pass.spans.iter().map(|span| span.length).collect()
}
