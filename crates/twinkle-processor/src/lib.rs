//! Import path `processor`: chat templates and tokenization.
//!
//! Read in this order: [`template`] renders a conversation as the model's authors meant it, [`ModelTokenizer`] turns
//! text into tokens and back, `assistant_mask` finds which of those tokens an assistant wrote, and [`Processor`] is
//! the component that does all of it for many clients without blocking the runtime.
//!
//! Templates and tokenizers are data: Jinja runs in a sandbox without files, imports or attributes of objects.
#![forbid(unsafe_code)]

mod assistant_mask;
mod component;
mod files;
mod limits;
mod python_json;
pub mod template;
mod tokenizer;

pub use component::{Processor, ProcessorContext};
pub use template::ChatTemplate;
pub use tokenizer::ModelTokenizer;
