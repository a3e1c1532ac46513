//! From an assistant's text, piece by piece, to what it says, what it thinks and which tools it calls.
//!
//! The tags are those of Qwen's and Hermes' templates: `<think>…</think>` before the answer, `<tool_call>…</tool_call>`
//! around each call. What is not closed or cannot be read as a call stays in the text: nothing is lost.

use twinkle_core::wire::twinkle::ToolCall;
use twinkle_processor::parse_tool_calls;

use super::writer::unfinished;

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALLED: &str = "</tool_call>";

/// A part of what an assistant says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// For the user.
    Said(String),
    /// For itself.
    Thought(String),
    /// For a tool.
    Called(Box<ToolCall>),
}

/// What is told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Listening {
    /// Whether thoughts are parts of their own.
    pub(super) thoughts: bool,
    /// Whether the prompt ends inside a thought, as some templates have it.
    pub(super) begins_thinking: bool,
    /// Whether calls are parts of their own.
    pub(super) calls: bool,
}

/// Reads one choice.
#[derive(Clone, Debug)]
pub(super) struct Speech {
    listening: Listening,
    place: Place,
    /// What cannot be told apart yet.
    held: String,
    /// Whether white space before the next word is left out, as between a thought and the answer.
    trims: bool,
}

/// Where in the text the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing was said yet: a thought may begin.
    Start,
    Thought,
    Said,
    /// Inside a call, whose tag is still held.
    Call,
}

impl Speech {
    /// Of a choice without text.
    pub(super) fn new(listening: Listening) -> Self {
        let begins_thinking = listening.thoughts && listening.begins_thinking;
        let place = if begins_thinking { Place::Thought } else { Place::Start };
        Self { listening, place, held: String::new(), trims: begins_thinking }
    }

