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

    /// Views of the gradients of `A` `[rank, inputs]` and `B` `[outputs, rank]` of a module.
    pub(crate) fn module(&self, index: usize) -> TorchResult<(Tensor, Tensor)> {
        let module = &self.layout.modules()[index];
        let (a, b) = (module.a_range(), module.b_range());
        let (rank, inputs, outputs) = (module.rank as i64, module.inputs as i64, module.outputs as i64);
        Ok((
            self.flat.f_narrow(0, a.start as i64, a.len() as i64)?.f_view([rank, inputs])?,
            self.flat.f_narrow(0, b.start as i64, b.len() as i64)?.f_view([outputs, rank])?,
        ))
    }
}
