//! From the tokens of one choice to what the assistant says, thinks and calls.

use std::sync::Arc;

use twinkle_core::call::{DrawnToken, SampledSequence, StopReason};
use twinkle_core::wire::twinkle::ToolCall;
use twinkle_processor::ModelTokenizer;

use super::super::answer::fresh_id;
use super::super::speech::{Listening, Part, Speech};
use super::super::writer::Writer;
use super::reply::{CalledFunction, CalledTool, Choice, Logprobs, Message, TokenLogprob};

/// Reads one choice, token by token. A stream and a whole answer are read alike, so they say the same.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    tokenizer: Arc<ModelTokenizer>,
    writer: Writer,
    speech: Speech,
    /// Whether logprobs are wanted.
    logprobs: bool,
    /// How many tools were called.
    calls: usize,
}

/// What a token adds to a choice.
#[derive(Clone, Debug, Default)]
pub(super) struct Addition {
    pub(super) content: String,
    pub(super) reasoning: String,
    pub(super) calls: Vec<CalledTool>,
    pub(super) logprob: Option<TokenLogprob>,
}

impl Reader {
    pub(super) fn new(
        tokenizer: &Arc<ModelTokenizer>,
        stops: Vec<String>,
        listening: Listening,
        logprobs: bool,
    ) -> Self {
        let writer = Writer::new(tokenizer, stops);
        Self { tokenizer: Arc::clone(tokenizer), writer, speech: Speech::new(listening), logprobs, calls: 0 }
    }

    /// Takes the next token; the last one, which says why the choice ends, also brings what was held back.
    pub(super) fn push(&mut self, drawn: &DrawnToken) -> Addition {
        let mut text = self.writer.push(drawn.token);
        if drawn.ends.is_some() {
            text.push_str(&self.writer.finish());
        }
        let mut parts = self.speech.push(&text);
        if drawn.ends.is_some() {
            parts.extend(self.speech.finish());
        }
        let mut addition = self.addition(parts);
        addition.logprob = self.logprobs.then(|| TokenLogprob::new(&self.tokenizer, drawn));
        addition
    }

    /// The protocol's word for why a choice ended.
    pub(super) fn finish_reason(&self, ends: StopReason) -> &'static str {
        match ends {
            StopReason::Stop if self.calls > 0 => "tool_calls",
            StopReason::Stop => "stop",
            StopReason::Length => "length",
        }
    }

    /// Reads a whole choice.
    pub(super) fn read(mut self, index: u32, sequence: &SampledSequence) -> Choice {
        let mut whole = Addition::default();
        let mut entries = Vec::new();
        for drawn in sequence.drawn(index) {
            let addition = self.push(&drawn);
            whole.content.push_str(&addition.content);
            whole.reasoning.push_str(&addition.reasoning);
            whole.calls.extend(addition.calls);
            entries.extend(addition.logprob);
        }
        Choice {
            index,
            finish_reason: self.finish_reason(sequence.stop_reason),
            logprobs: self.logprobs.then_some(Logprobs { content: entries, refusal: () }),
            message: Message::new(whole.content, whole.reasoning, whole.calls),
        }
    }

    fn addition(&mut self, parts: Vec<Part>) -> Addition {
        let mut addition = Addition::default();
        for part in parts {
            match part {
                Part::Said(text) => addition.content.push_str(&text),
                Part::Thought(text) => addition.reasoning.push_str(&text),
                Part::Called(call) => {
                    addition.calls.push(called(self.calls, *call));
                    self.calls += 1;
                }
            }
        }
        addition
    }
}

/// A call as the protocol writes it: arguments are JSON text.
fn called(index: usize, call: ToolCall) -> CalledTool {
    let arguments = match call.function.arguments {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    let function = CalledFunction { name: call.function.name, arguments };
    CalledTool { index: None, place: index, id: fresh_id("call_"), kind: "function", function }
}
