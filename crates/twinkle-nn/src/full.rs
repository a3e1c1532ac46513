//! Training all weights: where each lies in one flat vector, and the network of such a vector.
//!
//! A run that trains all weights owns them: fp32 masters `[P]` in the order of the network, and a network of its own
//! whose weights are views of one vector, the masters rounded to the model's dtype, except for the few that every network
//! has in fp32. Gradients of weights are summed beside it in fp32, at the place of the weight: the passes find it by the
//! weight's address.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};
use twinkle_core::{Error, Result};

use crate::model::BaseModel;
use crate::torch::{TorchResult, device_error};
use crate::weights::{WeightFiles, published_name};

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
    /// Its name in the network.
    pub name: String,
    /// Its name in a published checkpoint, where another model may be around the text model.
    pub published: String,
    /// Its dimensions.
    pub shape: Vec<i64>,
    /// Where it starts.
    pub start: usize,
    /// Whether the network has it in fp32, whatever its own dtype.
    pub is_exact: bool,
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
    regions: Arc<[Region]>,
}

/// Where in memory the network has some of its weights.
#[derive(Debug)]
pub(crate) struct Region {
    /// The address of the first, and the bytes of each number.
    address: usize,
    element: usize,
    /// Which numbers of the flat vector they are.
    numbers: Range<usize>,
}

impl Region {
    fn new(memory: &Tensor, start: usize) -> Self {
        let numbers = start..start + memory.numel();
        Self { address: memory.data_ptr().addr(), element: memory.kind().elt_size_in_bytes(), numbers }
    }

    /// The place in the flat vector of `weight`, if it lies here.
    pub(crate) fn place(&self, weight: &Tensor) -> Option<usize> {
        let start = self.numbers.start + weight.data_ptr().addr().checked_sub(self.address)? / self.element;
        (start + weight.numel() <= self.numbers.end).then_some(start)
    }
}

impl TrainedModel {
    /// The network.
    #[must_use]
    pub fn model(&self) -> &BaseModel {
        &self.model
    }

    /// Where its weights lie in memory.
    pub(crate) fn regions(&self) -> &Arc<[Region]> {
        &self.regions
    }
}

impl BaseModel {
    /// Where each weight lies in a vector of all of them.
    #[must_use]
    pub fn weight_layout(&self) -> Arc<WeightLayout> {
        let mut layout = WeightLayout { weights: Vec::new(), count: 0, shared_embedding: None };
        for (name, weight) in self.weights() {
            let weight = weight.tensor();
            let is_exact = weight.kind() != self.kind;
            let published = published_name(name, &self.config);
            let weight = Weight { name: name.clone(), published, shape: weight.size(), start: layout.count, is_exact };
            layout.count = weight.range().end;
            if self.untied_head.is_none() && name == EMBEDDING {
                layout.shared_embedding = Some(weight.range());
            }
            layout.weights.push(weight);
        }
        Arc::new(layout)
    }

    /// The model's own weights, fp32 `[P]`.
    pub fn masters(&self) -> Result<Tensor> {
        let compute = || -> TorchResult<Tensor> {
            let numbers = |weight: &Tensor| weight.numel() as i64;
            let count = self.weights().iter().map(|(_, weight)| numbers(weight.tensor())).sum::<i64>();
            let masters = Tensor::f_empty([count], (Kind::Float, self.device))?;
            let mut start = 0;
            for weight in self.weights().iter().map(|(_, weight)| weight.tensor()) {
                masters.f_narrow(0, start, numbers(weight))?.f_copy_(&weight.f_flatten(0, -1)?)?;
                start += numbers(weight);
            }
            Ok(masters)
        };
        compute().map_err(device_error)
    }

    /// This network with other weights: `masters`, fp32 `[P]`, rounded to its dtype. They are copied.
    pub fn with_weights(&self, layout: &WeightLayout, masters: &Tensor) -> Result<TrainedModel> {
        if masters.size() != [layout.count as i64] {
            return Err(Error::internal(format!("{:?} weights for a model of {}", masters.size(), layout.count)));
        }
        let compute = || -> TorchResult<(BTreeMap<String, Tensor>, Vec<Region>)> {
            let rounded = masters.f_detach()?.f_to_dtype(self.kind, false, true)?;
            let mut named = BTreeMap::new();
            let mut regions = vec![Region::new(&rounded, 0)];
            for weight in &layout.weights {
                let range = weight.range();
                let source = if weight.is_exact { masters } else { &rounded };
                let mut own = source.f_narrow(0, range.start as i64, range.len() as i64)?;
                if weight.is_exact {
                    own = own.f_detach()?.f_to_dtype(Kind::Float, false, true)?;
                    regions.push(Region::new(&own, range.start));
                }
                named.insert(weight.name.clone(), own.f_view(weight.shape.as_slice())?);
            }
            Ok((named, regions))
        };
        let (named, regions) = compute().map_err(device_error)?;
        let files = WeightFiles::of_tensors(named, self.kind, self.device);
        let model = Self::assemble(self.config.clone(), files, (self.kind, self.device), self.row_tile)?;
        Ok(TrainedModel { model, regions: regions.into() })
    }
}
