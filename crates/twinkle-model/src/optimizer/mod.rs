//! A run's optimizer: one flat vector of parameters, one update rule, perhaps a schedule of the learning rate.
//!
//! | What | Where |
//! | --- | --- |
//! | clipping, dividing, the gradients' norm | [`clip`] |
//! | the update rules of `torch.optim`, with its arithmetic | [`rules`] |
//! | the learning rates of `torch.optim.lr_scheduler` | [`schedules`] |
//!
//! All tensors are fp32. On the CPU a rule sees a block of at most [`BLOCK`] numbers at a time: they stay in the
//! processor's cache, nothing as long as the parameters is ever allocated, and since libtorch gives so few numbers to
//! one thread, a step has the same bits with any number of threads.

pub mod clip;
pub(crate) mod rules;
pub mod schedules;
pub mod shape;
pub mod state;

use std::ops::Range;

use tch::{Device, Tensor};
use twinkle_core::call::{AdamParams, AdamW, OptimizerOverrides, OptimizerSpec, SchedulerSpec};
use twinkle_core::{Error, ErrorCode, Result};

use self::rules::{Grain, Moment, Rule, rule};
use self::schedules::Scheduler;
use self::shape::ParameterShape;
use self::state::Slots;

/// Numbers a rule of single numbers sees at once on the CPU: what libtorch gives to one thread.
const BLOCK: i64 = 32_768;

/// The optimizer of one run, and its schedule.
#[derive(Debug)]
pub struct Optimizer {
    /// What it is, with the settings of its next step: overrides and schedules change them.
    spec: OptimizerSpec,
    /// Steps taken.
    steps: u64,
    /// What the rule remembers between steps.
    slots: Slots,
    /// The learning rate that the first schedule found, from which all of them start.
    initial_lr: Option<f64>,
    /// What sets the learning rate.
    scheduler: Option<Scheduler>,
}

impl Optimizer {
    /// An optimizer that has taken no step on parameters of these shapes.
    pub fn fresh(spec: OptimizerSpec, shapes: &[ParameterShape], device: Device) -> Result<Self> {
        spec.validate()?;
        let rule = rule(&spec);
        rule.accepts(shapes)?;
        let slots = Slots::fresh(rule.as_ref(), shapes, device);
        Ok(Self { spec, steps: 0, slots, initial_lr: None, scheduler: None })
    }

    /// An optimizer with these settings and this schedule that has taken no step.
    pub fn renewed(&self, shapes: &[ParameterShape], device: Device) -> Result<Self> {
        let fresh = Self::fresh(self.spec.clone(), shapes, device)?;
        Ok(Self { initial_lr: self.initial_lr, scheduler: self.scheduler.clone(), ..fresh })
    }

    /// What it is, with the settings of its next step.
    #[must_use]
    pub fn spec(&self) -> &OptimizerSpec {
        &self.spec
    }

    /// Steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The learning rate of its next step.
    #[must_use]
    pub fn learning_rate(&self) -> f64 {
        self.spec.lr()
    }

    /// The schedule, if it has one.
    #[must_use]
    pub fn scheduler(&self) -> Option<&SchedulerSpec> {
        self.scheduler.as_ref().map(Scheduler::spec)
    }

    /// Lets a schedule set the learning rate, beginning now.
    pub fn schedule(&mut self, schedule: SchedulerSpec) -> Result<()> {
        schedule.validate()?;
        let initial_lr = self.initial_lr.unwrap_or_else(|| self.spec.lr());
        let (scheduler, spec) = Scheduler::begin(schedule, initial_lr, &self.spec)?;
        self.initial_lr = Some(scheduler.initial_lr());
        self.spec = spec;
        self.scheduler = Some(scheduler);
        Ok(())
    }

    /// The settings and the schedule after a step with `spec`; nothing has changed yet.
    pub fn next_rates(&self, spec: &OptimizerSpec) -> Result<Option<Rates>> {
        let Some(scheduler) = &self.scheduler else { return Ok(None) };
        let (scheduler, spec) = scheduler.next(spec)?;
        Ok(Some(Rates { scheduler, spec }))
    }

    /// Takes over what [`Optimizer::next_rates`] found.
    pub fn set_rates(&mut self, rates: Rates) {
        self.spec = rates.spec;
        self.scheduler = Some(rates.scheduler);
    }

    /// The settings after these changes; nothing has changed yet.
    pub fn overridden(&self, overrides: &OptimizerOverrides) -> Result<OptimizerSpec> {
        let mut spec = self.spec.clone();
        let name = spec.name();
        let lacks = |what: &str| Error::invalid(format!("the optimizer `{name}` has no `{what}` to change"));
        if let Some(lr) = overrides.lr {
            spec.set_lr(lr);
        }
        if let Some(betas) = overrides.betas {
            *spec.betas_mut().ok_or_else(|| lacks("betas"))? = betas;
        }
        if let Some(eps) = overrides.eps {
            *spec.eps_mut().ok_or_else(|| lacks("eps"))? = eps;
        }
        if let Some(weight_decay) = overrides.weight_decay {
            spec.set_weight_decay(weight_decay);
        }
        spec.validate()?;
        Ok(spec)
    }

    /// Changes the settings of the next steps.
    pub fn set_spec(&mut self, spec: OptimizerSpec) {
        self.spec = spec;
    }

