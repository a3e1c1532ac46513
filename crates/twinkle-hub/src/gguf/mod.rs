//! GGUF files, converted once to the layout of Hugging Face: `config.json`, safetensors in bf16, `tokenizer.json`.
//!
//! GGUF: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. candle reads the container and undoes the
//! quantisation; what is ours is the naming, the order of the rows, and the tokenizer's form.

mod cache;
mod convert;
mod reader;
mod rotation;
mod vocabulary;
mod weights;

pub(crate) use cache::GgufCache;
pub use convert::convert;
