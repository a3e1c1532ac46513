//! What a protocol front asks of a component, and what it is answered.
//!
//! A front turns bytes into a [`Call`] and a [`Reply`] into bytes; nothing behind it knows a wire
//! format. Operations on a training run are serializable because the journal keeps them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::{Datum, TokenIds};
use crate::ids::{CheckpointPath, RequestId, RunId, SamplingSessionId, SessionId, TenantId};

/// A typed request from one tenant to one component.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who asks; a component answers only about this tenant's objects.
    pub tenant: TenantId,
    /// What is asked.
    pub operation: Operation,
}

/// What is asked, by the kind of component that answers.
#[derive(Clone, Debug)]
pub enum Operation {
    /// For an application with `import_path: model`.
    Run(RunCall),
    /// For an application with `import_path: sampler`.
    Sample(Box<SampleRequest>),
    /// For an application with `import_path: processor`.
    Process(ProcessRequest),
    /// For an application with `import_path: server`.
    Serve(ServeRequest),
}

/// The answer to a [`Call`].
#[derive(Clone, Debug)]
pub enum Reply {
    /// The operation is durable and will be executed in its turn; ask again with this id.
    Accepted(RequestId),
    /// The result of a [`RunOperation`].
    Run(RunOutcome),
    /// The result of a [`SampleRequest`].
    Sample(SampleOutcome),
    /// The result of a [`ProcessRequest`].
    Process(ProcessOutcome),
    /// The result of a [`ServeRequest`].
    Serve(ServeOutcome),
}

impl Operation {
    /// A short name for logs and metrics: `forward_backward`, `sample`, …
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Run(call) => call.operation.name(),
            Self::Sample(_) => "sample",
            Self::Process(_) => "process",
            Self::Serve(_) => "serve",
        }
    }

    /// Input tokens, the unit of `tps_limit` and `max_input_tokens`.
    #[must_use]
    pub fn input_tokens(&self) -> usize {
        match self {
            Self::Run(call) => call.input_tokens(),
            Self::Sample(request) => request.prompt.len(),
            Self::Process(_) | Self::Serve(_) => 0,
        }
    }
}

// === impl training ===

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
    },
    /// Consumes the accumulated gradients in one optimizer step.
    OptimStep(AdamParams),
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
    /// Replaces the run's adapter, and with `with_optimizer` its Adam moments; drops accumulated gradients.
    LoadState {
        /// The checkpoint to load; its kind is `weights`.
        path: CheckpointPath,
        /// Whether the optimizer continues or starts afresh.
        with_optimizer: bool,
    },
    /// Frees the run's memory; its checkpoints stay.
    Unload,
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
            Self::SaveState { .. } => "save_weights",
            Self::SaveForSampler { .. } => "save_weights_for_sampler",
            Self::LoadState { .. } => "load_weights",
            Self::Unload => "unload_model",
            Self::Restore { .. } => "restore",
        }
    }
}

/// How a run begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateRun {
    /// The base model's public name.
    pub base_model: String,
    /// The adapter's shape. When `from` is given, the checkpoint's own wins and this repeats it.
    pub lora: LoraSpec,
    /// A checkpoint to start from instead of a fresh adapter.
    pub from: Option<StartingPoint>,
    /// The user's notes, returned with the run.
    pub user_metadata: BTreeMap<String, String>,
}

/// A checkpoint to start a run from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartingPoint {
    /// Which; its kind is `weights`.
    pub path: CheckpointPath,
    /// Whether the optimizer continues or starts afresh.
    pub with_optimizer: bool,
}

/// The shape and start of a LoRA adapter (Hu et al. 2021): `y = W x + (alpha / rank) · B A x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    /// Rows of `A`, columns of `B`.
    pub rank: u32,
    /// The numerator of the scale; 32 for Tinker clients unless the operator sets another.
    pub alpha: f64,
    /// Seed of the initial `A`; `B` starts at zero.
    pub seed: u64,
    /// Adapters on the attention projections.
    pub train_attn: bool,
    /// Adapters on the MLP projections.
    pub train_mlp: bool,
    /// An adapter on the output head.
    pub train_unembed: bool,
}

