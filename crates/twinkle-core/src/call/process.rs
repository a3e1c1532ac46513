//! Text work: chat templates and tokenization.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::TokenIds;
use crate::ids::SessionId;

/// Text work that needs a tokenizer and no device.
#[derive(Clone, Debug)]
pub enum ProcessRequest {
    /// Renders conversations with the model's chat template and tokenizes them.
    EncodeChat {
        /// Whose chat template and tokenizer; may be left out where one model is served.
        model: Option<String>,
        /// The conversations.
        conversations: Vec<Vec<ChatMessage>>,
        /// Whether to end with the header of an assistant's turn, to be continued by sampling. Such a text is a
        /// prompt, not an example to learn from: its training mask is all 0.
        add_generation_prompt: bool,
    },
    /// Tokenizes plain text, without special tokens.
    Encode {
        /// Whose tokenizer; may be left out where one model is served.
        model: Option<String>,
        /// The texts.
        texts: Vec<String>,
    },
    /// Turns tokens back into text.
    Decode {
        /// Whose tokenizer; may be left out where one model is served.
        model: Option<String>,
        /// The token sequences.
        sequences: Vec<TokenIds>,
        /// Whether special tokens are left out.
        skip_special_tokens: bool,
    },
    /// Makes an object that can be called: a data set, a loader, a preprocessor, a reward, …
    Create {
        /// The session that it ends with.
        session: SessionId,
        /// `dataset`, `dataloader`, `preprocessor`, `processor`, `reward`, `advantage` or `template`.
        kind: String,
        /// The name of its class.
        class: String,
        /// The constructor's arguments.
        arguments: Map<String, Value>,
    },
    /// Calls a function of such an object.
    CallObject {
        /// Its name.
        object: String,
        /// The name of the function.
        function: String,
        /// The function's arguments.
        arguments: Map<String, Value>,
    },
    /// Says that objects are still wanted; those of other tenants and those that are gone are passed over.
    KeepObjects {
        /// Their names.
        objects: Vec<String>,
    },
}

impl ProcessRequest {
    /// The public name of the model that is asked for.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        match self {
            Self::EncodeChat { model, .. } | Self::Encode { model, .. } | Self::Decode { model, .. } => {
                model.as_deref()
            }
            Self::Create { .. } | Self::CallObject { .. } | Self::KeepObjects { .. } => None,
        }
    }

    /// Whether it is about objects: a client asks for one row or batch after another, so these calls are not counted.
    #[must_use]
    pub const fn is_about_objects(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::CallObject { .. } | Self::KeepObjects { .. })
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl ChatMessage {
    /// A turn of the system.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".to_owned(), content: content.into() }
    }

    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".to_owned(), content: content.into() }
    }

    /// A turn of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".to_owned(), content: content.into() }
    }
}

/// The result of a [`ProcessRequest`].
#[derive(Clone, Debug, PartialEq)]
pub enum ProcessOutcome {
    /// Per input, tokens and their training mask.
    Encoded(Vec<EncodedText>),
    /// Per sequence, its text.
    Decoded(Vec<String>),
    /// The name of an object that was made.
    Created(String),
    /// What a function answered, as JSON.
    Answered(String),
    /// An iterator has no further element.
    Exhausted,
}

/// A tokenized conversation or text.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedText {
    /// The tokens.
    pub tokens: TokenIds,
    /// Per token 1 where an assistant wrote it, else 0; all 0 for plain text.
    pub assistant_mask: Vec<u8>,
}
