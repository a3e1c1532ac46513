//! The clients for programs without an async runtime: every method waits.
//!
//! A [`ServiceClient`] brings a runtime of its own, on one thread, which carries the heartbeat and fetches results in the
//! background. Training and sampling stay pipelined: a method returns when the server has accepted its operation, and
//! [`Pending::result`] waits for the result.
//!
//! ```no_run
//! use twinkle_client::blocking::ServiceClient;
//! use twinkle_client::{AdamParams, Datum};
//!
//! # fn example(data: Vec<Datum>) -> twinkle_client::Result<()> {
//! let service = ServiceClient::connect("http://127.0.0.1:8000", "tml-local")?;
//! let training = service.create_lora_training_client("HuggingFaceTB/SmolLM2-135M-Instruct", 16)?;
//! let loss = training.forward_backward(data, "cross_entropy")?;
//! let step = training.optim_step(AdamParams { learning_rate: 1e-3, ..AdamParams::default() })?;
//! println!("loss {}", loss.result()?.metrics["loss:sum"]);
//! step.result()?;
//! service.close()
//! # }
//! ```
//!
//! Inside an async runtime its methods answer an error instead of stopping that runtime: use the async clients there.

mod chat;
mod rest;
mod runtime;
mod sampling;
mod service;
mod training;

pub use chat::{ChatClient, ChatStream};
pub use rest::RestClient;
pub use runtime::Pending;
pub use sampling::SamplingClient;
pub use service::{ProcessorClient, ServiceClient};
pub use training::TrainingClient;
