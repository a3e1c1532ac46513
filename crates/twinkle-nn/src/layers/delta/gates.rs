//! How strongly a token is written into the memory, and how much the memory forgets before it.

use tch::{Kind, Tensor};
use twinkle_torch::Frozen;

use super::functions::{clear_from, padded, round, sigmoid};
use super::shape::CHUNK;
use crate::torch::TorchResult;

/// `β = σ(b)` and the logarithm of the decay, `g = −e^(A_log) · softplus(a + dt_bias)`.
#[derive(Debug)]
pub(super) struct Gates {
    /// fp32 `[n_v]`.
    a_log: Frozen,
    /// `−e^(A_log)`, fp32 `[n_v]`.
    rate: Frozen,
    /// fp32 `[n_v]`.
    dt_bias: Frozen,
    kind: Kind,
}

/// The gates of one chunk's rows, fp32 `[64, n_v]` each.
#[derive(Debug)]
pub(super) struct Gated {
    /// The write strength.
    pub(super) beta: Tensor,
    /// The logarithm of the decay, at most 0.
    pub(super) log_decay: Tensor,
    /// `a + dt_bias`.
    time_step: Tensor,
}

impl Gates {
    /// Of `A_log` and `dt_bias` in fp32, for a model that computes in `kind`.
    pub(super) fn new(a_log: Frozen, dt_bias: Frozen, kind: Kind) -> TorchResult<Self> {
        Ok(Self { rate: Frozen::new(a_log.tensor().f_exp()?.f_neg()?), a_log, dt_bias, kind })
    }

    /// `A_log` and `dt_bias`, where the model has them.
    pub(super) fn weights(&self) -> (&Tensor, &Tensor) {
        (self.a_log.tensor(), self.dt_bias.tensor())
    }

    /// `−e^(A_log)` and `dt_bias`, fp32 `[n_v]`.
    pub(super) fn parameters(&self) -> (&Tensor, &Tensor) {
        (self.rate.tensor(), self.dt_bias.tensor())
    }

    /// The gates of up to 64 rows `[n, n_v]`. Rows that are missing write and forget nothing.
    ///
    /// Always 64 rows are computed: a row then never lies in a rest that does not fill a vector register, whose softplus
    /// libtorch rounds differently.
    pub(super) fn forward(&self, b: &Tensor, a: &Tensor) -> TorchResult<Gated> {
        let count = a.size()[0];
        let beta = round(sigmoid(&padded(b, CHUNK)?)?, self.kind)?;
        let mut time_step = padded(a, CHUNK)?;
        time_step = time_step.f_add(self.dt_bias.tensor())?;
        let log_decay = time_step.f_softplus()?.f_mul(self.rate.tensor())?;
        clear_from(&beta, count)?;
        clear_from(&log_decay, count)?;
        Ok(Gated { beta, log_decay, time_step })
    }

    /// The gradients of `b` and `a`, fp32 `[64, n_v]`. That of `A_log` is the sum over the rows of `g` times the gradient of
    /// `g`, for `−e^(A_log)` is its own derivative, and that of `dt_bias` the sum of those of `a`.
    pub(super) fn backward(
        &self,
        gated: &Gated,
        d_beta: &Tensor,
        d_log_decay: &Tensor,
    ) -> TorchResult<(Tensor, Tensor)> {
        let db = d_beta.f_mul(&gated.beta.f_sub(&gated.beta.f_square()?)?)?;
        let mut da = sigmoid(&gated.time_step)?;
        let _ = da.f_mul_(self.rate.tensor())?;
        let _ = da.f_mul_(d_log_decay)?;
        Ok((db, da))
    }
}
