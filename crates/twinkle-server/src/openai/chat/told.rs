//! A chat as a stream of events.

use std::collections::BTreeMap;

use super::super::answer::{PieceUsage, Usage};
use super::super::events::{Events, Narrator};
use super::Chat;
use super::reader::{Addition, Reader};
use super::reply::{Chunk, ChunkChoice, Delta, Logprobs};
use crate::streaming::Sampled;

/// Tells a chat's choices as they are written.
pub(super) struct Told {
    chat: Chat,
    include_usage: bool,
    readers: BTreeMap<u32, Reader>,
    generated: usize,
}

impl Told {
    pub(super) fn new(chat: Chat, include_usage: bool) -> Self {
        Self { chat, include_usage, readers: BTreeMap::new(), generated: 0 }
    }

    fn push(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>, events: &mut Events) {
        let Chat { id, created, model, .. } = &self.chat;
        let object = "chat.completion.chunk";
        let usage = self.include_usage.then_some(PieceUsage(usage));
        events.push(&Chunk { id, object, created: *created, model, choices, usage });
    }
}

impl Narrator for Told {
    fn tell(&mut self, _: usize, sampled: Sampled, events: &mut Events) {
        let Sampled::Token(drawn) = sampled else { return };
        let index = drawn.sample;
        if !self.readers.contains_key(&index) {
            self.readers.insert(index, self.chat.reader());
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            self.push(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None, events);
        }
        let Some(reader) = self.readers.get_mut(&index) else { return };
        self.generated += 1;
        let Addition { content, reasoning, calls, logprob } = reader.push(&drawn);
        let finish_reason = drawn.ends.map(|ends| reader.finish_reason(ends));
        let logprobs = logprob.map(|entry| Logprobs { content: vec![entry], refusal: () });
        let is_something = !content.is_empty() || !reasoning.is_empty() || !calls.is_empty() || logprobs.is_some();
        if is_something {
            let delta = Delta {
                role: None,
                content: (!content.is_empty()).then_some(content),
                reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
                tool_calls: calls,
            };
            self.push(vec![ChunkChoice { index, delta, logprobs, finish_reason: None }], None, events);
        }
        if finish_reason.is_some() {
            self.push(
                vec![ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason }],
                None,
                events,
            );
        }
    }

    fn end(&mut self, events: &mut Events) {
        if self.include_usage {
            let usage = Usage::new(self.chat.request.prompt.len(), self.generated);
            self.push(Vec::new(), Some(usage), events);
        }
    }
}
