//! The state of one training run: everything that a replay of its journal must rebuild in the same bits.

use std::sync::Arc;

use tch::{Kind, Tensor};
use twinkle_core::call::{AdamParams, GradientClip, GradientNorm, LoraSpec, OptimizerSpec, OptimizerWork};
use twinkle_core::ids::TenantId;
use twinkle_core::{Error, Result};
use twinkle_nn::full::TrainedModel;
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, Gradients};

use crate::accumulation::Accumulation;
use crate::full::FullWeights;
use crate::optimizer::shape::{self, ParameterShape};
use crate::optimizer::{Optimizer, Parameters, clip};

/// A run in memory. All tensors are fp32 `[P]`, flat in the order of the layout's modules, or of the network's weights
/// where all of them are trained.
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
    /// `A` and `B` of every module; or every weight.
    pub parameters: Tensor,
    /// The sum of gradients since the last optimizer step.
    pub gradients: Gradients,
    /// How far it is on its way to the next update.
    pub accumulation: Accumulation,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Where each parameter lies in the flat tensors.
    shapes: Vec<ParameterShape>,
    /// `parameters` in the model's dtype; made when first needed after a step.
    adapter: Option<Arc<Adapter>>,
    /// The dtype of that.
    rounded: Kind,
    /// Of a run that trains all weights.
    pub(crate) full: Option<FullWeights>,
}

impl Run {
    /// A run with a fresh adapter: `A` random by the seed, `B` zero.
    ///
    /// Or, where `lora` asks for it, one that begins with the base's own weights and trains all of them.
    pub fn fresh(tenant: TenantId, base_model: &str, lora: LoraSpec, base: &BaseModel) -> Result<Self> {
        if lora.full {
            let full = FullWeights::of(base);
            let optimizer = Optimizer::adam_w(&full.shapes(), base.device())?;
            let masters = base.masters()?;
            return Ok(Self::of_all_weights((tenant, base_model, lora), base, full, masters, optimizer));
        }
        let layout = Arc::new(AdapterLayout::new(base.config(), &lora)?);
        let parameters = layout.initialise(base.device());
        let optimizer = Optimizer::for_adapter(&layout, base.device())?;
        Ok(Self::assembled((tenant, base_model, lora), base, layout, parameters, optimizer))
    }

    /// A run from parts that were read from disk.
    #[must_use]
    pub fn assembled(
        (tenant, base_model, lora): (TenantId, &str, LoraSpec),
        base: &BaseModel,
        layout: Arc<AdapterLayout>,
        parameters: Tensor,
        optimizer: Optimizer,
    ) -> Self {
        let gradients = Gradients::zeros(&layout, parameters.device());
        let shapes = shape::of_adapter(&layout);
        Self {
            tenant,
            lora,
            base_model: base_model.to_owned(),
            layout,
            parameters,
            gradients,
            accumulation: Accumulation::default(),
            optimizer,
            shapes,
            adapter: None,
            rounded: base.kind(),
            full: None,
        }
    }

    /// A run that trains all weights, which begin as `masters`.
    #[must_use]
    pub(crate) fn of_all_weights(
        (tenant, base_model, lora): (TenantId, &str, LoraSpec),
        base: &BaseModel,
        full: FullWeights,
        masters: Tensor,
        optimizer: Optimizer,
    ) -> Self {
        Self {
            tenant,
            lora,
            base_model: base_model.to_owned(),
            layout: Arc::new(AdapterLayout::without_modules(base.config())),
            parameters: masters,
            gradients: Gradients::of_weights(base.config(), full.layout(), base.device()),
            accumulation: Accumulation::default(),
            optimizer,
            shapes: full.shapes(),
            adapter: None,
            rounded: base.kind(),
            full: Some(full),
        }
    }

    /// The network of the run's own weights, which a pass goes through in place of the base; `None`: it has none.
    pub fn own_model(&mut self, base: &BaseModel) -> Result<Option<Arc<TrainedModel>>> {
        let Some(full) = &mut self.full else { return Ok(None) };
        full.model(base, &self.parameters, &mut self.gradients).map(Some)
    }

    /// What was made of the parameters is out of date.
    fn parameters_changed(&mut self) {
        self.adapter = None;
        if let Some(full) = &mut self.full {
            full.forget_model();
        }
    }

