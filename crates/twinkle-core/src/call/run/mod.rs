//! Operations on a training run. The journal keeps them, so they are serializable.
//!
//! | file | what |
//! | --- | --- |
//! | `create` | how a run begins |
//! | `forward` | how the network is used, and which loss |
//! | `training` | how a run is, and what is saved of its training |
//! | `outcome` | what an operation results in |

mod create;
mod forward;
mod outcome;
mod training;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use create::{CreateRun, StartingPoint};
pub use forward::{ForwardOptions, ForwardOutputs, LossSpec};
pub use outcome::{ForwardBackwardOutcome, Logprobs, RunOutcome, Table};
pub use training::{NamedTensor, RunState, SavedTraining, TrainingProgress};

use super::optimizer::{AdamParams, OptimizerSpec, OptimizerWork};
use super::scheduler::SchedulerSpec;
use crate::data::Datum;
use crate::ids::{CheckpointPath, RunId, SamplingSessionId, TenantId};

/// One operation on one training run.
#[derive(Clone, Debug)]
pub struct RunCall {
    /// The run it changes.
    pub run: RunId,
    /// Its number in the run's strict order, from 1; creation is 0. `None`: in order of arrival.
    pub sequence: Option<u64>,
    /// Its place in the journal; filled in by the journal, zero before.
    pub position: Position,
    /// What to do.
    pub operation: RunOperation,
}

impl RunCall {
    /// Input tokens: what the operation costs, roughly.
    #[must_use]
    pub fn input_tokens(&self) -> usize {
        match &self.operation {
            RunOperation::ForwardBackward { data, .. } => data.iter().map(|datum| datum.tokens.len()).sum(),
            _ => 0,
        }
    }
}

/// A place in a run's order of work.
///
/// A numbered operation sits at `(its number, 0)`; an unnumbered one right after the highest number
/// that had been released when it arrived, at `(that number, its arrival)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The number of the operation, or of the last one before it.
    pub after: u64,
    /// 0 for a numbered operation, else a growing arrival number.
    pub arrival: i64,
}

/// What can be done to a training run. The journal stores these: fields may be added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "the largest is a run's first operation, one of thousands")]
pub enum RunOperation {
    /// Makes the run, with a fresh adapter or with one from a checkpoint.
    Create(CreateRun),
    /// Loss and logprobs of every datum; with `backward`, adds the loss's gradient to the run's accumulators.
    ForwardBackward {
        /// The examples, never empty.
        data: Vec<Datum>,
        /// Which loss.
        loss: LossSpec,
        /// Whether gradients are accumulated.
        backward: bool,
        /// How the network is used, and what is returned besides logprobs.
        #[serde(default, skip_serializing_if = "ForwardOptions::is_usual")]
        options: ForwardOptions,
    },
    /// Consumes the accumulated gradients in one optimizer step.
    OptimStep(AdamParams),
    /// Gives the run a fresh optimizer, without a schedule, in place of the one it has.
    SetOptimizer(OptimizerSpec),
    /// Lets a schedule set the learning rate of the run's optimizer, beginning now.
    SetScheduler(SchedulerSpec),
    /// Works on the accumulated gradients with the run's own optimizer.
    Optimize(OptimizerWork),
    /// Saves adapter, optimizer and counters under `path`.
    SaveState {
        /// Where; its kind is `weights`.
        path: CheckpointPath,
        /// Lifetime of the checkpoint; `None` keeps it until deleted.
        ttl_seconds: Option<u64>,
        /// Whether an existing checkpoint of that name is replaced.
        overwrite: bool,
        /// The user's notes.
        user_metadata: BTreeMap<String, String>,
        /// What is saved besides the weights.
        #[serde(default, skip_serializing_if = "SavedTraining::is_usual")]
        training: SavedTraining,
    },
    /// Publishes the adapter for sampling.
    SaveForSampler {
        /// A checkpoint on disk, a live sampling session, or both.
        target: SamplerTarget,
        /// Lifetime of the checkpoint; `None` keeps it until deleted.
        ttl_seconds: Option<u64>,
        /// The user's notes.
        user_metadata: BTreeMap<String, String>,
    },
    /// Writes the adapter as PEFT files that users download.
    SaveExternal {
        /// Where; its kind is `external_weights`.
        path: CheckpointPath,
        /// Lifetime of the checkpoint; `None` keeps it until deleted.
        ttl_seconds: Option<u64>,
        /// Whom every file is encrypted for, in the form of `age`; nobody: the files are plain.
        #[serde(default)]
        recipients: Vec<String>,
    },
    /// Replaces the run's adapter, and with `with_optimizer` its Adam moments; drops accumulated gradients.
    LoadState {
        /// The checkpoint to load; its kind is `weights`.
        path: CheckpointPath,
        /// Whether the optimizer continues or starts afresh.
        with_optimizer: bool,
        /// Whose checkpoint it is when it is another tenant's, which was public when this was accepted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<TenantId>,
    },
    /// Frees the run's memory; its checkpoints stay.
    Unload,
    /// Saves the run as a checkpoint and frees its memory: the last operation of a run whose time is over.
    Expire {
        /// Where; its kind is `weights`.
        path: CheckpointPath,
        /// Why.
        ending: Ending,
    },
    /// Moves the run from memory to disk until its next operation. Sent by the journal, never journaled.
    Spill,
    /// Tells how the run is now. Sent by the journal, never journaled.
    Describe {
        /// Whether the values of its parameters are wanted.
        values: bool,
    },
    /// Rebuilds the run from a snapshot after a restart. Sent by the journal, never journaled.
    Restore {
        /// The snapshot's folder.
        directory: PathBuf,
    },
}

