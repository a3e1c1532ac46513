//! The running sum of an adapter's gradients.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::layout::AdapterLayout;
use crate::torch::TorchResult;

/// Gradients of all modules in one flat fp32 vector `[P]`, summed in the order the data came.
#[derive(Debug)]
pub struct Gradients {
    layout: Arc<AdapterLayout>,
    flat: Tensor,
}

impl Gradients {
    /// No gradient yet.
    #[must_use]
    pub fn zeros(layout: &Arc<AdapterLayout>, device: Device) -> Self {
        let flat = Tensor::zeros([layout.parameter_count() as i64], (Kind::Float, device));
        Self { layout: Arc::clone(layout), flat }
    }

    /// The layout of the vector.
    #[must_use]
    pub fn layout(&self) -> &Arc<AdapterLayout> {
        &self.layout
    }

    /// The vector, fp32 `[P]`.
    #[must_use = "a view of the gradients"]
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// The vector, for a step that consumes it or for restoring it.
    #[must_use = "a view of the gradients"]
    pub fn flat_mut(&mut self) -> &mut Tensor {
        &mut self.flat
    }

    /// Sets every gradient to zero.
    pub fn zero(&mut self) {
        let _ = self.flat.zero_();
    }

    /// An independent copy.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { layout: Arc::clone(&self.layout), flat: self.flat.copy() }
    }

    /// Whether every number is finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        // A sum is finite unless a term is not; fp64 cannot overflow on fp32 terms of any real count.
        self.flat.sum(Kind::Double).double_value(&[]).is_finite()
    }

    /// Views of the gradients of `A` and `B` of a module, in the shapes of its factors.
    pub(crate) fn module(&self, index: usize) -> TorchResult<(Tensor, Tensor)> {
        let module = &self.layout.modules()[index];
        let part = |range: std::ops::Range<usize>, shape: &[usize]| {
            let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
            self.flat.f_narrow(0, range.start as i64, range.len() as i64)?.f_view(shape.as_slice())
        };
        Ok((part(module.a_range(), &module.a_shape())?, part(module.b_range(), &module.b_shape())?))
    }
}
