//! What a protocol front asks of a component, and what it is answered.
//!
//! A front turns bytes into a [`Call`] and a [`Reply`] into bytes; nothing behind it knows a wire
//! format. Operations on a training run are serializable because the journal keeps them.

mod adapter;
mod custom_loss;
mod lora;
mod named;
mod optimizer;
mod process;
mod run;
mod sample;
mod scheduler;
mod serve;
#[cfg(feature = "node")]
mod stream;

pub use adapter::{AdapterCounters, AdapterRecord, AdapterSettings, MetricSetting, NamedClass};
pub use custom_loss::{CustomLossRecord, GraphArgument, GraphInput, GraphNode, LossGraph, NodeKind, SharedGraph};
pub use lora::{ExpertFactors, LoraSpec, ModuleNames, Targets};
pub use optimizer::{
    Adadelta, Adafactor, Adagrad, Adam, AdamParams, AdamW, Adamax, GradientClip, GradientNorm, Muon, MuonRate, NAdam,
    OptimizerOverrides, OptimizerSpec, OptimizerWork, RAdam, RmsProp, Sgd,
};
pub use process::{ChatMessage, EncodedText, ProcessOutcome, ProcessRequest};
pub use run::{
    CreateRun, Ending, ForwardBackwardOutcome, ForwardOptions, ForwardOutputs, Logprobs, LossSpec, NamedTensor,
    Position, RunCall, RunOperation, RunOutcome, RunState, SamplerTarget, SavedTraining, StartingPoint, Table,
    TrainingProgress,
};
pub use sample::{
    AltTokens, CellLayout, LogprobsMode, Penalties, SampleExtras, SampleOutcome, SampleRequest, SampledSequence,
    SamplingParams, SamplingSource, SparseLayout, Stop, StopReason, TargetLogprobs, TargetTokens, TopLogprobs,
    WeightVersion,
};
pub use scheduler::{Anneal, Cyclic, CyclicMode, OneCycle, SchedulerSpec};
pub use serve::{
    CheckpointCopy, CheckpointRecord, ClientEnd, CopyDestination, DEFAULT_PROJECT, FoundSession, RunRecord,
    SamplingSessionRecord, ServeOutcome, ServeRequest, SessionContents, SessionPlace, SessionRecord, SessionSearch,
    SessionState,
};
#[cfg(feature = "node")]
pub use stream::{DrawnToken, TokenSender, TokenStream, token_stream};

use self::named::named;
use crate::ids::{RequestId, TenantId};

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
#[expect(clippy::large_enum_variant, reason = "what a training run is asked is what is asked most")]
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
