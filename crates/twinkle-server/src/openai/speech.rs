//! From an assistant's text, piece by piece, to what it says, what it thinks and which tools it calls.
//!
//! A thought is what stands in `<think>…</think>` before the answer; calls are told from text by a [`CallReader`] of the
//! model's own format. What is not closed or cannot be read as a call stays in the text: nothing is lost.

use twinkle_processor::{CallPart, CallReader, Calling, unfinished};

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";

/// A part of what an assistant says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// For the user.
    Said(String),
    /// For itself.
    Thought(String),
    /// For a tool: a call of this function begins.
    Called(String),
    /// For a tool: what the arguments of the last call go on with.
    Arguments(String),
}

/// What is told apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Listening {
    /// Whether thoughts are parts of their own.
    pub(super) thoughts: bool,
    /// Whether the prompt ends inside a thought, as some templates have it.
    pub(super) begins_thinking: bool,
    /// How calls are written, where they are parts of their own.
    pub(super) calls: Option<Calling>,
    /// The function that the text begins with a call of: the prompt ends where its arguments begin.
    pub(super) forced: Option<String>,
}

/// Reads one choice.
#[derive(Clone, Debug)]
pub(super) struct Speech {
    thoughts: bool,
    place: Place,
    /// What cannot be told apart yet.
    held: String,
    /// Tells calls from text, where there may be some.
    calls: Option<CallReader>,
    /// White space that is said once something follows it that is no call.
    space: String,
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
}