    /// The parts that are certain after this piece of text.
    pub(super) fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// What was held back, at the end.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let mut parts = Vec::new();
        match self.place {
            Place::Thought => self.tell(Part::Thought, &held, &mut parts),
            Place::Start | Place::Said | Place::Call => self.tell(Part::Said, &held, &mut parts),
        }
        parts
    }

    /// Reads as far as one tag; whether there may be another.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.place {
            Place::Start => self.start(),
            Place::Thought => match self.held.find(THOUGHT) {
                Some(end) => {
                    let thought: String = self.held.drain(..end).collect();
                    self.held.drain(..THOUGHT.len());
                    self.tell(Part::Thought, thought.trim_end(), parts);
                    (self.place, self.trims) = (Place::Said, true);
                    true
                }
                None => self.tell_certain(Part::Thought, THOUGHT, parts),
            },
            Place::Said if !self.listening.calls => {
                let said = std::mem::take(&mut self.held);
                self.tell(Part::Said, &said, parts);
                false
            }
            Place::Said => match self.held.find(CALL) {
                Some(start) => {
                    let said: String = self.held.drain(..start).collect();
                    self.tell(Part::Said, said.trim_end(), parts);
                    self.place = Place::Call;
                    true
                }
                None => self.tell_certain(Part::Said, CALL, parts),
            },
            Place::Call => self.call(parts),
        }
    }

    /// Whether the text begins with a thought is known once it has other letters than the tag.
    fn start(&mut self) -> bool {
        let begun = self.held.trim_start();
        if self.listening.thoughts && begun.starts_with(THINK) {
            let tag = self.held.len() - begun.len() + THINK.len();
            self.held.drain(..tag);
            (self.place, self.trims) = (Place::Thought, true);
            return true;
        }
        if self.listening.thoughts && THINK.starts_with(begun) {
            return false;
        }
        self.place = Place::Said;
        true
    }

    fn call(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(end) = self.held.find(CALLED).map(|end| end + CALLED.len()) else { return false };
        let block: String = self.held.drain(..end).collect();
        let calls = parse_tool_calls(&block);
        if calls.is_empty() {
            self.tell(Part::Said, &block, parts);
        } else {
            parts.extend(calls.into_iter().map(Box::new).map(Part::Called));
            self.trims = true;
        }
        self.place = Place::Said;
        true
    }

    /// Tells what cannot belong to `tag` or be white space before it.
    fn tell_certain(&mut self, part: fn(String) -> Part, tag: &str, parts: &mut Vec<Part>) -> bool {
        let certain = self.held.len() - unfinished(&self.held, std::iter::once(tag));
        let certain = self.held.get(..certain).map_or(0, |text| text.trim_end().len());
        let text: String = self.held.drain(..certain).collect();
        self.tell(part, &text, parts);
        false
    }

    fn tell(&mut self, part: fn(String) -> Part, text: &str, parts: &mut Vec<Part>) {
        let text = if self.trims { text.trim_start() } else { text };
        if !text.is_empty() {
            self.trims = false;
            parts.push(part(text.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Listening = Listening { thoughts: true, begins_thinking: false, calls: true };

    /// What is said, thought and called, in the order it comes; pieces of one kind are joined.
    fn read(listening: Listening, pieces: &[&str]) -> Vec<String> {
        let mut speech = Speech::new(listening);
        let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| speech.push(piece)).collect();
        parts.extend(speech.finish());
        let mut joined: Vec<String> = Vec::new();
        for part in parts {
            let (kind, text) = match part {
                Part::Said(text) => ("said ", text),
                Part::Thought(text) => ("thought ", text),
                Part::Called(call) => ("called ", format!("{} {}", call.function.name, call.function.arguments)),
            };
            match joined.last_mut() {
                Some(last) if last.starts_with(kind) && kind != "called " => last.push_str(&text),
                _ => joined.push(format!("{kind}{text}")),
            }
        }
        joined
    }

    /// However the text comes in pieces, the parts are the same.
    fn always(listening: Listening, text: &str, expected: &[&str]) {
        let letters: Vec<String> = text.chars().map(String::from).collect();
        for every in [1, 2, 5, letters.len().max(1)] {
            let pieces: Vec<String> = letters.chunks(every).map(<[String]>::concat).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(read(listening, &pieces), expected, "{text:?} in pieces of {every}");
        }
    }

    #[test]
    fn a_thought_comes_before_the_answer() {
        always(ALL, "<think>\nwhy\n</think>\n\nhello  there\n", &["thought why", "said hello  there\n"]);
        always(ALL, "\n<think>a</think>b</think>", &["thought a", "said b</think>"]);
        always(ALL, "<think>\n\n</think>\n\nx", &["said x"]);
        always(ALL, "say <think>no</think>", &["said say <think>no</think>"]);
        always(ALL, "<thin", &["said <thin"]);
        always(ALL, "<think>cut off", &["thought cut off"]);
    }

    #[test]
    fn a_prompt_may_open_the_thought() {
        let opened = Listening { begins_thinking: true, ..ALL };
        always(opened, "\nwhy\n</think>\n\nhello", &["thought why", "said hello"]);
        always(opened, "still thi", &["thought still thi"]);
        always(Listening { thoughts: false, ..opened }, "why</think>x", &["said why</think>x"]);
    }

    #[test]
    fn calls_are_read_and_the_space_around_them_is_not_said() {
        let call =
            |name: &str| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"a\": 1}}}}\n</tool_call>");
        let text = format!("let me see\n{}\n{}", call("f"), call("g"));
        always(ALL, &text, &["said let me see", "called f {\"a\":1}", "called g {\"a\":1}"]);
        let deaf = Listening { calls: false, ..ALL };
        always(deaf, &text, &[&format!("said {text}")]);
    }

    #[test]
    fn what_is_no_call_stays_text() {
        always(ALL, "<tool_call>\nnonsense\n</tool_call> after", &["said <tool_call>\nnonsense\n</tool_call> after"]);
        always(ALL, "a <tool_call>{\"name\"", &["said a<tool_call>{\"name\""]);
        always(ALL, "a <b> <tool", &["said a <b> <tool"]);
    }
}
