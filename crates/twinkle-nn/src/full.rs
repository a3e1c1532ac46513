//! Training all weights: where each lies in one flat vector, and the network of such a vector.
//!
//! A run that trains all weights owns them: fp32 masters `[P]` in the order of the network, and a network of its own
//! whose weights are views of one vector, the masters rounded to the model's dtype. Gradients of weights are summed
//! beside it in fp32, at the place of the weight: the passes find it by the weight's address.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};
use twinkle_core::{Error, Result};
use twinkle_torch::Frozen;

use crate::config::{MixerKind, MlpKind};
use crate::model::BaseModel;
use crate::torch::device_error;
use crate::weights::WeightFiles;

const EMBEDDING: &str = "model.embed_tokens.weight";

/// Every weight of a model and its place in one flat vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightLayout {
    weights: Vec<Weight>,
    count: usize,
    /// The numbers of an embedding that is the head as well, and whose two gradients are summed apart.
    shared_embedding: Option<Range<usize>>,
}

/// One weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Its name in a Hugging Face checkpoint.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<i64>,
    /// Where it starts.
    pub start: usize,
}

impl Weight {
    /// Where it lies.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.shape.iter().product::<i64>() as usize
    }

    /// Whether weight decay is for it: for matrices, not for norms and biases.
    #[must_use]
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

impl WeightLayout {
    /// The weights, in order and without gaps.
    #[must_use]
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// How many numbers there are, `P`.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many numbers their gradients have: `P`, and a shared embedding's once more.
    #[must_use]
    pub(crate) fn gradient_count(&self) -> usize {
        self.count + self.shared_embedding.as_ref().map_or(0, Range::len)
    }

    /// The numbers of an embedding that is the head as well. Its gradient as an embedding starts at `count`: were the
    /// two summed in one place, the sum's bits would depend on which data share a pass.
    pub(crate) fn shared_embedding(&self) -> Option<&Range<usize>> {
        self.shared_embedding.as_ref()
    }
}

/// A network with weights of its own.
#[derive(Debug)]
pub struct TrainedModel {
    model: BaseModel,
    /// All weights in the model's dtype, `[P]`.
    rounded: Frozen,
}

impl TrainedModel {
    /// The network.
    #[must_use]
    pub fn model(&self) -> &BaseModel {
        &self.model
    }

    /// Where its weights begin in memory, and the bytes of a number.
    pub(crate) fn place(&self) -> (usize, usize) {
        let rounded = self.rounded.tensor();
        (rounded.data_ptr().addr(), rounded.kind().elt_size_in_bytes())
    }
}

impl BaseModel {
    /// Where each weight lies in a vector of all of them.
    ///
    /// Errors: `Unsupported` for a model with parts whose weights cannot be trained.
    pub fn weight_layout(&self) -> Result<Arc<WeightLayout>> {
        let is_trainable =
            |layer: &crate::config::LayerKind| layer.mixer == MixerKind::FullAttention && layer.mlp == MlpKind::Dense;
        if !self.config.layers.iter().all(is_trainable) {
            return Err(Error::unsupported("all weights can be trained only of dense models with full attention")
                .hint("train adapters (`train_mode: lora`) of models with experts or linear attention"));
        }
        let mut layout = WeightLayout { weights: Vec::new(), count: 0, shared_embedding: None };
        for (name, weight) in self.weights() {
            let weight = Weight { name: name.clone(), shape: weight.tensor().size(), start: layout.count };
            layout.count = weight.range().end;
            if self.untied_head.is_none() && name == EMBEDDING {
                layout.shared_embedding = Some(weight.range());
            }
            layout.weights.push(weight);
        }
        Ok(Arc::new(layout))
    }

    /// The model's own weights, fp32 `[P]`.
    pub fn masters(&self) -> Result<Tensor> {
        let flat = |weight: &Tensor| weight.f_flatten(0, -1)?.f_to_kind(Kind::Float);
        let parts: Result<Vec<Tensor>, _> = self.weights().iter().map(|(_, weight)| flat(weight.tensor())).collect();
        parts.and_then(|parts| Tensor::f_cat(&parts, 0)).map_err(device_error)
    }

    /// This network with other weights: `masters`, fp32 `[P]`, rounded to its dtype. They are copied.
    pub fn with_weights(&self, layout: &WeightLayout, masters: &Tensor) -> Result<TrainedModel> {
        if masters.size() != [layout.count as i64] {
            return Err(Error::internal(format!("{:?} weights for a model of {}", masters.size(), layout.count)));
        }
        let rounded = masters.f_detach().and_then(|masters| masters.f_to_dtype(self.kind, false, true));
        let rounded = rounded.map_err(device_error)?;
        let view = |weight: &Weight| {
            let range = weight.range();
            rounded.f_narrow(0, range.start as i64, range.len() as i64)?.f_view(weight.shape.as_slice())
        };
        let named: Result<BTreeMap<_, _>, _> =
            layout.weights.iter().map(|weight| Ok((weight.name.clone(), view(weight)?))).collect();
        let files = WeightFiles::of_tensors(named.map_err(device_error)?, self.kind, self.device);
        let model = Self::assemble(self.config.clone(), files, (self.kind, self.device), self.row_tile)?;
        Ok(TrainedModel { model, rounded: Frozen::new(rounded) })
    }
}
