//! One training step as an engine computes it, with what it took: what a plan is held against.

use std::collections::BTreeMap;
use std::time::Duration;

use twinkle_core::call::{AdamParams, ForwardOptions, LoraSpec, LossSpec};
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::ids::TenantId;
use twinkle_core::{Error, Result};
use twinkle_nn::memory::Growth;
use twinkle_nn::{BaseModel, PassShape, Recompute};

use crate::batch::{self, Example, Limits};
use crate::losses::{self, Loss};
use crate::pass::{self, Participant, Way};
use crate::run::Run;
use crate::step::{Batch, Progress};
use crate::undo::Undo;

/// Passes that are watched.
const WATCHED_PASSES: usize = 3;

/// A step of cross entropy on one run: sequences of made-up tokens, and `AdamW`.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    /// What is trained.
    pub lora: LoraSpec,
    /// Which layers are computed twice.
    pub recompute: Recompute,
    /// Whether the gradients hold another operation's already, so that a copy of them is kept.
    pub accumulates: bool,
}

/// Bytes that were foreseen and bytes that were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// By arithmetic.
    pub predicted: u64,
    /// By the allocator's count.
    pub measured: u64,
}

/// What a rehearsal took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rehearsed {
    /// The run's own tensors.
    pub run: Held,
    /// The pass at its peak, the copy that takes it back among it.
    pub pass: Held,
    /// What the optimizer's step took beside the run.
    pub step: u64,
    /// Tokens per second of the pass.
    pub tokens_per_second: f64,
}

impl Rehearsal {
    /// Makes the run and computes the step on `base`, in the processor's memory, while nothing else works in this process.
    ///
    /// Errors: `Unsupported` where the system does not tell what a process takes.
    pub fn perform(&self, base: &BaseModel) -> Result<Rehearsed> {
        let loss = losses::build(&LossSpec::named("cross_entropy"))?;
        let examples = self.examples(base, loss.as_ref())?;
        warm_up(base, loss.as_ref(), &examples)?;

        let growth = watch()?;
        let mut run = self.run(base)?;
        run.own_model(base)?;
        let _ = run.adapter(base);
        let run_growth = growth.now();

        // Once before it counts: the first pass also makes what stays for those that follow.
        self.pass(&mut run, base, loss.as_ref(), &examples)?;
        let growth = watch()?;
        let mut copies = 0;
        // The watch may miss a moment, and sees no more than there is: the most of a few is what a pass takes.
        for _ in 0..WATCHED_PASSES {
            if !self.accumulates {
                run.gradients.zero();
            }
            let undo = Undo::of(&run.gradients);
            self.pass(&mut run, base, loss.as_ref(), &examples)?;
            copies = undo.bytes();
        }
        let pass_growth = growth.peak();

        let growth = watch()?;
        run.optimizer_step(&AdamParams::default())?;
        let step = growth.peak();
        let took = timed(|| self.pass(&mut run, base, loss.as_ref(), &examples))?;
        let shape = self.shape();
        Ok(Rehearsed {
            run: Held { predicted: run.bytes(), measured: run_growth },
            pass: Held { predicted: base.cost().pass_bytes(shape, self.recompute) + copies, measured: pass_growth },
            step,
            tokens_per_second: shape.rows as f64 / took.as_secs_f64(),
        })
    }

    /// What its pass goes over.
    #[must_use]
    pub fn shape(&self) -> PassShape {
        PassShape {
            rows: self.lengths.iter().sum(),
            longest: self.lengths.iter().copied().max().unwrap_or(0),
            sequences: self.lengths.len(),
            rank: if self.lora.full { 0 } else { self.lora.rank as usize },
            backward: true,
            full: self.lora.full,
        }
    }

    fn run(&self, base: &BaseModel) -> Result<Run> {
        Run::fresh(TenantId::new("rehearsal"), "rehearsal", self.lora.clone(), base)
    }

    fn examples(&self, base: &BaseModel, loss: &dyn Loss) -> Result<Vec<Example>> {
        let vocabulary = base.config().vocab_size;
        let datum = |(place, length): (usize, &usize)| {
            let token = |position: usize| ((position * 31 + place * 7) % vocabulary) as u32;
            let targets = (1..=*length).map(|position| i64::from(token(position))).collect();
            Datum {
                tokens: (0..*length).map(token).collect(),
                loss_inputs: BTreeMap::from([("target_tokens".to_owned(), TensorData::ints(targets))]),
            }
        };
        let data = self.lengths.iter().enumerate().map(datum).collect();
        batch::check(data, loss, Limits { vocabulary, max_length: usize::MAX })
    }

    fn pass(&self, run: &mut Run, base: &BaseModel, loss: &dyn Loss, examples: &[Example]) -> Result<()> {
        compute(run, base, loss, examples, self.recompute)
    }
}

fn compute(run: &mut Run, base: &BaseModel, loss: &dyn Loss, examples: &[Example], recompute: Recompute) -> Result<()> {
    let batch = Batch::new(examples, loss, true, ForwardOptions::default(), usize::MAX);
    let progress = Progress::default();
    let shares = vec![batch.share(&progress, 0..examples.len())];
    pass::compute(base, &mut [Participant { run, shares }], Way::Back(recompute)).map(drop)
}

/// Reads every weight once and wakes the threads up.
fn warm_up(base: &BaseModel, loss: &dyn Loss, examples: &[Example]) -> Result<()> {
    let lora = LoraSpec { rank: 1, train_unembed: false, ..LoraSpec::default() };
    let mut run = Run::fresh(TenantId::new("rehearsal"), "rehearsal", lora, base)?;
    compute(&mut run, base, loss, examples, Recompute { layers: base.config().layer_count })
}

fn watch() -> Result<Growth> {
    Growth::watch().ok_or_else(|| Error::unsupported("this system does not tell what a process takes in memory"))
}

#[expect(clippy::disallowed_types, reason = "no async runtime here, and real time is what is measured")]
fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = std::time::Instant::now();
    work()?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests;
