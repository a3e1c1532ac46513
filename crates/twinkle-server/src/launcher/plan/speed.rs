//! Predicted speeds: from the arithmetic a token needs and what this machine does in a second of matrix products, or
//! from one batch that is really trained.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tch::{Device, Kind, TchError, Tensor};
use tokio::time::Instant;
use twinkle_core::call::LoraSpec;
use twinkle_core::error::{Error, Result};
use twinkle_nn::memory::{CostModel, PassShape, Recompute};
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, Gradients, LoadOptions, Pack};

use super::NodePlan;
use super::growth::Growth;
use crate::launcher::memory::TrainerPlan;

/// Rows of the products that are timed: a pass of a few sequences.
const ROWS: i64 = 512;
/// How long products are timed for each number format.
const PATIENCE: Duration = Duration::from_millis(400);
/// What training is assumed to reach of the speed of its matrix products alone; a small model may stay far below it.
pub(super) const SHARE_OF_PRODUCTS: f64 = 0.6;
/// Tokens of the sequences that speeds are told for.
pub(super) const LENGTH: usize = 256;
/// Sequences of the batch that is trained to measure.
const SEQUENCES: usize = 2;
/// Its rank.
const RANK: u32 = 16;

/// What was found out about this machine.
pub(crate) struct Speeds {
    /// Per number format, of the models on the CPU.
    pub(super) rates: Vec<Rate>,
    /// Per trainer, if it was measured.
    pub(super) measured: Vec<Option<Measured>>,
}

/// What the machine does in one number format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) kind: Kind,
    /// Floating-point operations per second in matrix products of many rows.
    pub(super) products: f64,
    /// Bytes per second of weights in products of one row.
    pub(super) bandwidth: f64,
}

/// What one batch took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) tokens_per_second: f64,
    /// By how much the process grew at its peak.
    pub(super) bytes: u64,
    /// What the plan says of that batch.
    pub(super) predicted_bytes: u64,
}

impl Speeds {
    /// Times products of the sizes that the models multiply; takes about a second.
    pub(crate) fn estimate(plan: &NodePlan) -> Result<Self> {
        let mut rates: Vec<Rate> = Vec::new();
        for trainer in &plan.memory.trainers {
            let is_known = rates.iter().any(|rate| rate.kind == trainer.kind);
            if trainer.is_on_cpu() && !is_known {
                rates.push(Rate::of(trainer.kind, &trainer.cost)?);
            }
        }
        for sampler in &plan.memory.samplers {
            let is_known = rates.iter().any(|rate| rate.kind == sampler.kind);
            if sampler.is_on_cpu() && !is_known {
                rates.push(Rate::of(sampler.kind, &sampler.cost)?);
            }
        }
        Ok(Self { rates, measured: vec![None; plan.memory.trainers.len()] })
    }

    /// The same, and one trained batch of each model.
    pub(crate) fn measure(plan: &NodePlan) -> Result<Self> {
        // Batches first: what the timed products leave behind would be taken for room.
        let measured = plan.memory.trainers.iter().map(|trainer| Measured::of(trainer).map(Some));
        let measured = measured.collect::<Result<_>>()?;
        Ok(Self { measured, ..Self::estimate(plan)? })
    }

    pub(super) fn rate(&self, kind: Kind) -> Option<&Rate> {
        self.rates.iter().find(|rate| rate.kind == kind)
    }
}

