//! JSON bodies of our own routes: text work of a `processor` application, below its `route_prefix`.
//!
//! | route | request | response |
//! | --- | --- | --- |
//! | `POST {prefix}/encode_chat` | [`EncodeChatRequest`] | [`EncodedResponse`] |
//! | `POST {prefix}/encode` | [`EncodeRequest`] | [`EncodedResponse`] |
//! | `POST {prefix}/decode` | [`DecodeRequest`] | [`DecodedResponse`] |

use serde::{Deserialize, Serialize};

use crate::call::{ChatMessage, EncodedText};
use crate::data::TokenIds;

/// Conversations to be rendered with the model's chat template and tokenized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EncodeChatRequest {
    /// The public name of the model; may be left out where the application serves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversations, each a list of turns.
    pub conversations: Vec<Vec<ChatMessage>>,
    /// Whether to end with the header of an assistant's turn, to be continued by sampling.
    #[serde(default)]
    pub add_generation_prompt: bool,
}

/// Plain texts to be tokenized, without special tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EncodeRequest {
    /// The public name of the model; may be left out where the application serves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The texts.
    pub texts: Vec<String>,
}

/// Token sequences to be turned into text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DecodeRequest {
    /// The public name of the model; may be left out where the application serves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The sequences.
    pub sequences: Vec<TokenIds>,
    /// Whether special tokens are left out.
    #[serde(default)]
    pub skip_special_tokens: bool,
}

/// One tokenized input for each input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EncodedResponse {
    /// In the order of the inputs.
    pub encoded: Vec<Encoded>,
}

/// A tokenized conversation or text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Encoded {
    /// The tokens.
    pub tokens: TokenIds,
    /// Per token 1 where an assistant wrote it, else 0; all 0 for plain text.
    pub assistant_mask: Vec<u8>,
}

impl From<EncodedText> for Encoded {
    fn from(text: EncodedText) -> Self {
        Self { tokens: text.tokens, assistant_mask: text.assistant_mask }
    }
}

/// One text for each sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DecodedResponse {
    /// In the order of the sequences.
    pub texts: Vec<String>,
}
