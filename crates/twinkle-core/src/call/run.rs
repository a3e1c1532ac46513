//! Operations on a training run. The journal keeps them, so they are serializable.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::custom_loss::SharedGraph;
use super::lora::LoraSpec;
use super::optimizer::{OptimizerSpec, OptimizerWork};
use super::scheduler::SchedulerSpec;
use crate::data::Datum;
use crate::ids::{CheckpointPath, RunId, SamplingSessionId, SessionId, TenantId};

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

/// How a run begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateRun {
    /// The session it belongs to, when the run's name does not say so: see [`RunId::session`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Backward passes that an update takes, if more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulation_steps: Option<u64>,
    /// The base model's public name.
    pub base_model: String,
    /// The adapter's shape. When `from` is given, the checkpoint's own wins and this repeats it.
    pub lora: LoraSpec,
    /// A checkpoint to start from instead of a fresh adapter.
    pub from: Option<StartingPoint>,
    /// The user's notes, returned with the run.
    pub user_metadata: BTreeMap<String, String>,
}

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

/// A checkpoint to start a run from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartingPoint {
    /// Which; its kind is `weights`.
    pub path: CheckpointPath,
    /// Whether the optimizer continues or starts afresh.
    pub with_optimizer: bool,
    /// Whose checkpoint it is when it is another tenant's, which was public when this was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<TenantId>,
}

/// How the network is used in one forward or forward-backward, and what is returned besides logprobs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForwardOptions {
    /// Logits are divided by it before everything else; above 0.
    pub temperature: f64,
    /// Whether the base model computes without the run's adapter. Forward only: there is nothing to train.
    pub disable_lora: bool,
    /// What is returned besides logprobs.
    pub outputs: ForwardOutputs,
    /// From here on an update takes so many backward passes, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accumulation_steps: Option<u64>,
}

impl Default for ForwardOptions {
    fn default() -> Self {
        Self { temperature: 1.0, disable_lora: false, outputs: ForwardOutputs::default(), accumulation_steps: None }
    }
}

impl ForwardOptions {
    /// Whether it is what every operation has that says nothing.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What a forward or forward-backward returns besides logprobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForwardOutputs {
    /// Every logit of every position, divided by the temperature. They are large: a request may ask for so many only.
    pub logits: bool,
    /// The entropy of the distribution at every position.
    pub entropies: bool,
    /// Of each datum the row after its last token, of length 1.
    pub embeddings: bool,
}

/// A loss by name with its settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossSpec {
    /// `cross_entropy`, …
    pub name: String,
    /// Settings such as `clip_low_threshold`; yes and no are 1 and 0.
    pub config: BTreeMap<String, f64>,
    /// Settings that are words, such as `loss_type`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// What `custom` computes: taken along, so that a replay does not depend on a client's list of losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<SharedGraph>,
}

impl LossSpec {
    /// A loss with the settings it has by default.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

/// `AdamW` settings of one step (Loshchilov & Hutter 2019); every field may change from step to step.
/// A setting that is not here would change the step: it is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamParams {
    /// Learning rate, at least 0.
    pub learning_rate: f64,
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down; 0 turns clipping off.
    pub grad_clip_norm: f64,
}

impl Default for AdamParams {
    fn default() -> Self {
        Self { learning_rate: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-12, weight_decay: 0.0, grad_clip_norm: 0.0 }
    }
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

/// The result of a [`RunOperation`]; stored until the client has had time to fetch it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RunOutcome {
    /// The run exists.
    Created {
        /// Its name.
        run: RunId,
    },
    /// Loss and logprobs.
    ForwardBackward(ForwardBackwardOutcome),
    /// The optimizer stepped.
    OptimStep {
        /// `grad_norm` (before clipping) and `learning_rate` of the step, and so on.
        metrics: BTreeMap<String, f64>,
    },
    /// The run's optimizer or its schedule is set.
    OptimizerSet {
        /// Its name.
        run: RunId,
    },
    /// A training checkpoint or an export was written.
    Saved {
        /// Where.
        path: CheckpointPath,
    },
    /// The adapter was published for sampling.
    SavedForSampler {
        /// Where.
        target: SamplerTarget,
    },
    /// A checkpoint was loaded.
    Loaded {
        /// The run that loaded it.
        run: RunId,
        /// What it loaded.
        path: CheckpointPath,
        /// How far the training had come that saved it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<TrainingProgress>,
    },
    /// How the run is.
    Described(Box<RunState>),
    /// The run's memory was freed.
    Unloaded {
        /// Its name.
        run: RunId,
    },
    /// The run was saved and its memory freed.
    Expired {
        /// Its name.
        run: RunId,
        /// Where it can be taken up from.
        path: CheckpointPath,
        /// Why it ended.
        ending: Ending,
    },
    /// The run is on disk.
    Spilled {
        /// Its name.
        run: RunId,
    },
    /// The run was rebuilt from a snapshot.
    Restored {
        /// Its name.
        run: RunId,
    },
}

