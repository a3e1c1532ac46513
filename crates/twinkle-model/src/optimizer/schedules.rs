//! Learning rates by the step, with the arithmetic of `torch.optim.lr_scheduler`: in fp64, each from the one before
//! where torch goes from the one before.

use std::f64::consts::PI;

use twinkle_core::call::{Anneal, Cyclic, CyclicMode, OneCycle, OptimizerSpec, SchedulerSpec};
use twinkle_core::{Error, Result};

use super::state::SavedScheduler;

/// What sets an optimizer's learning rate after each step.
trait Schedule {
    /// The learning rate that it starts from, given the optimizer's.
    fn initial_lr(&self, optimizers: f64) -> f64 {
        optimizers
    }

    /// The rates at a step.
    fn rates(&self, at: At) -> Result<Rates>;

    /// Whether it changes the momentum as well.
    fn cycles_momentum(&self) -> bool {
        false
    }
}

/// A step of a schedule.
#[derive(Clone, Copy, Debug)]
struct At {
    /// Steps since it began; 0 when it is set.
    epoch: u64,
    /// What it started from.
    initial_lr: f64,
    /// The learning rate of the step before; when it is set, the optimizer's.
    lr: f64,
}

/// What a schedule says of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rates {
    lr: f64,
    momentum: Option<f64>,
}

impl From<f64> for Rates {
    fn from(lr: f64) -> Self {
        Self { lr, momentum: None }
    }
}

/// A schedule and how far it is.
#[derive(Clone, Debug)]
pub(crate) struct Scheduler {
    spec: SchedulerSpec,
    epoch: u64,
    initial_lr: f64,
}

impl Scheduler {
    /// Sets the first rates; the optimizer with them comes back.
    pub(crate) fn begin(
        spec: SchedulerSpec,
        initial_lr: f64,
        optimizer: &OptimizerSpec,
    ) -> Result<(Self, OptimizerSpec)> {
        let initial_lr = spec.schedule().initial_lr(initial_lr);
        let mut optimizer = optimizer.clone();
        if spec.schedule().cycles_momentum() && optimizer.momentum_mut().is_none() {
            return Err(Error::invalid(format!(
                "`{}` has no momentum for `{}` to cycle",
                optimizer.name(),
                spec.name()
            ))
            .hint("set `cycle_momentum` to false"));
        }
        let scheduler = Self { spec, epoch: 0, initial_lr };
        let optimizer = scheduler.apply(&optimizer)?;
        Ok((scheduler, optimizer))
    }

    /// The schedule one step later, and the optimizer with its rates.
    pub(crate) fn next(&self, optimizer: &OptimizerSpec) -> Result<(Self, OptimizerSpec)> {
        let next = Self { epoch: self.epoch + 1, ..self.clone() };
        let optimizer = next.apply(optimizer)?;
        Ok((next, optimizer))
    }

    fn apply(&self, optimizer: &OptimizerSpec) -> Result<OptimizerSpec> {
        let at = At { epoch: self.epoch, initial_lr: self.initial_lr, lr: optimizer.lr() };
        let Rates { lr, momentum } = self.spec.schedule().rates(at)?;
        let mut optimizer = optimizer.clone();
        optimizer.set_lr(lr);
        if let (Some(momentum), Some(place)) = (momentum, optimizer.momentum_mut()) {
            *place = momentum;
        }
        Ok(optimizer)
    }

    pub(crate) fn spec(&self) -> &SchedulerSpec {
        &self.spec
    }

    pub(crate) fn initial_lr(&self) -> f64 {
        self.initial_lr
    }

    pub(crate) fn saved(&self) -> SavedScheduler {
        SavedScheduler { spec: self.spec.clone(), epoch: self.epoch, initial_lr: self.initial_lr }
    }

    pub(crate) fn restored(saved: SavedScheduler) -> Self {
        let SavedScheduler { spec, epoch, initial_lr } = saved;
        Self { spec, epoch, initial_lr }
    }
}

/// A schedule that is one formula.
trait Scheduled {
    fn schedule(&self) -> &dyn Schedule;
}

impl Scheduled for SchedulerSpec {
    fn schedule(&self) -> &dyn Schedule {
        match self {
            Self::OneCycleLR(cycle) => cycle,
            Self::CyclicLR(cyclic) => cyclic,
            formula => formula,
        }
    }
}

