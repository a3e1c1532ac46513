//! The running sum of a run's gradients: of an adapter, or of all weights.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::layout::AdapterLayout;
use crate::config::ModelConfig;
use crate::full::{Region, TrainedModel, WeightLayout};
use crate::torch::TorchResult;

/// Gradients in one flat fp32 vector, summed in the order the data came: of an adapter's modules, `[P]`, or of all
/// weights of a model, whose shared embedding is then twice in it.
#[derive(Debug)]
pub struct Gradients {
    layout: Arc<AdapterLayout>,
    flat: Tensor,
    weights: Option<OfWeights>,
}

/// What gradients of all weights need to find a weight's place.
#[derive(Clone, Debug)]
struct OfWeights {
    layout: Arc<WeightLayout>,
    /// Where the weights that passes multiply by lie in memory.
    regions: Arc<[Region]>,
}

impl Gradients {
    /// No gradient yet.
    #[must_use]
    pub fn zeros(layout: &Arc<AdapterLayout>, device: Device) -> Self {
        let flat = Tensor::zeros([layout.parameter_count() as i64], (Kind::Float, device));
        Self { layout: Arc::clone(layout), flat, weights: None }
    }

    /// No gradient yet of any weight of a model; its adapter has no modules.
    #[must_use]
    pub fn of_weights(config: &ModelConfig, layout: &Arc<WeightLayout>, device: Device) -> Self {
        let flat = Tensor::zeros([layout.gradient_count() as i64], (Kind::Float, device));
        let weights = OfWeights { layout: Arc::clone(layout), regions: Arc::default() };
        Self { layout: Arc::new(AdapterLayout::without_modules(config)), flat, weights: Some(weights) }
    }

    /// Says by which weights the next passes multiply.
    pub fn attach(&mut self, trained: &TrainedModel) {
        if let Some(weights) = &mut self.weights {
            weights.regions = Arc::clone(trained.regions());
        }
    }

    /// Adds up what is apart and gives the gradient of every parameter once, `[P]`.
    #[must_use = "a view of the gradients"]
    pub fn merged(&mut self) -> Tensor {
        let Some(OfWeights { layout, .. }) = &self.weights else { return self.flat.shallow_clone() };
        if let Some(shared) = layout.shared_embedding() {
            let mut aside = self.flat.narrow(0, layout.count() as i64, shared.len() as i64);
            let _ = self.flat.narrow(0, shared.start as i64, shared.len() as i64).g_add_(&aside);
            let _ = aside.zero_();
        }
        self.flat.narrow(0, 0, layout.count() as i64)
    }

    /// Whether these are of all weights.
    pub(crate) fn are_of_weights(&self) -> bool {
        self.weights.is_some()
    }

    /// A view of the gradient of a weight that a pass multiplies by, or of a part of it.
    pub(crate) fn weight(&self, weight: &Tensor) -> TorchResult<Option<Tensor>> {
        let Some(start) = self.place(weight) else { return Ok(None) };
        self.flat.f_narrow(0, start as i64, weight.numel() as i64)?.f_view(weight.size().as_slice()).map(Some)
    }

    /// A view of the gradient of the embedding by what it gives tokens, apart from that of a head it is as well.
    pub(crate) fn embedding(&self, weight: &Tensor) -> TorchResult<Option<Tensor>> {
        match self.weights.as_ref().and_then(|weights| Some((weights, weights.layout.shared_embedding()?))) {
            None => self.weight(weight),
            Some((weights, shared)) => {
                let aside = self.flat.f_narrow(0, weights.layout.count() as i64, shared.len() as i64)?;
                aside.f_view(weight.size().as_slice()).map(Some)
            }
        }
    }

    fn place(&self, weight: &Tensor) -> Option<usize> {
        self.weights.as_ref()?.regions.iter().find_map(|region| region.place(weight))
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
        Self { layout: Arc::clone(&self.layout), flat: self.flat.copy(), weights: self.weights.clone() }
    }

    /// Whether every number is finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        // A sum is finite unless a term is not; fp64 cannot overflow on fp32 terms of any real count. Part by part, because
        // libtorch makes a copy in fp64 first.
        const PART: i64 = 1 << 20;
        let length = self.flat.numel() as i64;
        (0..length).step_by(PART as usize).all(|start| {
            self.flat.narrow(0, start, PART.min(length - start)).sum(Kind::Double).double_value(&[]).is_finite()
        })
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
