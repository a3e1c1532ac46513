//! The gate on the attention's output: `out ⊙ σ(gate)`, both factors rounded to the model's dtype.

use tch::Tensor;

use super::delta::functions::sigmoid;
use crate::torch::TorchResult;

/// Gates rows `[T, n_h · d]`.
pub(crate) fn forward(out: &Tensor, gate: &Tensor) -> TorchResult<Tensor> {
    out.f_mul(&sigmoid(gate)?.f_to_kind(out.kind())?)
}

/// The gradients of `out` and `gate`, given that of the gated rows.
pub(crate) fn backward(out: &Tensor, gate: &Tensor, dy: &Tensor) -> TorchResult<(Tensor, Tensor)> {
    let sigma = sigmoid(gate)?;
    let d_out = dy.f_mul(&sigma)?.f_to_kind(out.kind())?;
    // σ' = σ (1 − σ)
    let mut slope = sigma.f_sub(&sigma.f_square()?)?;
    let _ = slope.f_mul_(dy)?;
    let _ = slope.f_mul_(out)?;
    Ok((d_out, slope.f_to_kind(gate.kind())?))
}
