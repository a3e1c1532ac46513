//! The JSON bodies of the Tinker protocol, one file per group of routes.
//!
//! Old SDKs omit every field that has its default value, even a chunk's `type`; newer ones send
//! defaults and drop nulls. So every optional field may be absent or null here, and unknown fields are
//! ignored. A field that the protocol knows and this server does not support is listed all the same:
//! the front refuses it by name instead of ignoring it.

mod custom_loss;
mod directory;
mod futures;
mod input;
mod rest;
mod sampling;
mod session;
mod tensor;
mod training;
mod weights;

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

pub use custom_loss::{CreateCustomLoss, CustomLossCreated, CustomLossGraph, CustomLossNode};
pub use directory::{
    AssignProject, SearchOwner, SessionContents, SessionCursor, SessionNames, SessionSearchRequest,
    SessionSearchResponse, SessionStatus, SessionStatusQuery, SessionSummary, TraceExport,
};
pub use futures::{
    CancelFuture, CompleteMetadata, FutureCompletion, FuturesRetrieved, FuturesTarget, JoinSamplingSession,
    RetrieveFutures, SamplingSessionJoined,
};
pub use input::{Chunk, Datum, ModelInput};
pub use rest::{
    Checkpoint, CheckpointType, Checkpoints, Cursor, ServerCapabilities, SupportedModel, TrainingRun, TrainingRuns,
};
pub use sampling::{
    CreateSamplingSession, PromptAltTokens, Sample, SampleResponse, SampledSequence, Sampler, SamplingParams,
    SamplingSessionCreated, Seed, Stop, StopReason, TopkLogprobs, WeightSpan,
};
pub use session::{
    ClientConfig, ClientConfigRequest, CreateSession, DynamicConfig, FinishReason, FinishSession, Health, Heartbeat,
    SessionCreated, TelemetryAnswer,
};
pub use tensor::{TensorData, TensorNumbers};
pub use training::{
    AnyOptimizerParams, CreateModel, Forward, ForwardBackward, ForwardBackwardInput, ForwardBackwardOutput, Future,
    GetInfo, LoraConfig, LossSetting, ModelCreated, ModelData, ModelInfo, ModelRequest, ModelUnloaded, OptimStep,
    OptimStepOutput, OptimizerConfig, Pending, RequestFailed, RetrieveFuture,
};
pub use weights::{
    CheckpointLifetime, CopyWeights, ExternalWeightsUrls, LoadWeights, SaveWeights, SaveWeightsExternal,
    SaveWeightsForSampler, WeightsCopied, WeightsInfo, WeightsInfoRequest, WeightsLoaded, WeightsSaved,
    WeightsSavedForSampler,
};

/// The `type` of a body: written in answers, never needed when read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Tag(Cow<'static, str>);

impl Tag {
    /// This text.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

/// Reads an explicit null as the default: old SDKs send both.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
