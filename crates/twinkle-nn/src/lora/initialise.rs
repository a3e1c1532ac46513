//! The start of an adapter: `A` random, `B` zero, so that the model begins as the base model.

use tch::{Device, Tensor};

use super::layout::AdapterLayout;
use crate::philox::{Philox, stream_of_name};

impl AdapterLayout {
    /// The initial parameters, fp32 `[P]`.
    ///
    /// `A` is uniform in `±1/√inputs` (PEFT's Kaiming-uniform with `a = √5`, He et al. 2015). Each number depends on the
    /// seed, its module's name and its index only, so the start does not depend on order, slot or machine.
    #[must_use = "the parameters are returned, not stored"]
    pub fn initialise(&self, device: Device) -> Tensor {
        let mut flat = vec![0.0_f32; self.parameter_count()];
        for module in self.modules() {
            let stream = Philox::new(self.spec().seed, stream_of_name(&module.name));
            let bound = 1.0 / (module.inputs as f32).sqrt();
            for (index, value) in flat[module.a_range()].iter_mut().enumerate() {
                *value = (2.0 * stream.uniform(index as u64) - 1.0) * bound;
            }
        }
        Tensor::from_slice(&flat).to_device(device)
    }
}