    /// What a step with `adam` needs: that this is `AdamW`.
    pub fn check_adam(&self, adam: &AdamParams) -> Result<()> {
        validate(adam)?;
        match &self.spec {
            OptimizerSpec::AdamW(AdamW { amsgrad: false, maximize: false, .. }) => Ok(()),
            other => Err(Error::new(
                ErrorCode::Conflict,
                format!("`optim_step` takes AdamW's settings, but the run's optimizer is `{}`", other.name()),
            )
            .hint("step it as it was set, or set `AdamW` with torch's other defaults")),
        }
    }

    /// One step of `AdamW` with the settings of this step alone.
    pub fn step_adam(&mut self, adam: &AdamParams, at: Parameters<'_>) {
        let spec = OptimizerSpec::AdamW(AdamW {
            lr: adam.learning_rate,
            betas: [adam.beta1, adam.beta2],
            eps: adam.eps,
            weight_decay: adam.weight_decay,
            ..AdamW::default()
        });
        self.step_with(&spec, at);
    }

    /// One step with the optimizer's own settings.
    pub fn step(&mut self, at: Parameters<'_>) {
        let spec = self.spec.clone();
        self.step_with(&spec, at);
    }

    fn step_with(&mut self, spec: &OptimizerSpec, at: Parameters<'_>) {
        let rule = rule(spec);
        self.slots.complete(rule.as_ref(), at.shapes, at.values.device());
        self.steps += 1;
        let mu_product = rule.momentum_product(self.steps, self.slots.mu_product);
        self.slots.mu_product = mu_product;
        let moment = Moment { step: self.steps, lr: spec.lr(), weight_decay: spec.weight_decay(), mu_product };
        match rule.grain() {
            Grain::Numbers => self.update_numbers(rule.as_ref(), &moment, at),
            Grain::Matrices => self.update_matrices(rule.as_ref(), &moment, at),
        }
    }

    fn update_numbers(&self, rule: &dyn Rule, moment: &Moment, at: Parameters<'_>) {
        let length = if at.values.device() == Device::Cpu { BLOCK } else { i64::MAX };
        for (numbers, decays) in shape::stretches(at.shapes) {
            let moment = moment.decaying(decays);
            for start in (numbers.start..numbers.end).step_by(usize::try_from(length).unwrap_or(usize::MAX)) {
                let count = length.min(numbers.end - start);
                let part = |tensor: &Tensor| tensor.narrow(0, start, count);
                let slots: Vec<Tensor> = self.slots.tensors.iter().map(|(_, slot)| part(slot)).collect();
                rule.update(&moment, part(at.values), part(at.gradients), &slots);
            }
        }
    }

    fn update_matrices(&self, rule: &dyn Rule, moment: &Moment, at: Parameters<'_>) {
        let mut places = vec![0; self.slots.tensors.len()];
        for shape in at.shapes {
            let Range { start, end } = shape.range();
            let part = |tensor: &Tensor| tensor.narrow(0, start, end - start).view(shape.dimensions.as_slice());
            let mut slots = Vec::with_capacity(places.len());
            for (number, (place, (_, slot))) in places.iter_mut().zip(&self.slots.tensors).enumerate() {
                let dimensions = rule.slot_shape(number, &shape.dimensions);
                let count: i64 = dimensions.iter().product();
                slots.push(slot.narrow(0, *place, count).view(dimensions.as_slice()));
                *place += count;
            }
            rule.update(&moment.decaying(shape.decays), part(at.values), part(at.gradients), &slots);
        }
    }
}

/// The settings and the schedule of a later step.
#[derive(Debug)]
pub struct Rates {
    scheduler: Scheduler,
    spec: OptimizerSpec,
}

impl Rates {
    /// The learning rate.
    #[must_use]
    pub fn learning_rate(&self) -> f64 {
        self.spec.lr()
    }
}

/// What a step changes, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// fp32 `[P]`, changed in place.
    pub values: &'a Tensor,
    /// fp32 `[P]`.
    pub gradients: &'a Tensor,
    /// Where each parameter lies, in order and without gaps.
    pub shapes: &'a [ParameterShape],
}

/// Checks the settings of a step.
pub fn validate(adam: &AdamParams) -> Result<()> {
    let check = |name: &str, value: f64, allowed: bool, range: &str| {
        if allowed && value.is_finite() {
            return Ok(());
        }
        Err(Error::invalid(format!("`{name}` is {value}, but must be {range}")))
    };
    check("learning_rate", adam.learning_rate, adam.learning_rate >= 0.0, "a finite number of at least 0")?;
    check("beta1", adam.beta1, (0.0..1.0).contains(&adam.beta1), "in [0, 1)")?;
    check("beta2", adam.beta2, (0.0..1.0).contains(&adam.beta2), "in [0, 1)")?;
    check("eps", adam.eps, adam.eps > 0.0, "a finite number above 0")?;
    check("weight_decay", adam.weight_decay, adam.weight_decay >= 0.0, "a finite number of at least 0")?;
    check(
        "grad_clip_norm",
        adam.grad_clip_norm,
        adam.grad_clip_norm >= 0.0,
        "a finite number of at least 0 (0 turns clipping off)",
    )
}