impl RunOutcome {
    /// Whether the run is over with it.
    #[must_use]
    pub const fn ends_run(&self) -> bool {
        matches!(self, Self::Unloaded { .. } | Self::Expired { .. })
    }
}

/// What a forward or forward-backward returns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForwardBackwardOutcome {
    /// Per datum, the log-probability of each target: the very numbers the loss used.
    pub logprobs: Vec<Logprobs>,
    /// `loss:sum` and others; each key is `name:reduction`.
    pub metrics: BTreeMap<String, f64>,
    /// What the loss counts towards the division of gradients: its tokens where it is a sum over tokens, 0 where it has
    /// divided already.
    #[serde(default)]
    pub num_tokens: f64,
    /// Per datum one entropy (in nats) for each position; empty if not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entropies: Vec<Table>,
    /// Per datum `[tokens × vocabulary]`; empty if not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logits: Vec<Table>,
    /// Per datum one row of the model's width; empty if not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<Table>,
}

/// Numbers of one datum in rows of equal width.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Row-major `[rows × width]`.
    #[serde(with = "crate::data::packed_f32")]
    pub values: Vec<f32>,
    /// Numbers in a row.
    pub width: usize,
}

/// Natural-log probabilities of one datum, in the shape of its `target_tokens`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredLogprobs", into = "StoredLogprobs")]
pub struct Logprobs {
    /// Row-major `[tokens × candidates]`.
    pub values: Vec<f32>,
    /// Second dimension of the targets; `None`: they have one dimension.
    pub candidates: Option<usize>,
}

impl Logprobs {
    /// One per position.
    #[must_use]
    pub const fn flat(values: Vec<f32>) -> Self {
        Self { values, candidates: None }
    }
}

/// One dimension is stored as a byte string, the only form there once was.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredLogprobs {
    Flat(#[serde(with = "crate::data::packed_f32")] Vec<f32>),
    Table {
        #[serde(with = "crate::data::packed_f32")]
        values: Vec<f32>,
        candidates: usize,
    },
}

impl From<StoredLogprobs> for Logprobs {
    fn from(stored: StoredLogprobs) -> Self {
        match stored {
            StoredLogprobs::Flat(values) => Self::flat(values),
            StoredLogprobs::Table { values, candidates } => Self { values, candidates: Some(candidates) },
        }
    }
}

impl From<Logprobs> for StoredLogprobs {
    fn from(Logprobs { values, candidates }: Logprobs) -> Self {
        match candidates {
            None => Self::Flat(values),
            Some(candidates) => Self::Table { values, candidates },
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

    #[test]
    fn options_and_tables_are_read_again() {
        let outputs = ForwardOutputs { entropies: true, ..ForwardOutputs::default() };
        let options = ForwardOptions { temperature: 0.7, disable_lora: true, outputs, accumulation_steps: Some(2) };
        let operation =
            RunOperation::ForwardBackward { data: vec![], loss: LossSpec::named("a"), backward: false, options };
        let bytes = rmp_serde::to_vec_named(&operation).unwrap();
        assert_eq!(rmp_serde::from_slice::<RunOperation>(&bytes).unwrap(), operation);
        let table = Table { values: vec![1.0, -2.0], width: 2 };
        let outcome = ForwardBackwardOutcome { embeddings: vec![table], num_tokens: 3.0, ..Default::default() };
        let bytes = rmp_serde::to_vec_named(&outcome).unwrap();
        assert_eq!(rmp_serde::from_slice::<ForwardBackwardOutcome>(&bytes).unwrap(), outcome);
    }

    #[test]
    fn stored_logprobs_of_every_shape_are_read_again() {
        let flat = Logprobs::flat(vec![-1.0, -2.5]);
        let table = Logprobs { values: vec![-1.0, -2.0], candidates: Some(2) };
        for logprobs in [flat.clone(), table, Logprobs::flat(vec![])] {
            let bytes = rmp_serde::to_vec_named(&logprobs).unwrap();
            assert_eq!(rmp_serde::from_slice::<Logprobs>(&bytes).unwrap(), logprobs);
        }
        // What was stored before there were candidates: a byte string.
        let bytes: Vec<u8> = flat.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let stored = rmp_serde::to_vec_named(&serde_bytes::ByteBuf::from(bytes)).unwrap();
        assert_eq!(rmp_serde::from_slice::<Logprobs>(&stored).unwrap(), flat);
    }
}
