//! Predicted speeds: from the arithmetic a token needs and what this machine does in a second of matrix products, or
//! from a step that is really trained.

use tch::Kind;
use twinkle_core::call::LoraSpec;
use twinkle_core::config::TrainMode;
use twinkle_core::error::Result;
use twinkle_model::rehearsal::{Rehearsal, Rehearsed};
use twinkle_nn::memory::{Rate, Recompute};
use twinkle_nn::{BaseModel, LoadOptions};

use super::NodePlan;
use crate::launcher::memory::TrainerPlan;

/// Tokens of the sequences that speeds are told for.
pub(super) const LENGTH: usize = 256;
/// Sequences of the batch that is trained to measure.
const SEQUENCES: usize = 2;
/// The rank of an adapter that is trained to measure.
const RANK: u32 = 16;

/// What was found out about this machine.
pub(crate) struct Speeds {
    /// Per number format, of the models on the CPU.
    rates: Vec<Rate>,
    /// Per trainer, if it was measured.
    pub(super) measured: Vec<Option<Rehearsed>>,
}

impl Speeds {
    /// Times products of the sizes that the models multiply; takes about a second.
    pub(crate) fn estimate(plan: &NodePlan) -> Result<Self> {
        let mut rates: Vec<Rate> = Vec::new();
        let trainers = plan.memory.trainers.iter().filter(|trainer| trainer.is_on_cpu());
        let samplers = plan.memory.samplers.iter().filter(|sampler| sampler.is_on_cpu());
        let models = trainers.map(|it| (it.kind, &it.cost)).chain(samplers.map(|it| (it.kind, &it.cost)));
        for (kind, cost) in models {
            if rates.iter().all(|rate| rate.kind != kind) {
                rates.push(Rate::measure(kind, cost)?);
            }
        }
        Ok(Self { rates, measured: vec![None; plan.memory.trainers.len()] })
    }

    /// The same, and one trained batch of each model.
    pub(crate) fn measure(plan: &NodePlan) -> Result<Self> {
        let measured = plan.memory.trainers.iter().map(|trainer| rehearse(trainer).map(Some));
        let measured = measured.collect::<Result<_>>()?;
        Ok(Self { measured, ..Self::estimate(plan)? })
    }

    pub(super) fn rate(&self, kind: Kind) -> Option<&Rate> {
        self.rates.iter().find(|rate| rate.kind == kind)
    }
}

/// Loads the model and trains one small batch.
fn rehearse(trainer: &TrainerPlan) -> Result<Rehearsed> {
    let device = crate::launcher::base_models::device_of(trainer.device)?;
    let options = LoadOptions { precision: trainer.precision(), device, ..LoadOptions::default() };
    let base = BaseModel::load(&trainer.folder, &options)?;
    let full = trainer.train_mode == TrainMode::Full;
    Rehearsal {
        lengths: vec![LENGTH.min(trainer.max_length); SEQUENCES],
        lora: LoraSpec { rank: RANK, train_unembed: false, full, ..LoraSpec::default() },
        recompute: Recompute::NOTHING,
        accumulates: false,
    }
    .perform(&base)
}