/// A loss by name with its numeric settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossSpec {
    /// `cross_entropy`, …
    pub name: String,
    /// Settings such as `clip_low_threshold`.
    pub config: BTreeMap<String, f64>,
}

/// `AdamW` settings of one step (Loshchilov & Hutter 2019); every field may change from step to step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
        /// `grad_norm` when clipping was asked for, and so on.
        metrics: BTreeMap<String, f64>,
    },
    /// A training checkpoint was written.
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
    },
    /// The run's memory was freed.
    Unloaded {
        /// Its name.
        run: RunId,
    },
    /// The run was rebuilt from a snapshot.
    Restored {
        /// Its name.
        run: RunId,
    },
}

/// What a forward or forward-backward returns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForwardBackwardOutcome {
    /// Per datum, the log-probability of each target: the very numbers the loss used.
    pub logprobs: Vec<Logprobs>,
    /// `loss:sum` and others; each key is `name:reduction`.
    pub metrics: BTreeMap<String, f64>,
}

/// Natural-log probabilities, one per position.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Logprobs(#[serde(with = "crate::data::packed_f32")] pub Vec<f32>);

// === impl sampling ===

/// A sampling request whose shape has been checked; the engine checks it against the model.
#[derive(Clone, Debug)]
pub struct SampleRequest {
    /// Which weights.
    pub source: SamplingSource,
    /// The prompt, never empty.
    pub prompt: TokenIds,
    /// How many independent continuations.
    pub num_samples: u32,
    /// How to draw.
    pub params: SamplingParams,
    /// Whether the logprob of every prompt token is wanted.
    pub prompt_logprobs: bool,
}

/// Which weights a sampling request reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SamplingSource {
    /// The frozen base model.
    Base,
    /// An adapter saved on disk.
    Checkpoint(CheckpointPath),
    /// An adapter a run published without a disk.
    Live(SamplingSessionId),
}

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Most new tokens per sample; `None`: until the context is full.
    pub max_tokens: Option<u32>,
    /// Same seed and request, same tokens, whatever else runs. `None`: drawn by the server.
    pub seed: Option<u64>,
    /// When to stop before `max_tokens`.
    pub stop: Stop,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `k` most likely tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
}

/// When a sample ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At the model's end-of-sequence tokens.
    EndOfSequence,
    /// Never before `max_tokens`.
    Never,
    /// At any of these texts, or end-of-sequence.
    Strings(Vec<String>),
    /// At any of these tokens, or end-of-sequence.
    Tokens(Vec<u32>),
}

/// The continuations of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOutcome {
    /// One per requested sample, in order.
    pub sequences: Vec<SampledSequence>,
    /// Per prompt token its logprob given those before; the first is `None`.
    pub prompt_logprobs: Option<Vec<Option<f32>>>,
}

/// One continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledSequence {
    /// The new tokens, with the stop token or the tokens that completed a stop string.
    pub tokens: TokenIds,
    /// Per token its logprob under the distribution `softmax(logits / temperature)`.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub stop_reason: StopReason,
}

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A stop token or string, or end-of-sequence.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
}

// === impl processing ===

/// Text work that needs a tokenizer and no device.
#[derive(Clone, Debug)]
pub enum ProcessRequest {
    /// Renders conversations with the model's chat template and tokenizes them.
    EncodeChat {
        /// The conversations.
        conversations: Vec<Vec<ChatMessage>>,
        /// Whether to end with the header of an assistant's turn, to be continued by sampling.
        add_generation_prompt: bool,
    },
    /// Tokenizes plain text, without special tokens.
    Encode {
        /// The texts.
        texts: Vec<String>,
    },
    /// Turns tokens back into text.
    Decode {
        /// The token sequences.
        sequences: Vec<TokenIds>,
        /// Whether special tokens are left out.
        skip_special_tokens: bool,
    },
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// The result of a [`ProcessRequest`].
#[derive(Clone, Debug, PartialEq)]
pub enum ProcessOutcome {
    /// Per input, tokens and their training mask.
    Encoded(Vec<EncodedText>),
    /// Per sequence, its text.
    Decoded(Vec<String>),
}

/// A tokenized conversation or text.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedText {
    /// The tokens.
    pub tokens: TokenIds,
    /// Per token 1 where an assistant wrote it, else 0; all 0 for plain text.
    pub assistant_mask: Vec<u8>,
}

