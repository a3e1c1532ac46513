//! Dividing and clipping gradients, as `torch.nn.utils.clip_grad_norm_` does.

use tch::{Device, Kind, Tensor};
use twinkle_core::call::{GradientClip, GradientNorm};
use twinkle_core::{Error, Result};

use super::BLOCK;

/// The norm of all gradients together, summed in fp64 in a fixed order.
#[must_use]
pub fn gradient_norm(gradients: &Tensor, norm: GradientNorm) -> f64 {
    let sizes = blocks(gradients).map(|block| match norm {
        GradientNorm::Two => block.square().sum(Kind::Double).double_value(&[]),
        GradientNorm::Infinity => block.abs().max().double_value(&[]),
    });
    match norm {
        GradientNorm::Two => sizes.sum::<f64>().sqrt(),
        // Not `max`: a norm with a NaN in it is NaN.
        GradientNorm::Infinity => sizes.fold(0.0, |most, size| if size > most || size.is_nan() { size } else { most }),
    }
}

/// What gradients of this norm are multiplied by: `min(1, max_norm / (norm + 1e-6))`.
#[must_use]
pub fn clip_factor(norm: f64, clip: GradientClip) -> f64 {
    (clip.max_norm / (norm + 1e-6)).min(1.0)
}

/// Multiplies every gradient.
pub fn scale(gradients: &Tensor, factor: f64) {
    if factor.to_bits() != 1.0_f64.to_bits() {
        for mut block in blocks(gradients) {
            let _ = block.g_mul_scalar_(factor);
        }
    }
}

/// Divides every gradient.
pub fn divide(gradients: &Tensor, divisor: f64) {
    if divisor.to_bits() != 1.0_f64.to_bits() {
        for mut block in blocks(gradients) {
            let _ = block.g_div_scalar_(divisor);
        }
    }
}

/// Checks what gradients are to be divided and clipped by.
pub fn validate(divide_by: f64, clip: Option<GradientClip>) -> Result<()> {
    if !(divide_by.is_finite() && divide_by > 0.0) {
        return Err(Error::invalid(format!("gradients are divided by `{divide_by}`, but it must be above 0")));
    }
    match clip {
        Some(GradientClip { max_norm, .. }) if !(max_norm.is_finite() && max_norm >= 0.0) => {
            Err(Error::invalid(format!("`max_norm` is {max_norm}, but must be a finite number of at least 0")))
        }
        _ => Ok(()),
    }
}

/// Views of the vector that one thread handles each.
fn blocks(gradients: &Tensor) -> impl Iterator<Item = Tensor> {
    let total = gradients.size().iter().product::<i64>();
    let length = if gradients.device() == Device::Cpu { BLOCK } else { total.max(1) };
    (0..total)
        .step_by(usize::try_from(length).unwrap_or(usize::MAX))
        .map(move |start| gradients.narrow(0, start, length.min(total - start)))
}
