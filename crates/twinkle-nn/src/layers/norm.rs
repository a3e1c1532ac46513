//! RMS normalisation (Zhang & Sennrich 2019), rounded where transformers rounds.

use tch::{Kind, Tensor};
use twinkle_torch::Frozen;

use super::native;
use crate::config::NormFlavour;
use crate::torch::TorchResult;

/// Rows that are normalised at once, so that the fp32 intermediates stay in the processor's cache.
const BLOCK: i64 = 256;

/// `y = w · cast(x / √(mean x² + ε))`: the mean in fp32, the cast to the model's dtype before `w`. Zero-centred it is
/// `cast((1 + w) · x / √(mean x² + ε))`.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Frozen,
    pub(crate) epsilon: f64,
    pub(crate) flavour: NormFlavour,
}

impl RmsNorm {
    /// Normalises the last dimension of `x`, `[rows, …, width]`.
    pub(crate) fn forward(&self, x: &Tensor) -> TorchResult<Tensor> {
        if native::is_plain(x) {
            let x = x.f_contiguous()?;
            let mut y = Tensor::f_empty_like(&x)?;
            let weight = native::numbers(self.weight.tensor())?;
            twinkle_kernels::rms_norm(
                native::numbers(&x)?,
                weight,
                self.epsilon as f32,
                self.flavour.into(),
                native::numbers_mut(&mut y)?,
            );
            return Ok(y);
        }
        let y = Tensor::f_empty_like(x)?;
        let factor = self.factor()?;
        for_blocks(x.size()[0], |start, rows| {
            let x = x.f_narrow(0, start, rows)?;
            let x32 = x.f_to_kind(Kind::Float)?;
            let mut normal = x32.f_mul(&self.inverse_deviation(&x32)?)?;
            let mut target = y.f_narrow(0, start, rows)?;
            if self.flavour == NormFlavour::ZeroCentred {
                let _ = normal.f_mul_(&factor)?;
                return target.f_copy_(&normal);
            }
            if x.kind() != Kind::Float {
                normal = normal.f_to_kind(x.kind())?;
            }
            let _ = normal.f_mul_out(&target, &factor)?;
            Ok(())
        })?;
        Ok(y)
    }

    /// What the weight multiplies, fp32: `x / √(mean x² + ε)`, rounded where the forward pass rounds it.
    pub(crate) fn normal(&self, x: &Tensor) -> TorchResult<Tensor> {
        let x32 = x.f_to_kind(Kind::Float)?;
        let normal = x32.f_mul(&self.inverse_deviation(&x32)?)?;
        match self.flavour {
            NormFlavour::ZeroCentred => Ok(normal),
            NormFlavour::Plain => normal.f_to_kind(x.kind())?.f_to_kind(Kind::Float),
        }
    }

    /// The gradient of the input `x`, given that of the output. With `n = x · r`: `dx = r · (g − n · mean(g · n))`, `g = w · dy`.
    pub(crate) fn backward(&self, x: &Tensor, dy: &Tensor) -> TorchResult<Tensor> {
        if native::is_plain(x) {
            let dx = Tensor::f_zeros(x.size(), (x.kind(), x.device()))?;
            self.backward_into(x, dy, &dx)?;
            return Ok(dx);
        }
        let dx = Tensor::f_empty_like(x)?;
        self.backward_blocks(x, dy, |start, rows, block| {
            let mut target = dx.f_narrow(0, start, rows)?;
            target.f_copy_(&block)
        })?;
        Ok(dx)
    }

    /// Adds the gradient of the input `x` to `dx`, the gradient that reaches it past the norm.
    pub(crate) fn backward_into(&self, x: &Tensor, dy: &Tensor, dx: &Tensor) -> TorchResult<()> {
        if native::is_plain(x) && dx.is_contiguous() {
            let (x, dy) = (x.f_contiguous()?, dy.f_contiguous()?);
            twinkle_kernels::rms_norm_backward(
                native::numbers(&x)?,
                native::numbers(self.weight.tensor())?,
                self.epsilon as f32,
                self.flavour.into(),
                native::numbers(&dy)?,
                native::numbers_mut(&mut dx.shallow_clone())?,
            );
            return Ok(());
        }
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
        let factor = self.factor()?;
        for_blocks(x.size()[0], |start, rows| {
            let x32 = x.f_narrow(0, start, rows)?.f_to_kind(Kind::Float)?;
            let inverse = self.inverse_deviation(&x32)?;
            let normal = x32.f_mul(&inverse)?;
            let mut g = dy.f_narrow(0, start, rows)?.f_mul(&factor)?.f_to_kind(Kind::Float)?;
            let mean = g.f_mul(&normal)?.f_mean_dim(-1, true, Kind::Float)?;
            let _ = g.f_sub_(&normal.f_mul(&mean)?)?;
            let _ = g.f_mul_(&inverse)?;
            receive(start, rows, g)
        })
    }

    /// What the normalised rows are multiplied by: `w`, or `1 + w` in fp32.
    fn factor(&self) -> TorchResult<Tensor> {
        match self.flavour {
            NormFlavour::Plain => Ok(self.weight.tensor().shallow_clone()),
            NormFlavour::ZeroCentred => self.weight.tensor().f_to_kind(Kind::Float)?.f_add_scalar(1.0),
        }
    }

    /// `1 / √(mean x² + ε)` per row, fp32.
    fn inverse_deviation(&self, x32: &Tensor) -> TorchResult<Tensor> {
        let mut variance = x32.f_square()?.f_mean_dim(-1, true, Kind::Float)?;
        let _ = variance.f_add_scalar_(self.epsilon)?;
        variance.f_rsqrt()
    }
}

impl From<NormFlavour> for twinkle_kernels::NormFlavour {
    fn from(flavour: NormFlavour) -> Self {
        match flavour {
            NormFlavour::Plain => Self::Plain,
            NormFlavour::ZeroCentred => Self::ZeroCentred,
        }
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
