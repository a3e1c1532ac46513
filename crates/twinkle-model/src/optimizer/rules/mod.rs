//! The update rules, each with the arithmetic of its class in `torch.optim` (the one without `foreach`).
//!
//! A rule gets views of parameters `w`, gradients `g` and its slots, and writes the new values through them. `t` is the
//! step, from 1; `η` the learning rate, `λ` the weight decay of these parameters.

mod adadelta;
mod adafactor;
mod adagrad;
mod adam;
mod adamax;
mod muon;
mod nadam;
mod radam;
mod rmsprop;
mod sgd;

use tch::Tensor;
use twinkle_core::Result;
use twinkle_core::call::OptimizerSpec;

use super::shape::ParameterShape;

/// How parameters change in one step.
pub(crate) trait Rule {
    /// What it remembers of each parameter, by torch's names.
    fn slots(&self) -> &'static [&'static str];

    /// What a slot holds before the first step.
    fn initial_value(&self) -> f64 {
        0.0
    }

    /// The dimensions of a slot of a parameter of these dimensions.
    fn slot_shape(&self, _slot: usize, dimensions: &[i64]) -> Vec<i64> {
        dimensions.to_vec()
    }

    /// What it must see at once.
    fn grain(&self) -> Grain {
        Grain::Numbers
    }

    /// Whether it can train parameters of these shapes.
    fn accepts(&self, _shapes: &[ParameterShape]) -> Result<()> {
        Ok(())
    }

    /// The product of the momenta up to step `t`, given that up to the step before.
    fn momentum_product(&self, _t: u64, before: f32) -> f32 {
        before
    }

    /// Changes `w` and the slots, which are views; leaves `g` as it is.
    fn update(&self, moment: &Moment, w: Tensor, g: Tensor, slots: &[Tensor]);
}

/// What a rule sees at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grain {
    /// Any numbers: each changes by itself.
    Numbers,
    /// A parameter in its dimensions.
    Matrices,
}

/// The step that is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// `t`, from 1.
    pub(crate) step: u64,
    /// `η`.
    pub(crate) lr: f64,
    /// `λ`.
    pub(crate) weight_decay: f64,
    /// The product of the momenta up to this step.
    pub(crate) mu_product: f32,
}

impl Moment {
    /// The same for parameters that decay or do not.
    pub(crate) fn decaying(self, decays: bool) -> Self {
        Self { weight_decay: if decays { self.weight_decay } else { 0.0 }, ..self }
    }

    fn t(&self) -> f64 {
        self.step as f64
    }
}

/// The rule of an optimizer: its settings know it.
pub(crate) fn rule(spec: &OptimizerSpec) -> Box<dyn Rule> {
    match spec.clone() {
        OptimizerSpec::AdamW(settings) => Box::new(settings),
        OptimizerSpec::Adam(settings) => Box::new(settings),
        OptimizerSpec::Sgd(settings) => Box::new(settings),
        OptimizerSpec::Adamax(settings) => Box::new(settings),
        OptimizerSpec::NAdam(settings) => Box::new(settings),
        OptimizerSpec::RAdam(settings) => Box::new(settings),
        OptimizerSpec::Adagrad(settings) => Box::new(settings),
        OptimizerSpec::Adadelta(settings) => Box::new(settings),
        OptimizerSpec::RmsProp(settings) => Box::new(settings),
        OptimizerSpec::Adafactor(settings) => Box::new(settings),
        OptimizerSpec::Muon(settings) => Box::new(settings),
    }
}

/// `x ← x + factor · y`.
fn add_scaled(x: &mut Tensor, y: &Tensor, factor: f64) {
    let _ = x.g_add_(&y.g_mul_scalar(factor));
}

/// `x ← x + factor · y · y`.
fn add_square(x: &mut Tensor, y: &Tensor, factor: f64) {
    let mut square = y.g_mul_scalar(factor);
    let _ = square.g_mul_(y);
    let _ = x.g_add_(&square);
}

/// `x ← x + factor · y / z`.
fn add_quotient(x: &mut Tensor, y: &Tensor, z: &Tensor, factor: f64) {
    let mut quotient = y.g_mul_scalar(factor);
    let _ = quotient.g_div_(z);
    let _ = x.g_add_(&quotient);
}

/// The gradient, negated for ascent.
fn directed(g: Tensor, maximize: bool) -> Tensor {
    if maximize { g.neg() } else { g }
}

/// The gradient with that of an L2 penalty: `g + λ w`.
fn penalised(g: Tensor, w: &Tensor, weight_decay: f64) -> Tensor {
    if weight_decay == 0.0 { g } else { g.g_add(&w.g_mul_scalar(weight_decay)) }
}

/// Weight decay as `AdamW` has it, `w ← w (1 − η λ)`, or as a penalty; returns the gradient to go on with.
fn decayed(g: Tensor, w: &mut Tensor, moment: &Moment, is_decoupled: bool) -> Tensor {
    if moment.weight_decay == 0.0 {
        return g;
    }
    if !is_decoupled {
        return penalised(g, w, moment.weight_decay);
    }
    let _ = w.g_mul_scalar_(1.0 - moment.lr * moment.weight_decay);
    g
}

/// `m ← m + (1 − β₁)(g − m)`, `v ← β₂ v + (1 − β₂) g²`.
fn advance_moments(m: &mut Tensor, v: &mut Tensor, g: &Tensor, betas: [f64; 2]) {
    let _ = m.lerp_(g, 1.0 - betas[0]);
    let _ = v.g_mul_scalar_(betas[1]);
    add_square(v, g, 1.0 - betas[1]);
}
