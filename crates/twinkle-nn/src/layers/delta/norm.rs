//! The gated norm on the memory's answers: `w · cast(o / √(mean o² + ε)) · silu(z)`, per value head.

use tch::{Kind, Tensor};
use twinkle_torch::Frozen;

use super::functions::{sigmoid, silu_slope};
use crate::torch::TorchResult;

/// Rows handled at once, so that they stay in the processor's cache.
const BLOCK: i64 = 64;

/// An RMS norm whose output is gated. Its weight is never zero-centred.
#[derive(Debug)]
pub(super) struct GatedNorm {
    /// `[d_v]`, in the model's dtype.
    pub(super) weight: Frozen,
    pub(super) epsilon: f64,
}

impl GatedNorm {
    /// Norms and gates rows `[n, W]`.
    pub(super) fn forward(&self, o: &Tensor, z: &Tensor) -> TorchResult<Tensor> {
        let y = Tensor::f_empty_like(o)?;
        for_blocks(o.size()[0], |start, rows| {
            let block = |x: &Tensor| self.heads(&x.f_narrow(0, start, rows)?);
            let (o, z) = (block(o)?, block(z)?);
            let o32 = o.f_to_kind(Kind::Float)?;
            let normal = o32.f_mul(&self.inverse_deviation(&o32)?)?.f_to_kind(o.kind())?;
            let weighted = normal.f_mul(self.weight.tensor())?;
            let mut gate = sigmoid(&z)?;
            let _ = gate.f_mul_(&z)?;
            let _ = gate.f_mul_(&weighted)?;
            block(&y)?.f_copy_(&gate)
        })?;
        Ok(y)
    }

    /// The gradients of `o` and `z`, given that of the output.
    pub(super) fn backward(&self, o: &Tensor, z: &Tensor, dy: &Tensor) -> TorchResult<(Tensor, Tensor)> {
        let (d_o, d_z) = (Tensor::f_empty_like(o)?, Tensor::f_empty_like(z)?);
        for_blocks(o.size()[0], |start, rows| {
            let block = |x: &Tensor| self.heads(&x.f_narrow(0, start, rows)?);
            let in_fp32 = |x: &Tensor| block(x)?.f_to_kind(Kind::Float);
            let (o, z, dy) = (in_fp32(o)?, in_fp32(z)?, in_fp32(dy)?);
            let inverse = self.inverse_deviation(&o)?;
            let normal = o.f_mul(&inverse)?;
            let sigma = sigmoid(&z)?;
            let mut weighted = dy.f_mul(self.weight.tensor())?;
            let d_gate = weighted.f_mul(&normal)?;
            block(&d_z)?.f_copy_(&d_gate.f_mul(&silu_slope(&z, &sigma)?)?)?;
            // n = o · r: do = r · (g − n · mean(g · n)), g the gradient of n.
            let _ = weighted.f_mul_(&sigma)?;
            let mut g = weighted.f_mul(&z)?;
            let mean = g.f_mul(&normal)?.f_mean_dim(-1, true, Kind::Float)?;
            let _ = g.f_sub_(&normal.f_mul(&mean)?)?;
            let _ = g.f_mul_(&inverse)?;
            block(&d_o)?.f_copy_(&g)
        })?;
        Ok((d_o, d_z))
    }

    /// The gradient of the weight, fp32 `[d_v]`, given that of the output; the factors are rounded as on the way forward.
    pub(super) fn weight_gradient(&self, o: &Tensor, z: &Tensor, dy: &Tensor) -> TorchResult<Tensor> {
        let mut sum = Tensor::f_zeros(self.weight.tensor().size(), (Kind::Float, o.device()))?;
        for_blocks(o.size()[0], |start, rows| {
            let block = |x: &Tensor| self.heads(&x.f_narrow(0, start, rows)?);
            let (o, z, dy) = (block(o)?, block(z)?, block(dy)?);
            let o32 = o.f_to_kind(Kind::Float)?;
            let normal = o32.f_mul(&self.inverse_deviation(&o32)?)?.f_to_kind(o.kind())?;
            let mut product = sigmoid(&z)?;
            let _ = product.f_mul_(&z)?;
            let _ = product.f_mul_(&normal)?;
            let _ = product.f_mul_(&dy)?;
            let _ = sum.f_add_(&product.f_flatten(0, 1)?.f_sum_dim_intlist(0_i64, false, Kind::Float)?)?;
            Ok(())
        })?;
        Ok(sum)
    }

    /// Rows `[n, W]` as heads `[n, n_v, d_v]`.
    fn heads(&self, rows: &Tensor) -> TorchResult<Tensor> {
        rows.f_view([rows.size()[0], -1, self.weight.tensor().size()[0]])
    }

    fn inverse_deviation(&self, o32: &Tensor) -> TorchResult<Tensor> {
        let mut variance = o32.f_square()?.f_mean_dim(-1, true, Kind::Float)?;
        let _ = variance.f_add_scalar_(self.epsilon)?;
        variance.f_rsqrt()
    }
}

fn for_blocks(rows: i64, mut work: impl FnMut(i64, i64) -> TorchResult<()>) -> TorchResult<()> {
    for start in (0..rows).step_by(BLOCK as usize) {
        work(start, BLOCK.min(rows - start))?;
    }
    Ok(())
}