impl Speech {
    /// Of a choice without text.
    pub(super) fn new(listening: &Listening) -> Self {
        let begins_thinking = listening.thoughts && listening.begins_thinking;
        let place = match &listening.forced {
            Some(_) => Place::Said,
            None if begins_thinking => Place::Thought,
            None => Place::Start,
        };
        let calls = listening.calls.clone().map(|calling| match &listening.forced {
            Some(name) => CallReader::inside_call(calling, name),
            None => CallReader::new(calling),
        });
        let thoughts = listening.thoughts;
        Self { thoughts, place, held: String::new(), calls, space: String::new(), trims: begins_thinking }
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
        if self.place == Place::Thought {
            self.tell(Part::Thought, &held, &mut parts);
        } else {
            self.speak(&held, &mut parts);
        }
        let rest = self.calls.as_mut().map(CallReader::finish);
        self.sort(rest.unwrap_or_default(), &mut parts);
        let space = std::mem::take(&mut self.space);
        self.tell(Part::Said, &space, &mut parts);
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
                None => self.think_on(parts),
            },
            Place::Said => {
                let said = std::mem::take(&mut self.held);
                self.speak(&said, parts);
                false
            }
        }
    }

    /// Whether the text begins with a thought is known once it has other letters than the tag.
    fn start(&mut self) -> bool {
        let begun = self.held.trim_start();
        if self.thoughts && begun.starts_with(THINK) {
            let tag = self.held.len() - begun.len() + THINK.len();
            self.held.drain(..tag);
            (self.place, self.trims) = (Place::Thought, true);
            return true;
        }
        if self.thoughts && THINK.starts_with(begun) {
            return false;
        }
        self.place = Place::Said;
        true
    }

    /// Tells what of a thought cannot belong to its end or be white space before it.
    fn think_on(&mut self, parts: &mut Vec<Part>) -> bool {
        let certain = self.held.len() - unfinished(&self.held, [THOUGHT]);
        let certain = self.held.get(..certain).map_or(0, |text| text.trim_end().len());
        let text: String = self.held.drain(..certain).collect();
        self.tell(Part::Thought, &text, parts);
        false
    }

    /// Tells what is for others.
    fn speak(&mut self, text: &str, parts: &mut Vec<Part>) {
        match &mut self.calls {
            Some(calls) => {
                let read = calls.push(text);
                self.sort(read, parts);
            }
            None => self.tell(Part::Said, text, parts),
        }
    }

    fn sort(&mut self, read: Vec<CallPart>, parts: &mut Vec<Part>) {
        for part in read {
            match part {
                CallPart::Text(text) => {
                    let text = std::mem::take(&mut self.space) + &text;
                    let (word, space) = text.split_at(text.trim_end().len());
                    space.clone_into(&mut self.space);
                    self.tell(Part::Said, word, parts);
                }
                CallPart::Name(name) => {
                    self.space.clear();
                    self.trims = true;
                    parts.push(Part::Called(name));
                }
                CallPart::Arguments(json) => parts.push(Part::Arguments(json)),
                CallPart::End { .. } => {}
            }
        }
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

    fn all() -> Listening {
        Listening { thoughts: true, calls: Some(Calling::default()), ..Listening::default() }
    }

    /// What is said, thought and called, in the order it comes; pieces of one kind are joined.
    fn read(listening: &Listening, pieces: &[&str]) -> Vec<String> {
        let mut speech = Speech::new(listening);
        let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| speech.push(piece)).collect();
        parts.extend(speech.finish());
        let mut joined: Vec<String> = Vec::new();
        for part in parts {
            let (kind, text) = match part {
                Part::Said(text) => ("said ", text),
                Part::Thought(text) => ("thought ", text),
                Part::Called(name) => ("called ", name),
                Part::Arguments(json) => ("with ", json),
            };
            match joined.last_mut() {
                Some(last) if last.starts_with(kind) && kind != "called " => last.push_str(&text),
                _ => joined.push(format!("{kind}{text}")),
            }
        }
        joined
    }

    /// However the text comes in pieces, the parts are the same.
    fn always(listening: &Listening, text: &str, expected: &[&str]) {
        let letters: Vec<String> = text.chars().map(String::from).collect();
        for every in [1, 2, 5, letters.len().max(1)] {
            let pieces: Vec<String> = letters.chunks(every).map(<[String]>::concat).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(read(listening, &pieces), expected, "{text:?} in pieces of {every}");
        }
    }

    #[test]
    fn a_thought_comes_before_the_answer() {
        always(&all(), "<think>\nwhy\n</think>\n\nhello  there\n", &["thought why", "said hello  there\n"]);
        always(&all(), "\n<think>a</think>b</think>", &["thought a", "said b</think>"]);
        always(&all(), "<think>\n\n</think>\n\nx", &["said x"]);
        always(&all(), "say <think>no</think>", &["said say <think>no</think>"]);
        always(&all(), "<thin", &["said <thin"]);
        always(&all(), "<think>cut off", &["thought cut off"]);
    }

    #[test]
    fn a_prompt_may_open_the_thought() {
        let opened = Listening { begins_thinking: true, ..all() };
        always(&opened, "\nwhy\n</think>\n\nhello", &["thought why", "said hello"]);
        always(&opened, "still thi", &["thought still thi"]);
        always(&Listening { thoughts: false, ..opened }, "why</think>x", &["said why</think>x"]);
    }

    #[test]
    fn calls_are_read_and_the_space_around_them_is_not_said() {
        let call =
            |name: &str| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"a\": 1}}}}\n</tool_call>");
        let text = format!("let me see\n{}\n{}\n", call("f"), call("g"));
        always(&all(), &text, &["said let me see", "called f", "with {\"a\": 1}", "called g", "with {\"a\": 1}"]);
        let more = format!("<think>hm</think>\n{} \n ok \n", call("f"));
        always(&all(), &more, &["thought hm", "called f", "with {\"a\": 1}", "said ok \n"]);
        let deaf = Listening { calls: None, ..all() };
        always(&deaf, &text, &[&format!("said {text}")]);
    }

    #[test]
    fn a_call_that_the_prompt_begins_is_told_first() {
        let forced = Listening { forced: Some("f".to_owned()), ..all() };
        always(&forced, " {\"a\": 1}}\n</tool_call>", &["called f", "with {\"a\": 1}"]);
        always(&forced, "<think>", &["called f", "with <think>"]);
    }

    #[test]
    fn what_is_no_call_stays_text() {
        always(
            &all(),
            "<tool_call>\nnonsense\n</tool_call> after",
            &["said <tool_call>\nnonsense\n</tool_call> after"],
        );
        always(&all(), "a <tool_call>{\"name\"", &["said a <tool_call>{\"name\""]);
        always(&all(), "a <b> <tool", &["said a <b> <tool"]);
    }
}