impl Rate {
    fn of(kind: Kind, cost: &CostModel) -> Result<Self> {
        let time = || -> Result<Self, TchError> {
            let hidden = cost.config().hidden_size as i64;
            let wide = (cost.config().intermediate_size as i64).max(2 * hidden);
            let random = |rows, columns| Tensor::f_randn([rows, columns], (Kind::Float, Device::Cpu))?.f_to_kind(kind);
            let (rows, weight) = (random(ROWS, hidden)?, random(hidden, wide)?);
            let products = repeat(|| rows.f_mm(&weight).map(drop))?;
            // Many matrices in turn, so that none stays in the processor's cache.
            let size = hidden * wide * kind.elt_size_in_bytes() as i64;
            let count = ((256 << 20) / size).max(2);
            let weights = (0..count).map(|_| random(wide, hidden)).collect::<Result<Vec<_>, _>>()?;
            let row = rows.f_narrow(0, 0, 1)?.f_tr()?;
            let mut next = weights.iter().cycle();
            let single = repeat(|| next.next().map_or(Ok(()), |weight| weight.f_mm(&row).map(drop)))?;
            let operations = 2.0 * ROWS as f64 * hidden as f64 * wide as f64;
            Ok(Self {
                kind,
                products: operations / products.as_secs_f64(),
                bandwidth: size as f64 / single.as_secs_f64(),
            })
        };
        tch::no_grad(time).map_err(|error| Error::internal(format!("products could not be timed: {error}")))
    }
}

/// The shortest of the times that `work` takes, within the patience.
fn repeat(mut work: impl FnMut() -> Result<(), TchError>) -> Result<Duration, TchError> {
    let mut best = Duration::MAX;
    let began = Instant::now();
    // The first one also wakes threads up.
    work()?;
    while began.elapsed() < PATIENCE {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed());
    }
    Ok(if best == Duration::MAX { began.elapsed() } else { best })
}

impl Measured {
    /// Loads the model and trains one small batch twice.
    fn of(trainer: &TrainerPlan) -> Result<Self> {
        let device = crate::launcher::base_models::device_of(trainer.device)?;
        let options = LoadOptions { precision: trainer.precision(), device, ..LoadOptions::default() };
        let base = BaseModel::load(&trainer.folder, &options)?;
        let lora = LoraSpec { rank: RANK, train_unembed: false, ..LoraSpec::default() };
        let layout = Arc::new(AdapterLayout::new(base.config(), &lora)?);
        let adapter = Arc::new(Adapter::from_parameters(&layout, &layout.initialise(device), base.kind(), device));
        let length = LENGTH.min(trainer.max_length);
        let mut pack = Pack::new();
        let vocabulary = base.config().vocab_size as u32;
        for sequence in 0..SEQUENCES {
            let tokens: Vec<u32> = (0..length).map(|place| (place * 31 + sequence * 7) as u32 % vocabulary).collect();
            pack.push(&tokens, Some(0));
        }
        let mut gradients = Gradients::zeros(&layout, device);
        // The first one is the one that makes the process grow, the second one is fast.
        let growth = Growth::watch();
        train(&base, &pack, &adapter, &mut gradients)?;
        let began = Instant::now();
        train(&base, &pack, &adapter, &mut gradients)?;
        let elapsed = began.elapsed();
        let growth = growth.peak();
        let shape = PassShape { rows: pack.len(), longest: length, rank: RANK as usize, backward: true };
        Ok(Self {
            tokens_per_second: pack.len() as f64 / elapsed.as_secs_f64(),
            bytes: growth,
            predicted_bytes: trainer.cost.pass_bytes(shape, Recompute::NOTHING),
        })
    }
}

/// One forward-backward of cross entropy.
fn train(base: &BaseModel, pack: &Pack, adapter: &Arc<Adapter>, gradients: &mut Gradients) -> Result<()> {
    let adapters = [Arc::clone(adapter)];
    let (hidden, tape) = base.forward_training(pack, &adapters)?;
    let mut loss = |_: Range<usize>, _: &[f32], derivatives: &mut [f32]| derivatives.fill(-1.0);
    let outcome = base.head_loss(&hidden, pack, &adapters, &pack.tokens, &mut loss, Some(&mut [gradients]))?;
    drop(hidden);
    match outcome.d_hidden {
        Some(d_hidden) => base.backward(tape, d_hidden, pack, &adapters, &mut [gradients]),
        None => Ok(()),
    }
}
