//! How a run is, and what is saved of its training besides the weights.

use serde::{Deserialize, Serialize};

use crate::call::optimizer::OptimizerSpec;
use crate::call::scheduler::SchedulerSpec;

/// What a training checkpoint holds besides the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedTraining {
    /// Samples that the client has trained on, by its own account: it is told when it resumes.
    pub consumed_train_samples: u64,
    /// Whether the optimizer's state is left out: training then goes on with a fresh one.
    pub without_optimizer: bool,
}

impl SavedTraining {
    /// Whether it is what every operation has that says nothing.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// How far a training has come: what a client needs to go on with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingProgress {
    /// Backward passes.
    pub cur_step: u64,
    /// Samples that the client had trained on, by its own account.
    pub consumed_train_samples: u64,
    /// Backward passes that an update takes.
    pub accumulation_steps: u64,
}

/// How a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Backward passes.
    pub cur_step: u64,
    /// Backward passes that an update takes.
    pub accumulation_steps: u64,
    /// Optimizer steps.
    pub optimizer_steps: u64,
    /// The optimizer, with the settings of its next step.
    pub optimizer: OptimizerSpec,
    /// The schedule, if it has one.
    pub scheduler: Option<SchedulerSpec>,
    /// Numbers that are trained.
    pub trained: u64,
    /// Numbers of the base model's weights.
    pub base: u64,
    /// Its trained tensors, under the names they are saved by; empty unless values were asked for.
    pub parameters: Vec<NamedTensor>,
}

/// A trained tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedTensor {
    /// Its name in a checkpoint's file.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its numbers, row-major.
    #[serde(with = "crate::data::packed_f32")]
    pub values: Vec<f32>,
}
