//! Import path `processor`: chat templates and tokenization.
//!
//! Read in this order: [`template`] renders a conversation as the model's authors meant it, [`ModelTokenizer`] turns
//! text into tokens and back, `rounds` finds which of those tokens an assistant wrote, and [`Processor`] is
//! the component that does all of it for many clients without blocking the runtime. [`Template`] makes tokenized examples
//! of conversations as Twinkle's clients know them, [`Templates`] lends them to the protocol fronts, and [`Assistant`]
//! takes what a model wrote apart.
//!
//! Templates and tokenizers are data: Jinja runs in a sandbox without files, imports or attributes of objects.
#![forbid(unsafe_code)]

pub mod advantage;
mod assistant;
mod component;
pub mod data;
pub mod dataset;
mod encode;
mod files;
mod limits;
pub mod loader;
pub mod objects;
pub mod preprocess;
mod python_json;
pub mod reward;
mod rounds;
pub mod template;
mod templates;
mod tokenizer;
mod tool_calls;
mod unfinished;

pub use assistant::{Assistant, parse_assistant};
pub use component::{Processor, ProcessorContext};
pub use encode::{Template, TemplateClass, TemplateSpec, Truncation, extend_feature};
pub use template::ChatTemplate;
pub use templates::Templates;
pub use tokenizer::ModelTokenizer;
pub use tool_calls::{CallFormat, CallPart, CallReader, Calling, OfferedTools, split_tool_calls};
pub use unfinished::unfinished;
