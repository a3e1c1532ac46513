//! From the tokens of one choice to what the assistant says, thinks and calls.

use std::sync::Arc;

use twinkle_core::call::{DrawnToken, SampledSequence, StopReason};
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
    /// How many letters and digits the id of a call has, where the model's template insists on it.
    id_length: Option<usize>,
}

/// What a token adds to a choice.
#[derive(Clone, Debug, Default)]
pub(super) struct Addition {
    pub(super) content: String,
    pub(super) reasoning: String,
    /// New calls, and what is added to the last one.
    pub(super) calls: Vec<CalledTool>,
    pub(super) logprob: Option<TokenLogprob>,
}

impl Reader {
    pub(super) fn new(
        tokenizer: &Arc<ModelTokenizer>,
        stops: Vec<String>,
        listening: &Listening,
        logprobs: bool,
    ) -> Self {
        let writer = match &listening.calls {
            Some(_) => Writer::with_calls(tokenizer, stops),
            None => Writer::new(tokenizer, stops),
        };
        let id_length = listening.calls.as_ref().and_then(|calling| calling.format.id_length());
        let speech = Speech::new(listening);
        Self { tokenizer: Arc::clone(tokenizer), writer, speech, logprobs, calls: 0, id_length }
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
        let mut all = Addition::default();
        let mut entries = Vec::new();
        for drawn in sequence.drawn(index) {
            let addition = self.push(&drawn);
            all.content.push_str(&addition.content);
            all.reasoning.push_str(&addition.reasoning);
            all.calls.extend(addition.calls);
            entries.extend(addition.logprob);
        }
        Choice {
            index,
            finish_reason: self.finish_reason(sequence.stop_reason),
            logprobs: self.logprobs.then_some(Logprobs { content: entries, refusal: () }),
            message: Message::new(all.content, all.reasoning, whole(all.calls)),
        }
    }

    fn addition(&mut self, parts: Vec<Part>) -> Addition {
        let mut addition = Addition::default();
        for part in parts {
            match part {
                Part::Said(text) => addition.content.push_str(&text),
                Part::Thought(text) => addition.reasoning.push_str(&text),
                Part::Called(name) => {
                    let function = CalledFunction { name: Some(name), arguments: String::new() };
                    let (id, kind) = (Some(self.call_id()), Some("function"));
                    addition.calls.push(CalledTool { index: Some(self.calls), id, kind, function });
                    self.calls += 1;
                }
                Part::Arguments(json) => {
                    if let Some(call) = addition.calls.last_mut() {
                        call.function.arguments.push_str(&json);
                        continue;
                    }
                    let function = CalledFunction { name: None, arguments: json };
                    let index = self.calls.checked_sub(1);
                    addition.calls.push(CalledTool { index, id: None, kind: None, function });
                }
            }
        }
        addition
    }

    fn call_id(&self) -> String {
        match self.id_length {
            Some(length) => fresh_id("").chars().take(length).collect(),
            None => fresh_id("call_"),
        }
    }
}

/// Calls without what only a stream says, from their pieces.
fn whole(pieces: Vec<CalledTool>) -> Vec<CalledTool> {
    let mut calls: Vec<CalledTool> = Vec::new();
    for piece in pieces {
        match calls.last_mut().filter(|_| piece.id.is_none()) {
            Some(call) => call.function.arguments.push_str(&piece.function.arguments),
            None => calls.push(CalledTool { index: None, ..piece }),
        }
    }
    calls
}
