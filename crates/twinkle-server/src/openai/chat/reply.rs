//! What `POST chat/completions` answers, whole or in pieces.

use schemars::JsonSchema;
use serde::Serialize;
use twinkle_core::call::DrawnToken;
use twinkle_processor::ModelTokenizer;

use super::super::answer::{PieceUsage, Usage};
use super::super::token_text::token_text;
use super::Chat;

/// The whole answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletion")]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    created: i64,
    model: String,
    choices: Vec<Choice>,
    usage: Usage,
}

/// One choice.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatChoice")]
pub(super) struct Choice {
    pub(super) index: u32,
    pub(super) message: Message,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) finish_reason: &'static str,
}

/// What the assistant says.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatReply")]
pub(super) struct Message {
    role: &'static str,
    /// `null` when it only calls tools.
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    refusal: (),
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    tool_calls: Vec<CalledTool>,
}

/// A call of a tool, or what a piece adds to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct CalledTool {
    /// In a stream, which of the calls it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<usize>,
    /// Said once for each call, as the kind and the function's name are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<&'static str>,
    pub(super) function: CalledFunction,
}

/// Which function, and its arguments as JSON text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct CalledFunction {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) arguments: String,
}

/// Logprobs of the tokens of a choice: one entry for each that was drawn, also for the one that ended it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatLogprobs")]
pub(super) struct Logprobs {
    pub(super) content: Vec<TokenLogprob>,
    pub(super) refusal: (),
}

/// A token with its logprob and its likeliest neighbours.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct TokenLogprob {
    #[serde(flatten)]
    own: Scored,
    top_logprobs: Vec<Scored>,
}

/// A token with its logprob.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Scored {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// A piece of an answer.
#[derive(Debug, Serialize)]
pub(super) struct Chunk<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: i64,
    pub(super) model: &'a str,
    pub(super) choices: Vec<ChunkChoice>,
    /// When it is wanted at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<PieceUsage>,
}

/// A piece of a choice.
#[derive(Debug, Serialize)]
pub(super) struct ChunkChoice {
    pub(super) index: u32,
    pub(super) delta: Delta,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

/// What a piece adds to the assistant's message.
#[derive(Debug, Default, Serialize)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<CalledTool>,
}

impl Completion {
    pub(super) fn new(chat: Chat, choices: Vec<Choice>, generated: usize) -> Self {
        let usage = Usage::new(chat.request.prompt.len(), generated);
        let Chat { id, created, model, .. } = chat;
        Self { id, object: "chat.completion", created, model, choices, usage }
    }
}

impl Message {
    pub(super) fn new(content: String, reasoning: String, tool_calls: Vec<CalledTool>) -> Self {
        let content = (!content.is_empty() || tool_calls.is_empty()).then_some(content);
        let reasoning_content = (!reasoning.is_empty()).then_some(reasoning);
        Self { role: "assistant", content, reasoning_content, refusal: (), tool_calls }
    }
}

impl TokenLogprob {
    pub(super) fn new(tokenizer: &ModelTokenizer, drawn: &DrawnToken) -> Self {
        let scored = |(token, logprob)| {
            let written = token_text(tokenizer, token);
            Scored { token: written.text, logprob, bytes: written.bytes }
        };
        Self {
            own: scored((drawn.token, drawn.logprob)),
            top_logprobs: drawn.likeliest.iter().copied().map(scored).collect(),
        }
    }
}
