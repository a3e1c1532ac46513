//! The short causal convolution over the queries', keys' and values' channels: each channel by itself, a few rows back.

use tch::{Kind, Tensor};
use twinkle_torch::Frozen;

use super::functions::round;
use crate::torch::TorchResult;

/// `y_t = Σ_i w_i ⊙ x_{t − K + 1 + i}`, rounded to the model's dtype once.
#[derive(Debug)]
pub(super) struct ShortConvolution {
    /// As the files have it, `[channels, 1, K]`.
    weight: Frozen,
    /// `w`, the oldest row's first, fp32 `[K, channels]`.
    taps: Frozen,
    kind: Kind,
}

impl ShortConvolution {
    /// Of a weight `[channels, 1, K]` in the model's dtype.
    pub(super) fn new(weight: Frozen) -> TorchResult<Self> {
        let own = weight.tensor();
        let taps = own.f_squeeze_dim(1)?.f_tr()?.f_to_kind(Kind::Float)?.f_contiguous()?;
        Ok(Self { taps: Frozen::new(taps), kind: own.kind(), weight })
    }

    /// `[channels, 1, K]`, where the model has it.
    pub(super) fn weight(&self) -> &Tensor {
        self.weight.tensor()
    }

    /// `w`, fp32 `[K, channels]`.
    pub(super) fn taps(&self) -> &Tensor {
        self.taps.tensor()
    }

    /// How many rows before its own a row sees, `K − 1`.
    pub(super) fn reach(&self) -> i64 {
        self.taps.tensor().size()[0] - 1
    }

    /// Rows `[K − 1 + n, channels]` to `[n, channels]`, fp32.
    pub(super) fn forward(&self, rows: &Tensor) -> TorchResult<Tensor> {
        let rows = rows.f_to_kind(Kind::Float)?;
        let count = rows.size()[0] - self.reach();
        self.sum(|tap| rows.f_narrow(0, tap, count))
    }

    /// The next row of each of some sequences: windows `[B, K, channels]` to `[B, channels]`, fp32.
    pub(super) fn step(&self, windows: &Tensor) -> TorchResult<Tensor> {
        let windows = windows.f_to_kind(Kind::Float)?;
        self.sum(|tap| windows.f_select(1, tap))
    }

    fn sum(&self, rows_of: impl Fn(i64) -> TorchResult<Tensor>) -> TorchResult<Tensor> {
        let tap = |index: i64| self.taps.tensor().f_get(index);
        let mut sum = rows_of(0)?.f_mul(&tap(0)?)?;
        for index in 1..=self.reach() {
            let _ = sum.f_add_(&rows_of(index)?.f_mul(&tap(index)?)?)?;
        }
        round(sum, self.kind)
    }

    /// Adds the gradient of `w` to `d_taps`, fp32 `[K, channels]`, given rows `[K − 1 + n, channels]` and that of the output.
    pub(super) fn backward_taps(&self, rows: &Tensor, dy: &Tensor, d_taps: &Tensor) -> TorchResult<()> {
        let count = dy.size()[0];
        for index in 0..=self.reach() {
            let product = dy.f_mul(&rows.f_narrow(0, index, count)?)?;
            let _ = d_taps.f_get(index)?.f_add_(&product.f_sum_dim_intlist(0_i64, false, Kind::Float)?)?;
        }
        Ok(())
    }

    /// Adds the gradient of the rows `[K − 1 + n, channels]` to `d_rows`, given that of the output, `[n, channels]`.
    pub(super) fn backward(&self, dy: &Tensor, d_rows: &Tensor) -> TorchResult<()> {
        let count = dy.size()[0];
        for index in 0..=self.reach() {
            let part = dy.f_mul(&self.taps.tensor().f_get(index)?)?;
            let _ = d_rows.f_narrow(0, index, count)?.f_add_(&part)?;
        }
        Ok(())
    }
}
