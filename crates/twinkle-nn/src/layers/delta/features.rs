//! From the projections' rows to what the delta rule reads: queries, keys, values, write strengths and decays of a chunk.

use tch::{Kind, Tensor};

use super::convolution::ShortConvolution;
use super::functions::{clear_from, round, sigmoid, silu_slope, unit, unit_backward};
use super::gates::{Gated, Gates};
use super::sequence::Rows;
use super::shape::Shape;
use super::weights::WeightSums;
use crate::torch::TorchResult;

/// One chunk of one sequence, head by head, fp32. Rows beyond the sequence's end are zero: they change nothing.
#[derive(Debug)]
pub(super) struct Features {
    /// Unit length over `√d_k`, `[n_k, 64, d_k]`.
    pub(super) q: Tensor,
    /// Unit length, `[n_k, 64, d_k]`.
    pub(super) k: Tensor,
    /// `[n_v, 64, d_v]`.
    pub(super) v: Tensor,
    /// The write strength, `[n_v, 64, 1]`.
    pub(super) beta: Tensor,
    /// The logarithm of the decay, `[n_v, 64, 1]`.
    pub(super) log_decay: Tensor,
}

/// What the backward of [`Features`] needs.
#[derive(Debug)]
pub(super) struct FeaturesTape {
    /// What the convolution saw, `[K − 1 + 64, 2K + W]`.
    window: Tensor,
    /// The convolution's output, `[64, 2K + W]`.
    convolved: Tensor,
    /// Its sigmoid.
    sigma: Tensor,
    q_inverse: Tensor,
    k_inverse: Tensor,
    gated: Gated,
    /// Rows that are there.
    count: i64,
}

/// The gradients of [`Features`], of the same shapes.
#[derive(Debug)]
pub(super) struct FeatureGradients {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) beta: Tensor,
    pub(super) log_decay: Tensor,
}

/// The frozen parts between the projections and the rule.
#[derive(Debug)]
pub(super) struct FeatureMap {
    pub(super) shape: Shape,
    pub(super) convolution: ShortConvolution,
    pub(super) gates: Gates,
    pub(super) kind: Kind,
}

impl FeatureMap {
    /// What queries are multiplied by.
    pub(super) fn query_scale(&self) -> f64 {
        (self.shape.key_dim as f64).powf(-0.5)
    }

    /// The features of a chunk: its `rows`, up to 64, and the `window` `[K − 1 + 64, 2K + W]` with the rows before.
    pub(super) fn forward(&self, window: &Tensor, rows: &Rows) -> TorchResult<(Features, FeaturesTape)> {
        let count = rows.b.size()[0];
        let convolved = self.convolution.forward(window)?;
        let (activated, sigma) = self.activate(&convolved)?;
        // The convolution reaches over the end of the sequence.
        clear_from(&activated, count)?;
        let (q, k, v) = self.shape.split(&activated)?;
        let by_head = |x: &Tensor| x.f_permute([1, 0, 2])?.f_contiguous();
        let (q, q_inverse) = unit(&by_head(&q)?)?;
        let (k, k_inverse) = unit(&by_head(&k)?)?;
        let gated = self.gates.forward(&rows.b, &rows.a)?;
        let features = Features {
            q: q.f_mul_scalar(self.query_scale())?,
            k,
            v: by_head(&v)?,
            beta: column(&gated.beta)?,
            log_decay: column(&gated.log_decay)?,
        };
        let window = window.shallow_clone();
        Ok((features, FeaturesTape { window, convolved, sigma, q_inverse, k_inverse, gated, count }))
    }

    /// `silu(x)`, rounded to the model's dtype, and `σ(x)`, fp32.
    pub(super) fn activate(&self, convolved: &Tensor) -> TorchResult<(Tensor, Tensor)> {
        let sigma = sigmoid(convolved)?;
        Ok((round(convolved.f_mul(&sigma)?, self.kind)?, sigma))
    }

    /// The gradients of `b` and `a`, `[count, n_v]` fp32; adds that of the window to `d_window`, fp32, and those of the
    /// weights to `sums`, if they are wanted.
    pub(super) fn backward(
        &self,
        features: &Features,
        tape: &FeaturesTape,
        d: &FeatureGradients,
        d_window: &Tensor,
        sums: Option<&mut WeightSums>,
    ) -> TorchResult<(Tensor, Tensor)> {
        let scale = self.query_scale();
        let dq = unit_backward(&features.q.f_div_scalar(scale)?, &tape.q_inverse, &d.q.f_mul_scalar(scale)?)?;
        let dk = unit_backward(&features.k, &tape.k_inverse, &d.k)?;
        let by_row = |x: &Tensor| x.f_permute([1, 0, 2])?.f_flatten(1, 2);
        let mut d_convolved = Tensor::f_cat(&[by_row(&dq)?, by_row(&dk)?, by_row(&d.v)?], 1)?;
        let _ = d_convolved.f_mul_(&silu_slope(&tape.convolved, &tape.sigma)?)?;
        clear_from(&d_convolved, tape.count)?;
        self.convolution.backward(&d_convolved, d_window)?;

        let rows = |x: &Tensor| x.f_squeeze_dim(-1)?.f_tr();
        let d_log_decay = rows(&d.log_decay)?;
        let (db, da) = self.gates.backward(&tape.gated, &rows(&d.beta)?, &d_log_decay)?;
        let (db, da) = (db.f_narrow(0, 0, tape.count)?, da.f_narrow(0, 0, tape.count)?);
        if let Some(sums) = sums {
            self.convolution.backward_taps(&tape.window, &d_convolved, &sums.taps)?;
            let over_rows = |x: &Tensor| x.f_sum_dim_intlist(0_i64, false, Kind::Float);
            let _ = sums.a_log.f_add_(&over_rows(&d_log_decay.f_mul(&tape.gated.log_decay)?)?)?;
            let _ = sums.dt_bias.f_add_(&over_rows(&da)?)?;
        }
        Ok((db, da))
    }
}

/// `[64, n_v]` as `[n_v, 64, 1]`.
fn column(x: &Tensor) -> TorchResult<Tensor> {
    x.f_tr()?.f_contiguous()?.f_unsqueeze(-1)
}
