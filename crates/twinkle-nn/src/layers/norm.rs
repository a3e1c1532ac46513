//! RMS normalisation (Zhang & Sennrich 2019), rounded where transformers rounds.

use tch::{Kind, Tensor};
use twinkle_torch::Frozen;

use crate::torch::TorchResult;

/// Rows that are normalised at once, so that the fp32 intermediates stay in the processor's cache.
const BLOCK: i64 = 256;

/// `y = w · cast(x / √(mean x² + ε))`: the mean in fp32, the cast to the model's dtype before `w`.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Frozen,
    pub(crate) epsilon: f64,
}

impl RmsNorm {
    /// Normalises the last dimension of `x`, `[rows, …, width]`.
    pub(crate) fn forward(&self, x: &Tensor) -> TorchResult<Tensor> {
        let y = Tensor::f_empty_like(x)?;
        for_blocks(x.size()[0], |start, rows| {
            let x = x.f_narrow(0, start, rows)?;
            let x32 = x.f_to_kind(Kind::Float)?;
            let mut normal = x32.f_mul(&self.inverse_deviation(&x32)?)?;
            if x.kind() != Kind::Float {
                normal = normal.f_to_kind(x.kind())?;
            }
            let _ = normal.f_mul_out(&y.f_narrow(0, start, rows)?, self.weight.tensor())?;
            Ok(())
        })?;
        Ok(y)
    }

    /// The gradient of the input `x`, given that of the output. With `n = x · r`: `dx = r · (g − n · mean(g · n))`, `g = w · dy`.
    pub(crate) fn backward(&self, x: &Tensor, dy: &Tensor) -> TorchResult<Tensor> {
        let dx = Tensor::f_empty_like(x)?;
        self.backward_blocks(x, dy, |start, rows, block| {
            let mut target = dx.f_narrow(0, start, rows)?;
            target.f_copy_(&block)
        })?;
        Ok(dx)
    }

    /// Adds the gradient of the input `x` to `dx`, the gradient that reaches it past the norm.
    pub(crate) fn backward_into(&self, x: &Tensor, dy: &Tensor, dx: &Tensor) -> TorchResult<()> {
        self.backward_blocks(x, dy, |start, rows, block| {
            let _ = dx.f_narrow(0, start, rows)?.f_add_(&block)?;
            Ok(())
        })
    }

    fn backward_blocks(
        &self,
        x: &Tensor,
        dy: &Tensor,
        mut receive: impl FnMut(i64, i64, Tensor) -> TorchResult<()>,
    ) -> TorchResult<()> {
        for_blocks(x.size()[0], |start, rows| {
            let x32 = x.f_narrow(0, start, rows)?.f_to_kind(Kind::Float)?;
            let inverse = self.inverse_deviation(&x32)?;
            let normal = x32.f_mul(&inverse)?;
            let mut g = dy.f_narrow(0, start, rows)?.f_mul(self.weight.tensor())?.f_to_kind(Kind::Float)?;
            let mean = g.f_mul(&normal)?.f_mean_dim(-1, true, Kind::Float)?;
            let _ = g.f_sub_(&normal.f_mul(&mean)?)?;
            let _ = g.f_mul_(&inverse)?;
            receive(start, rows, g)
        })
    }

    /// `1 / √(mean x² + ε)` per row, fp32.
    fn inverse_deviation(&self, x32: &Tensor) -> TorchResult<Tensor> {
        let mut variance = x32.f_square()?.f_mean_dim(-1, true, Kind::Float)?;
        let _ = variance.f_add_scalar_(self.epsilon)?;
        variance.f_rsqrt()
    }
}

fn for_blocks(rows: i64, mut work: impl FnMut(i64, i64) -> TorchResult<()>) -> TorchResult<()> {
    let mut start = 0;
    while start < rows {
        let count = BLOCK.min(rows - start);
        work(start, count)?;
        start += count;
    }
    Ok(())
}