impl RunOperation {
    /// A short name for logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create_model",
            Self::ForwardBackward { backward: true, .. } => "forward_backward",
            Self::ForwardBackward { backward: false, .. } => "forward",
            Self::OptimStep(_) => "optim_step",
            Self::SetOptimizer(_) => "set_optimizer",
            Self::SetScheduler(_) => "set_lr_scheduler",
            Self::Optimize(work) => work.name(),
            Self::SaveState { .. } => "save_weights",
            Self::SaveForSampler { .. } => "save_weights_for_sampler",
            Self::SaveExternal { .. } => "save_weights_external",
            Self::LoadState { .. } => "load_weights",
            Self::Unload => "unload_model",
            Self::Expire { .. } => "expire_model",
            Self::Spill => "spill",
            Self::Describe { .. } => "describe",
            Self::Restore { .. } => "restore",
        }
    }
}

/// Why a run was ended without its client asking for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Its session was silent too long, or is finished.
    Session,
    /// It lived as long as a run may.
    Lifetime,
}

/// Where an adapter is published for sampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SamplerTarget {
    /// A checkpoint on disk of kind `sampler_weights`.
    Checkpoint(CheckpointPath),
    /// A new sampling session that holds these weights in memory.
    Live(SamplingSessionId),
    /// A new sampling session on the run's shared weights, which these replace for all such sessions of the run.
    Inflight {
        /// The new session.
        session: SamplingSessionId,
        /// The name of the shared weights.
        weights: SamplingSessionId,
    },
}

impl SamplerTarget {
    /// The name under which an adapter is published without a checkpoint.
    #[must_use]
    pub fn published(&self) -> Option<&SamplingSessionId> {
        match self {
            Self::Checkpoint(_) => None,
            Self::Live(weights) | Self::Inflight { weights, .. } => Some(weights),
        }
    }
}

#[cfg(all(test, feature = "node"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_before_there_were_options_is_read_with_the_usual_ones() {
        #[derive(Serialize)]
        enum Earlier {
            ForwardBackward { data: Vec<Datum>, loss: EarlierLoss, backward: bool },
        }
        #[derive(Serialize)]
        struct EarlierLoss {
            name: &'static str,
            config: BTreeMap<String, f64>,
        }
        #[derive(Serialize)]
        struct EarlierOutcome {
            logprobs: Vec<Logprobs>,
            metrics: BTreeMap<String, f64>,
        }
        let loss = EarlierLoss { name: "ppo", config: BTreeMap::new() };
        let bytes = rmp_serde::to_vec_named(&Earlier::ForwardBackward { data: vec![], loss, backward: true }).unwrap();
        let expected = RunOperation::ForwardBackward {
            data: vec![],
            loss: LossSpec::named("ppo"),
            backward: true,
            options: ForwardOptions::default(),
        };
        assert_eq!(rmp_serde::from_slice::<RunOperation>(&bytes).unwrap(), expected);
        let bytes = rmp_serde::to_vec_named(&EarlierOutcome { logprobs: vec![], metrics: BTreeMap::new() }).unwrap();
        let read: ForwardBackwardOutcome = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(read, ForwardBackwardOutcome::default());
    }
}