    /// Bytes of its tensors: parameters, gradients, optimizer state, and the parameters in the model's dtype.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let tensors = [&self.parameters, self.gradients.flat()];
        let tensors = tensors.into_iter().chain(self.optimizer.tensors().map(|(_, tensor)| tensor));
        let kept: usize = tensors.map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum();
        // Made when the run is next used.
        let rounded = self.parameters.numel() * self.rounded.elt_size_in_bytes();
        (kept + rounded) as u64
    }

    /// The adapter as the device multiplies by it.
    pub fn adapter(&mut self, base: &BaseModel) -> Arc<Adapter> {
        let layout = &self.layout;
        // Where all weights are trained the adapter has no modules.
        let parameters = self.parameters.narrow(0, 0, layout.parameter_count() as i64);
        let adapter = self
            .adapter
            .get_or_insert_with(|| Arc::new(Adapter::from_parameters(layout, &parameters, base.kind(), base.device())));
        Arc::clone(adapter)
    }

    /// One step of `AdamW` that consumes the accumulated gradients. Returns the gradient norm before clipping.
    pub fn optimizer_step(&mut self, settings: &AdamParams) -> Result<f64> {
        self.optimizer.check_adam(settings)?;
        self.finite_norm(GradientNorm::Two)?;
        let gradients = self.gradients.merged();
        let norm = clip::gradient_norm(&gradients, GradientNorm::Two);
        if settings.grad_clip_norm > 0.0 {
            let limit = GradientClip { max_norm: settings.grad_clip_norm, norm: GradientNorm::Two };
            clip::scale(&gradients, clip::clip_factor(norm, limit));
        }
        let (values, gradients) = (&self.parameters, &gradients);
        self.optimizer.step_adam(settings, Parameters { values, gradients, shapes: &self.shapes });
        self.gradients.zero();
        self.accumulation.cleared();
        self.parameters_changed();
        Ok(norm)
    }

    /// Gives the run a fresh optimizer without a schedule.
    pub fn set_optimizer(&mut self, spec: OptimizerSpec) -> Result<()> {
        self.optimizer = Optimizer::fresh(spec, &self.shapes, self.parameters.device())?;
        Ok(())
    }

    /// Takes over the settings and the schedule of `other`, but nothing it remembers of its steps.
    pub fn renew_optimizer(&mut self, other: &Optimizer) -> Result<()> {
        self.optimizer = other.renewed(&self.shapes, self.parameters.device())?;
        Ok(())
    }

    /// Works on the accumulated gradients with the run's own optimizer. All or nothing.
    pub fn optimize(&mut self, work: &OptimizerWork) -> Result<Optimized> {
        let mut accumulation = match work.accumulation_steps {
            Some(every) => self.accumulation.with_every(every)?,
            None => self.accumulation,
        };
        let divide_by = if work.normalise { accumulation.divisor() } else { work.divide_by };
        clip::validate(divide_by, work.clip)?;
        let spec = self.optimizer.overridden(&work.overrides)?;
        if work.only_at_boundary && !accumulation.is_at_boundary() {
            self.accumulation = accumulation;
            return Ok(Optimized {
                learning_rate: self.optimizer.learning_rate(),
                next_learning_rate: None,
                grad_norm: None,
                was_due: false,
            });
        }
        let rates = if work.step_scheduler { self.optimizer.next_rates(&spec)? } else { None };
        let norm = work.clip.map_or(GradientNorm::Two, |clip| clip.norm);
        let mut optimized =
            Optimized { learning_rate: spec.lr(), next_learning_rate: None, grad_norm: None, was_due: true };
        if work.step || work.clip.is_some() {
            self.finite_norm(norm)?;
        }

        let gradients = &self.gradients.merged();
        self.optimizer.set_spec(spec);
        clip::divide(gradients, divide_by);
        if work.normalise {
            accumulation.divided();
        }
        self.accumulation = accumulation;
        if work.step || work.clip.is_some() {
            let norm = clip::gradient_norm(gradients, norm);
            optimized.grad_norm = Some(norm);
            if let Some(limit) = work.clip {
                clip::scale(gradients, clip::clip_factor(norm, limit));
            }
        }
        // Without gradients there is no step: momentum alone must not move the weights of a client that asks twice.
        let has_gradients = !work.only_at_boundary || accumulation.held > 0;
        if work.step && has_gradients {
            self.optimizer.step(Parameters { values: &self.parameters, gradients, shapes: &self.shapes });
            self.parameters_changed();
        }
        if work.zero_gradients {
            self.gradients.zero();
            self.accumulation.cleared();
        }
        if let Some(rates) = rates {
            optimized.next_learning_rate = Some(rates.learning_rate());
            self.optimizer.set_rates(rates);
        }
        Ok(optimized)
    }

    fn finite_norm(&self, norm: GradientNorm) -> Result<f64> {
        let norm = clip::gradient_norm(self.gradients.flat(), norm);
        if norm.is_finite() {
            return Ok(norm);
        }
        Err(Error::invalid("the accumulated gradient is not finite; the step was not taken")
            .hint("lower the learning rate or check weights and advantages; the gradients are still accumulated"))
    }
}

/// What work on the gradients found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimized {
    /// The gradients' norm before clipping, where a step or clipping was asked for.
    pub grad_norm: Option<f64>,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// That of the next step, where the schedule has set it.
    pub next_learning_rate: Option<f64>,
    /// Whether anything was done: work may be for the end of a window only.
    pub was_due: bool,
}
