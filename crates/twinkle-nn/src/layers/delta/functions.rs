//! Small functions and their derivatives, in fp32.

use tch::{Kind, Tensor};

use crate::torch::TorchResult;

/// What is added to a head's squared length before the root, as in the reference.
const UNIT_EPSILON: f64 = 1e-6;

/// `1 / (1 + e⁻ˣ)`. Written out, because libtorch's own rounds a number by its place among the others; `exp` does not.
pub(in crate::layers) fn sigmoid(x: &Tensor) -> TorchResult<Tensor> {
    let mut result = x.f_to_kind(Kind::Float)?.f_neg()?;
    let _ = result.f_exp_()?;
    let _ = result.f_add_scalar_(1.0)?;
    let _ = result.f_reciprocal_()?;
    Ok(result)
}

/// The derivative of `x σ(x)`, given `σ(x)`: `σ (1 + x (1 − σ))`.
pub(super) fn silu_slope(x: &Tensor, sigma: &Tensor) -> TorchResult<Tensor> {
    let mut slope = sigma.f_neg()?;
    let _ = slope.f_add_scalar_(1.0)?;
    let _ = slope.f_mul_(x)?;
    let _ = slope.f_add_scalar_(1.0)?;
    let _ = slope.f_mul_(sigma)?;
    Ok(slope)
}

/// The last dimension scaled to unit length, and what it was multiplied by.
pub(super) fn unit(x: &Tensor) -> TorchResult<(Tensor, Tensor)> {
    let mut length = x.f_square()?.f_sum_dim_intlist(-1_i64, true, Kind::Float)?;
    let _ = length.f_add_scalar_(UNIT_EPSILON)?;
    let inverse = length.f_rsqrt()?;
    Ok((x.f_mul(&inverse)?, inverse))
}

/// The gradient of `x`, given what [`unit`] made of it: `dx = r (dy − y · Σ y dy)`.
pub(super) fn unit_backward(y: &Tensor, inverse: &Tensor, dy: &Tensor) -> TorchResult<Tensor> {
    let along = y.f_mul(dy)?.f_sum_dim_intlist(-1_i64, true, Kind::Float)?;
    let mut dx = dy.f_sub(&y.f_mul(&along)?)?;
    let _ = dx.f_mul_(inverse)?;
    Ok(dx)
}

/// Rounds to `kind` and goes on in fp32.
pub(super) fn round(x: Tensor, kind: Kind) -> TorchResult<Tensor> {
    if kind == Kind::Float { Ok(x) } else { x.f_to_kind(kind)?.f_to_kind(Kind::Float) }
}

/// `x` in fp32 with zero rows below, `[rows, …]`.
pub(super) fn padded(x: &Tensor, rows: i64) -> TorchResult<Tensor> {
    let mut size = x.size();
    let count = std::mem::replace(&mut size[0], rows);
    if count == rows {
        return x.f_to_kind(Kind::Float);
    }
    let padded = Tensor::f_zeros(&size, (Kind::Float, x.device()))?;
    padded.f_narrow(0, 0, count)?.f_copy_(x)?;
    Ok(padded)
}

/// Sets the rows from `first` on to zero.
pub(super) fn clear_from(x: &Tensor, first: i64) -> TorchResult<()> {
    let rows = x.size()[0];
    if first < rows {
        let _ = x.f_narrow(0, first, rows - first)?.f_zero_()?;
    }
    Ok(())
}