// === impl serving ===

/// What the central `server` component does: sessions, directories of runs and checkpoints.
#[derive(Clone, Debug)]
pub enum ServeRequest {
    /// Opens a session.
    CreateSession {
        /// The client's tags.
        tags: Vec<String>,
        /// The user's notes.
        user_metadata: BTreeMap<String, String>,
        /// The client's version, for the record.
        sdk_version: Option<String>,
    },
    /// Keeps a session alive.
    Heartbeat(SessionId),
    /// Ends a session.
    FinishSession(SessionId),
    /// Describes a live session.
    DescribeSession(SessionId),
    /// Opens a place to sample from.
    CreateSamplingSession {
        /// The session it belongs to.
        session: SessionId,
        /// The client's number for it; the same number names the same sampling session.
        number: u64,
        /// The base model's public name; taken from the checkpoint when absent.
        base_model: Option<String>,
        /// The weights.
        source: SamplingSource,
    },
    /// Describes a sampling session.
    DescribeSamplingSession(SamplingSessionId),
    /// Describes a run.
    DescribeRun(RunId),
    /// Lists the tenant's runs, newest first.
    ListRuns {
        /// At most this many.
        limit: u32,
        /// Leaving out this many.
        offset: u32,
    },
    /// Lists checkpoints of a run, or of all runs.
    ListCheckpoints {
        /// Only this run's.
        run: Option<RunId>,
    },
    /// Describes a checkpoint.
    DescribeCheckpoint(CheckpointPath),
    /// Deletes a checkpoint.
    DeleteCheckpoint(CheckpointPath),
}

/// The result of a [`ServeRequest`].
#[derive(Clone, Debug, PartialEq)]
pub enum ServeOutcome {
    /// Done, nothing to tell.
    Done,
    /// A session.
    Session(SessionRecord),
    /// A sampling session.
    SamplingSession(SamplingSessionRecord),
    /// A run.
    Run(RunRecord),
    /// Runs, and how many there are in all.
    Runs {
        /// One page.
        runs: Vec<RunRecord>,
        /// How many there are in all.
        total: u64,
    },
    /// Checkpoints.
    Checkpoints(Vec<CheckpointRecord>),
    /// A checkpoint.
    Checkpoint(CheckpointRecord),
}

/// A session as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its id.
    pub id: SessionId,
    /// Its owner.
    pub tenant: TenantId,
    /// The client's tags.
    pub tags: Vec<String>,
    /// The user's notes.
    pub user_metadata: BTreeMap<String, String>,
    /// The client's version.
    pub sdk_version: Option<String>,
    /// Whether it was finished; new runs are refused then.
    pub finished: bool,
    /// When it was opened.
    pub created_at: jiff::Timestamp,
}

/// A sampling session as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingSessionRecord {
    /// Its id.
    pub id: SamplingSessionId,
    /// Its owner.
    pub tenant: TenantId,
    /// The session it belongs to.
    pub session: SessionId,
    /// The base model's public name.
    pub base_model: String,
    /// The weights.
    pub source: SamplingSource,
}

/// A training run as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its id.
    pub id: RunId,
    /// Its owner.
    pub tenant: TenantId,
    /// The session it belongs to.
    pub session: SessionId,
    /// The base model's public name.
    pub base_model: String,
    /// The adapter's shape.
    pub lora: LoraSpec,
    /// The user's notes.
    pub user_metadata: BTreeMap<String, String>,
    /// Whether it was unloaded or never came to be.
    pub closed: bool,
    /// When it was created.
    pub created_at: jiff::Timestamp,
    /// When it was last used.
    pub last_used_at: jiff::Timestamp,
}

/// A checkpoint as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// Its path.
    pub path: CheckpointPath,
    /// Its owner.
    pub tenant: TenantId,
    /// The base model's public name.
    pub base_model: String,
    /// The adapter's shape.
    pub lora: LoraSpec,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// The user's notes.
    pub user_metadata: BTreeMap<String, String>,
    /// When it was saved.
    pub created_at: jiff::Timestamp,
    /// When it will be removed.
    pub expires_at: Option<jiff::Timestamp>,
}
