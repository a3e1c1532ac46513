//! Native Rust client: train and sample LoRA adapters on a Twinkle server.
//!
//! It speaks the Tinker protocol, so it works with any server that does; text work ([`ProcessorClient`]) is an
//! addition of Twinkle servers.
//!
//! ```no_run
//! use twinkle_client::{AdamParams, ChatMessage, SamplingParams, ServiceClient, supervised_datum};
//!
//! # async fn example() -> Result<(), twinkle_client::Error> {
//! let service = ServiceClient::connect("http://127.0.0.1:8000", "tml-local").await?;
//! let model = "HuggingFaceTB/SmolLM2-135M-Instruct";
//! let processor = service.processor("/api/v1/processor", model);
//! let training = service.create_lora_training_client(model, 16).await?;
//!
//! let conversation = vec![ChatMessage::user("Who are you?"), ChatMessage::assistant("I am Twinkle.")];
//! let encoded = processor.encode_chat(vec![conversation], false).await?;
//! let data = encoded.iter().map(supervised_datum).collect::<Result<Vec<_>, _>>()?;
//!
//! // Both are on their way before the first is awaited: the server never idles between them.
//! let loss = training.forward_backward(data, "cross_entropy").await?;
//! let step = training.optim_step(AdamParams { learning_rate: 1e-3, ..AdamParams::default() }).await?;
//! println!("loss {}", loss.await?.metrics["loss:sum"]);
//! step.await?;
//!
//! let sampler = training.save_weights_and_get_sampling_client().await?;
//! let prompt = processor.encode_chat(vec![vec![ChatMessage::user("Who are you?")]], true).await?;
//! let sampled = sampler.sample(prompt[0].tokens.clone(), 1, SamplingParams::greedy(32)).await?.await?;
//! println!("{}", processor.decode(vec![sampled.sequences[0].tokens.clone()]).await?[0]);
//! # Ok(()) }
//! ```
//!
//! Every training operation is numbered and **submitted when its method returns**; what it returns is a [`Pending`] to be
//! awaited when the result is needed. Lost connections, restarts of the server and full queues are retried with the same
//! number, so nothing is done twice.
#![forbid(unsafe_code)]

mod answer;
#[cfg(feature = "blocking")]
pub mod blocking;
mod chat;
mod checkpoint_path;
mod chunking;
mod data;
mod download;
mod environment;
mod error;
mod http;
mod options;
mod pace;
mod passes;
mod pending;
mod processor;
mod progress;
mod request;
mod rest;
mod retrieve;
mod retry;
mod sampling;
mod service;
mod session;
mod training;

pub use chat::{ChatAnswer, ChatClient, ChatDelta, ChatOptions, ChatStream, ChatUsage};
pub use data::{Loss, policy_datum, supervised_datum};
pub use download::Download;
pub use environment::{API_KEY_VARIABLES, BASE_URL_VARIABLES, DEFAULT_BASE_URL, api_key_from_env, base_url_from_env};
pub use error::{Error, Result};
pub use options::{ConnectOptions, LoraOptions, SaveOptions, Weights};
pub use passes::Objective;
pub use pending::Pending;
pub use processor::ProcessorClient;
pub use progress::Progress;
pub use rest::RestClient;
pub use retry::RetryPolicy;
pub use sampling::SamplingClient;
pub use service::ServiceClient;
pub use training::TrainingClient;

pub use twinkle_core::call::{
    AdamParams, AltTokens, CellLayout, ChatMessage, ForwardBackwardOutcome, Logprobs, SampleExtras, SampleOutcome,
    SampledSequence, SamplingParams, SparseLayout, Stop, StopReason, TargetLogprobs, TargetTokens, TopLogprobs,
};
pub use twinkle_core::data::{Datum, TensorData, TensorValues, TokenIds};
pub use twinkle_core::wire::native::Encoded;
pub use twinkle_core::wire::tinker::json::{
    Checkpoint, CheckpointType, Checkpoints, Cursor, ExternalWeightsUrls, ModelData, ModelInfo, Sampler, SearchOwner,
    ServerCapabilities, SessionContents, SessionCursor, SessionNames, SessionSearchRequest, SessionSearchResponse,
    SessionStatus, SessionStatusQuery, SessionSummary, SupportedModel, TraceExport, TrainingRun, TrainingRuns,
    WeightsInfo,
};

/// The guide, whose examples are compiled with the others.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/client.md")]
struct Guide;
