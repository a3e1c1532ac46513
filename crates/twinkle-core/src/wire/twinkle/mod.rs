//! What conversations and tokenized examples look like on the Twinkle protocol.
//!
//! An input of training or sampling is either a [`Trajectory`], a conversation that the server turns into tokens with
//! the model's template, or an [`InputFeature`], which is tokens already. Both keep what they do not know: a client gets
//! back the keys that it sent.

mod feature;
mod input;
mod message;
mod numbers;
mod trajectory;

pub use feature::{IGNORED_LABEL, InputFeature, Positions};
pub use input::{Input, Inputs};
pub use message::{Content, FunctionCall, Message, ToolCall};
pub use trajectory::Trajectory;
