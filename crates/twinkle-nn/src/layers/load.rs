//! Loading: where a layer finds its weights.

use twinkle_core::Result;
use twinkle_torch::Frozen;

use super::linear::Linear;
use super::norm::RmsNorm;
use crate::config::ModelConfig;
use crate::lora::{Projection, Site};
use crate::weights::WeightFiles;

/// The tensors of one decoder layer, named below `model.layers.{index}.`.
pub(crate) struct LayerFiles<'a> {
    pub(crate) files: &'a mut WeightFiles,
    pub(crate) config: &'a ModelConfig,
    /// Which layer, from 0.
    pub(crate) index: usize,
}

impl LayerFiles<'_> {
    /// Whether the files have the tensor `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.has(&self.name(name))
    }

    /// The tensor `name`, which must have this shape.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Frozen> {
        self.files.take(&self.name(name), shape)
    }

    /// The tensor `name` in fp32, whatever the model's dtype.
    pub(crate) fn take_exact(&mut self, name: &str, shape: &[usize]) -> Result<Frozen> {
        self.files.take_as(&self.name(name), shape, tch::Kind::Float)
    }

    /// A norm over the last `width` numbers, in the model's flavour.
    pub(crate) fn norm(&mut self, name: &str, width: usize) -> Result<RmsNorm> {
        let weight = self.take(&format!("{name}.weight"), &[width])?;
        Ok(RmsNorm { weight, epsilon: self.config.rms_norm_eps, flavour: self.config.norm })
    }

    /// The linear map of a projection.
    pub(crate) fn linear(&mut self, projection: Projection, bias: bool) -> Result<Linear> {
        let (outputs, inputs) = projection.shape(self.config);
        let name = projection.suffix();
        Ok(Linear {
            weight: self.take(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: if bias { Some(self.take(&format!("{name}.bias"), &[outputs])?) } else { None },
            site: Site::Layer(self.index, projection),
        })
    }

    fn name(&self, name: &str) -> String {
        format!("model.layers.{}.{name}", self.index)
    }
}
