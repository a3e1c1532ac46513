//! The state of one training run: everything that a replay of its journal must rebuild in the same bits.

use std::sync::Arc;

use tch::Tensor;
use twinkle_core::Result;
use twinkle_core::call::{AdamParams, LoraSpec};
use twinkle_core::ids::TenantId;
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, Gradients};

use crate::optimizer::{self, AdamState};

/// A run in memory. All tensors are fp32 `[P]`, flat in the order of the layout's modules.
#[derive(Debug)]
pub struct Run {
    /// Who owns it.
    pub tenant: TenantId,
    /// The adapter's shape.
    pub lora: LoraSpec,
    /// The user's notes, copied into its checkpoints.
    pub base_model: String,
    /// Where each module lies in the flat tensors.
    pub layout: Arc<AdapterLayout>,
    /// `A` and `B` of every module.
    pub parameters: Tensor,
    /// The sum of gradients since the last optimizer step.
    pub gradients: Gradients,
    /// The optimizer.
    pub adam: AdamState,
    /// `parameters` in the model's dtype; made when first needed after a step.
    adapter: Option<Arc<Adapter>>,
}

impl Run {
    /// A run with a fresh adapter: `A` random by the seed, `B` zero.
    pub fn fresh(tenant: TenantId, base_model: &str, lora: LoraSpec, base: &BaseModel) -> Result<Self> {
        let layout = Arc::new(AdapterLayout::new(base.config(), &lora)?);
        let parameters = layout.initialise(base.device());
        let adam = AdamState::fresh(&parameters);
        Ok(Self::assembled(tenant, base_model, layout, lora, parameters, adam))
    }

    /// A run from parts that were read from disk.
    #[must_use]
    pub fn assembled(
        tenant: TenantId,
        base_model: &str,
        layout: Arc<AdapterLayout>,
        lora: LoraSpec,
        parameters: Tensor,
        adam: AdamState,
    ) -> Self {
        let gradients = Gradients::zeros(&layout, parameters.device());
        Self { tenant, lora, base_model: base_model.to_owned(), layout, parameters, gradients, adam, adapter: None }
    }

    /// The adapter as the device multiplies by it.
    pub fn adapter(&mut self, base: &BaseModel) -> Arc<Adapter> {
        let (layout, parameters) = (&self.layout, &self.parameters);
        let adapter = self
            .adapter
            .get_or_insert_with(|| Arc::new(Adapter::from_parameters(layout, parameters, base.kind(), base.device())));
        Arc::clone(adapter)
    }

    /// One optimizer step that consumes the accumulated gradients. Returns the gradient norm before clipping.
    pub fn optimizer_step(&mut self, settings: &AdamParams) -> Result<f64> {
        optimizer::validate(settings)?;
        let norm = self.adam.step(&mut self.parameters, self.gradients.flat_mut(), settings)?;
        self.gradients.zero();
        self.adapter = None;
        Ok(norm)
    }
}
