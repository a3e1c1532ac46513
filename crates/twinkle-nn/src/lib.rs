//! The network shared by trainer and sampler: `config.json`, weights, layers, LoRA.
//!
//! Read in this order: [`config`] says what a model is, [`weights`] maps its files, [`model`] puts the two together,
//! [`pack`] lays sequences end to end, and then the passes: forward and its hand-written backward, the fused head and
//! loss ([`head`]), prefill and decode over a [`cache`], and what a prompt's rows say of its tokens ([`score`]). [`lora`]
//! holds the adapters, [`published`] hands them from the trainer to the sampler, [`philox`] draws every random number.
//!
//! One rule shapes the arithmetic: a row's bits do not depend on its neighbours. Every matrix product over packed rows
//! runs in tiles of a constant number of rows, and attention works on one sequence at a time.
#![forbid(unsafe_code)]

mod backward;
pub mod cache;
pub mod config;
mod decode;
mod forward;
pub mod full;
pub mod head;
mod layers;
pub mod lora;
pub mod memory;
pub mod model;
pub mod pack;
pub mod philox;
mod pool;
pub mod precision;
pub mod published;
pub mod rope;
pub mod score;
pub mod tensor_file;
mod torch;
pub mod weights;

pub use cache::KvCache;
pub use config::{Family, ModelConfig};
pub use forward::Tape;
pub use head::{HeadOptions, HeadOutcome, HeadTask, LossFunction, RowFacts, RowsFunction, Scored, Slopes};
pub use layers::moe::ExpertLoad;
pub use lora::{Adapter, AdapterLayout, Gradients, LoraModule, Projection, Site, peft};
pub use memory::{CostModel, PassShape, Recompute};
pub use model::{BaseModel, LoadOptions};
pub use pack::{Pack, Segment};
pub use precision::Precision;
pub use published::{Publication, Published, PublishedAdapters};
pub use score::Pick;
pub use torch::{DeviceFailure, device_failure, out_of_memory};
