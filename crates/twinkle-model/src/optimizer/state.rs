//! What an optimizer remembers between steps, in memory and in a file.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use twinkle_core::call::{OptimizerSpec, SchedulerSpec};
use twinkle_core::{Error, Result};

use super::rules::{Rule, rule};
use super::schedules::Scheduler;
use super::shape::ParameterShape;
use super::{Optimizer, shape};

/// The rule's tensors, each flat in the order of the parameters, and its one number.
#[derive(Debug)]
pub(crate) struct Slots {
    /// By the names that torch has for them.
    pub(crate) tensors: Vec<(&'static str, Tensor)>,
    /// The product of all momenta so far, which `NAdam` corrects its bias by.
    pub(crate) mu_product: f32,
}

impl Slots {
    pub(crate) fn fresh(rule: &dyn Rule, shapes: &[ParameterShape], device: Device) -> Self {
        let mut slots = Self { tensors: Vec::new(), mu_product: 1.0 };
        slots.complete(rule, shapes, device);
        slots
    }

    /// Adds what the rule has needed only since a schedule changed its momentum.
    pub(crate) fn complete(&mut self, rule: &dyn Rule, shapes: &[ParameterShape], device: Device) {
        for (number, name) in rule.slots().iter().enumerate() {
            if self.tensors.iter().all(|(known, _)| known != name) {
                let length = slot_length(rule, number, shapes);
                let slot = Tensor::full([length], rule.initial_value(), (Kind::Float, device));
                self.tensors.insert(number.min(self.tensors.len()), (name, slot));
            }
        }
    }
}

fn slot_length(rule: &dyn Rule, slot: usize, shapes: &[ParameterShape]) -> i64 {
    shapes.iter().map(|shape| rule.slot_shape(slot, &shape.dimensions).iter().product::<i64>()).sum()
}

/// The part of an optimizer that is no tensor, as it is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedOptimizer {
    spec: OptimizerSpec,
    #[serde(default = "one")]
    mu_product: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initial_lr: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scheduler: Option<SavedScheduler>,
}

const fn one() -> f32 {
    1.0
}

/// A schedule and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedScheduler {
    pub(crate) spec: SchedulerSpec,
    pub(crate) epoch: u64,
    pub(crate) initial_lr: f64,
}

impl Optimizer {
    /// Its tensors, each fp32 and flat, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        self.slots.tensors.iter().map(|(name, tensor)| (*name, tensor))
    }

    /// What is saved beside its tensors and its step count.
    #[must_use]
    pub fn saved(&self) -> SavedOptimizer {
        SavedOptimizer {
            spec: self.spec.clone(),
            mu_product: self.slots.mu_product,
            initial_lr: self.initial_lr,
            scheduler: self.scheduler.as_ref().map(Scheduler::saved),
        }
    }

    /// An optimizer as it was saved; `None`: by a version that only knew `AdamW`. Takes its tensors out of `tensors`.
    pub fn restored(
        saved: Option<SavedOptimizer>,
        steps: u64,
        tensors: &mut HashMap<String, Tensor>,
        shapes: &[ParameterShape],
        device: Device,
    ) -> Result<Self> {
        let SavedOptimizer { spec, mu_product, initial_lr, scheduler } = saved.unwrap_or_else(|| SavedOptimizer {
            spec: OptimizerSpec::default(),
            mu_product: 1.0,
            initial_lr: None,
            scheduler: None,
        });
        spec.validate()?;
        let rule = rule(&spec);
        rule.accepts(shapes)?;
        let mut slots = Slots { tensors: Vec::with_capacity(rule.slots().len()), mu_product };
        for (number, name) in rule.slots().iter().copied().enumerate() {
            let found = tensors
                .remove(name)
                .ok_or_else(|| Error::invalid(format!("the optimizer's state lacks tensor `{name}`")))?;
            let length = slot_length(rule.as_ref(), number, shapes);
            if found.size() != [length] {
                return Err(Error::invalid(format!(
                    "tensor `{name}` of the optimizer's state is {:?}, expected [{length}]",
                    found.size()
                )));
            }
            slots.tensors.push((name, found));
        }
        slots.complete(rule.as_ref(), shapes, device);
        let scheduler = scheduler.map(Scheduler::restored);
        Ok(Self { spec, steps, slots, initial_lr, scheduler })
    }

    /// `AdamW` with torch's defaults, which Tinker's clients step with settings of their own.
    pub fn adam_w(shapes: &[ParameterShape], device: Device) -> Result<Self> {
        Self::fresh(OptimizerSpec::default(), shapes, device)
    }

    /// `AdamW` for an adapter of this layout.
    pub fn for_adapter(layout: &twinkle_nn::AdapterLayout, device: Device) -> Result<Self> {
        Self::adam_w(&shape::of_adapter(layout), device)
    }
}