impl Schedule for SchedulerSpec {
    fn rates(&self, at: At) -> Result<Rates> {
        let At { epoch, initial_lr, lr } = at;
        let is_first = epoch == 0;
        let t = epoch as f64;
        let rate = match self {
            Self::ConstantLR { factor, .. } if is_first => lr * factor,
            Self::ConstantLR { factor, total_iters } if epoch == *total_iters => lr * (1.0 / factor),
            Self::LinearLR { start_factor, .. } if is_first => lr * start_factor,
            Self::LinearLR { start_factor, end_factor, total_iters } if epoch <= *total_iters => {
                let rise = end_factor - start_factor;
                lr * (1.0 + rise / (*total_iters as f64 * start_factor + (t - 1.0) * rise))
            }
            Self::StepLR { step_size, gamma } if !is_first && epoch % step_size == 0 => lr * gamma,
            Self::MultiStepLR { milestones, gamma } => {
                match milestones.iter().filter(|milestone| **milestone == epoch).count() {
                    0 => lr,
                    times => lr * gamma.powf(times as f64),
                }
            }
            Self::ExponentialLR { gamma } if !is_first => lr * gamma,
            Self::PolynomialLR { total_iters, power } if !is_first && epoch <= *total_iters => {
                let left = |t: f64| 1.0 - t / *total_iters as f64;
                lr * (left(t) / left(t - 1.0)).powf(*power)
            }
            Self::CosineAnnealingLR { t_max, eta_min } if !is_first => {
                let period = *t_max as f64;
                if (i128::from(epoch) - 1 - i128::from(*t_max)) % (2 * i128::from(*t_max)) == 0 {
                    lr + (initial_lr - eta_min) * (1.0 - (PI / period).cos()) / 2.0
                } else {
                    (1.0 + (PI * t / period).cos()) / (1.0 + (PI * (t - 1.0) / period).cos()) * (lr - eta_min) + eta_min
                }
            }
            Self::CosineAnnealingWarmRestarts { t_0, t_mult, eta_min } => {
                let (done, period) = period_at(epoch, *t_0, *t_mult);
                eta_min + (initial_lr - eta_min) * (1.0 + (PI * done as f64 / period as f64).cos()) / 2.0
            }
            Self::CosineWarmupScheduler { num_warmup_steps, num_training_steps, num_cycles } => {
                initial_lr
                    * warm_up(epoch, *num_warmup_steps, *num_training_steps, |progress, _| {
                        (0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos())).max(0.0)
                    })
            }
            Self::LinearWarmupScheduler { num_warmup_steps, num_training_steps } => {
                initial_lr * warm_up(epoch, *num_warmup_steps, *num_training_steps, |_, left| left.max(0.0))
            }
            // What stays as it is; the cycles have formulas of their own.
            _ => lr,
        };
        Ok(rate.into())
    }
}

/// Steps since the last restart, and the length of the present period.
fn period_at(epoch: u64, first: u64, factor: u64) -> (u64, u64) {
    if factor == 1 {
        return (epoch % first, first);
    }
    let (mut done, mut period) = (epoch, first);
    while done >= period {
        done -= period;
        period = period.saturating_mul(factor);
    }
    (done, period)
}

/// `step / warmup` on the way up, then `down` of the share that is done and the share that is left.
fn warm_up(step: u64, warmup: u64, total: u64, down: impl Fn(f64, f64) -> f64) -> f64 {
    let ratio = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    if step < warmup {
        return ratio(step, warmup);
    }
    let way = total.saturating_sub(warmup);
    // Below 0 when it is over: `down` says what then.
    let left = if step <= total { ratio(total - step, way) } else { -ratio(step - total, way) };
    down(ratio(step - warmup, way), left)
}

impl Schedule for OneCycle {
    fn initial_lr(&self, _: f64) -> f64 {
        self.max_lr / self.div_factor
    }

    fn cycles_momentum(&self) -> bool {
        self.cycle_momentum
    }

    fn rates(&self, at: At) -> Result<Rates> {
        let total = self.steps().unwrap_or_default();
        if at.epoch > total {
            return Err(Error::invalid(format!("`OneCycleLR` is over: it was set for {total} steps")));
        }
        let (low, high) = (at.initial_lr, self.max_lr);
        let least = low / self.final_div_factor;
        let (slow, fast) = (self.base_momentum, self.max_momentum);
        let way = self.pct_start * total as f64;
        let end = total as f64 - 1.0;
        // Where a phase ends; its learning rates and momenta.
        let phases: &[(f64, [f64; 2], [f64; 2])] = if self.three_phase {
            &[
                (way - 1.0, [low, high], [fast, slow]),
                (2.0 * self.pct_start * total as f64 - 2.0, [high, low], [slow, fast]),
                (end, [low, least], [fast, fast]),
            ]
        } else {
            &[(way - 1.0, [low, high], [fast, slow]), (end, [high, least], [slow, fast])]
        };
        let t = at.epoch as f64;
        let mut start = 0.0;
        let mut rates = Rates::from(at.lr);
        for (number, (end, lrs, momenta)) in phases.iter().enumerate() {
            if t <= *end || number + 1 == phases.len() {
                let progress = (t - start) / (end - start);
                let momentum = self.cycle_momentum.then(|| between(self.anneal_strategy, *momenta, progress));
                rates = Rates { lr: between(self.anneal_strategy, *lrs, progress), momentum };
                break;
            }
            start = *end;
        }
        Ok(rates)
    }
}

fn between(shape: Anneal, [start, end]: [f64; 2], progress: f64) -> f64 {
    match shape {
        Anneal::Cos => end + (start - end) / 2.0 * ((PI * progress).cos() + 1.0),
        Anneal::Linear => (end - start) * progress + start,
    }
}

impl Schedule for Cyclic {
    fn initial_lr(&self, _: f64) -> f64 {
        self.base_lr
    }

    fn cycles_momentum(&self) -> bool {
        self.cycle_momentum
    }

    fn rates(&self, at: At) -> Result<Rates> {
        let up = self.step_size_up as f64;
        let total = up + self.step_size_down.map_or(up, |down| down as f64);
        let ratio = up / total;
        let t = at.epoch as f64;
        let cycle = (1.0 + t / total).floor();
        let x = 1.0 + t / total - cycle;
        let height = if x <= ratio { x / ratio } else { (x - 1.0) / (ratio - 1.0) };
        let scale = match self.mode {
            CyclicMode::Triangular => 1.0,
            CyclicMode::Triangular2 => 1.0 / 2.0_f64.powf(cycle - 1.0),
            CyclicMode::ExpRange => self.gamma.powf(t),
        };
        let lr = self.base_lr + (self.max_lr - self.base_lr) * height * scale;
        let momentum = self.max_momentum - (self.max_momentum - self.base_momentum) * height * scale;
        Ok(Rates { lr, momentum: self.cycle_momentum.then_some(momentum) })
    }
}
