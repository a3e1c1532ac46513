//! What `POST completions` answers, whole or in pieces, which have the same form.

use schemars::JsonSchema;
use serde::Serialize;
use twinkle_core::call::StopReason;

use super::super::answer::{PieceUsage, Usage};
use super::scores::Lists;

/// An answer, or a piece of one.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    created: i64,
    model: String,
    choices: Vec<Choice>,
    /// When it is wanted at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<PieceUsage>,
}

/// One choice, or a piece of one.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CompletionChoice")]
pub(super) struct Choice {
    text: String,
    index: usize,
    logprobs: Option<Lists>,
    finish_reason: Option<&'static str>,
}

impl Completion {
    /// The whole answer.
    pub(super) fn whole(id: String, created: i64, model: String, choices: Vec<Choice>, usage: Usage) -> Self {
        Self { id, object: "text_completion", created, model, choices, usage: Some(PieceUsage(Some(usage))) }
    }

    /// A piece of it.
    pub(super) fn piece(id: &str, created: i64, model: &str, choices: Vec<Choice>, usage: Option<PieceUsage>) -> Self {
        let (id, model) = (id.to_owned(), model.to_owned());
        Self { id, object: "text_completion", created, model, choices, usage }
    }
}

impl Choice {
    /// A whole choice.
    pub(super) fn new(index: usize, text: String, logprobs: Option<Lists>, ends: StopReason) -> Self {
        Self::piece(index, text, logprobs, Some(ends))
    }

    /// A piece; the last one says why the choice ends.
    pub(super) fn piece(index: usize, text: String, logprobs: Option<Lists>, ends: Option<StopReason>) -> Self {
        let finish_reason = ends.map(|ends| match ends {
            StopReason::Stop => "stop",
            StopReason::Length => "length",
        });
        Self { text, index, logprobs, finish_reason }
    }
}
