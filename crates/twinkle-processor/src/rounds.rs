//! Which part of a rendered conversation an assistant wrote: what is learned.
//!
//! An assistant's turn begins where the prompt ends that was there when it began: the turns before it, rendered with a
//! generation prompt. It ends where the rendering of the turns up to it ends, which includes the end-of-turn token and
//! the line break behind it. Chat templates may write earlier turns differently once more turns follow: Qwen's leave out
//! what was thought. Then the turn begins behind the previous one, and ends where the longest text ends that both
//! renderings agree on. A turn that cannot be found is an error and never a wrong label.

use std::ops::Range;

use tokenizers::Encoding;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::wire::twinkle::{Content, IGNORED_LABEL, Message};

use crate::limits::MOST_RENDERED;

/// A conversation and how it is rendered.
pub(crate) struct Rounds<'a> {
    /// The turns.
    pub(crate) messages: &'a [Message],
    /// All of them as text.
    pub(crate) full: &'a str,
    /// The first turns as text, with or without a generation prompt.
    pub(crate) render: &'a dyn Fn(usize, bool) -> Result<String>,
    /// Where in bytes the tokens of a text end, ascending.
    pub(crate) token_ends: &'a dyn Fn(&str) -> Result<Vec<usize>>,
}

impl Rounds<'_> {
    /// The bytes of `full` that the assistants of these turns wrote, in order.
    pub(crate) fn written(&self, is_wanted: impl Fn(usize) -> bool) -> Result<Vec<Range<usize>>> {
        let mut written = Vec::new();
        let mut previous = None;
        let mut rendered = self.full.len();
        for (number, message) in self.messages.iter().enumerate() {
            if message.role != "assistant" {
                continue;
            }
            let turn = self.locate(number, message, previous.as_ref())?;
            rendered += turn.before.len() * 2;
            if rendered > MOST_RENDERED {
                let text = "a conversation is too long to find what its assistant wrote";
                return Err(Error::new(ErrorCode::TooLarge, text).hint("split it into several conversations"));
            }
            if is_wanted(number) {
                written.push(turn.span.clone());
            }
            previous = Some(turn);
        }
        Ok(written)
    }

    fn locate(&self, number: usize, message: &Message, previous: Option<&Turn>) -> Result<Turn> {
        let prompt = (self.render)(number, true)?;
        let turn = (self.render)(number + 1, false)?;
        let start = match self.start(&prompt, previous) {
            Some(start) => start,
            None => self.start_inside_prompt(number, &prompt, previous)?,
        };
        if self.full.starts_with(&turn) && turn.len() >= start {
            return Ok(Turn { span: start..turn.len(), before: turn });
        }
        let rest = self.full.get(start..).unwrap_or_default();
        let common = suffix_that_begins(&turn, rest);
        let kept = turn.get(turn.len() - common..).unwrap_or_default();
        if common == 0 || !says(kept, message) {
            return Err(unclear(number, "the chat template changes its text when more turns follow"));
        }
        Ok(Turn { span: start..start + common, before: turn })
    }

    /// The end of a text that the conversation begins with, or that goes on where the previous turn ended.
    fn start(&self, text: &str, previous: Option<&Turn>) -> Option<usize> {
        if self.full.starts_with(text) {
            return Some(text.len());
        }
        let previous = previous?;
        let between = text.strip_prefix(previous.before.as_str())?;
        let rest = self.full.get(previous.span.end..)?;
        rest.starts_with(between).then_some(previous.span.end + between.len())
    }

    /// A generation prompt may hold more than the header, such as an empty think block that is written for the last
    /// turn only. Then the turn begins where prompt and conversation part, between two tokens.
    fn start_inside_prompt(&self, number: usize, prompt: &str, previous: Option<&Turn>) -> Result<usize> {
        let rewritten = || unclear(number, "the chat template writes the turns before it differently when it follows");
        let before = (self.render)(number, false)?;
        let base = self.start(&before, previous).ok_or_else(rewritten)?;
        let header = prompt.strip_prefix(before.as_str()).ok_or_else(rewritten)?;
        let rest = self.full.get(base..).unwrap_or_default();
        let same = header.bytes().zip(rest.bytes()).take_while(|(left, right)| left == right).count();
        let ends = (self.token_ends)(prompt)?;
        let end = ends.into_iter().take_while(|end| *end <= before.len() + same).last();
        let shared = end.and_then(|end| end.checked_sub(before.len())).unwrap_or(0);
        // What parts before the header is over is another turn.
        if !header.get(..shared).is_some_and(|header| header.contains("assistant")) {
            return Err(rewritten());
        }
        Ok(base + shared)
    }
}

/// An assistant's turn.
struct Turn {
    /// Its bytes in the whole conversation.
    span: Range<usize>,
    /// The turns up to it as text, without those that follow.
    before: String,
}

/// Whether a text holds what a turn says or calls.
fn says(text: &str, message: &Message) -> bool {
    let content = match &message.content {
        Some(Content::Text(content)) => text.contains(content.trim()),
        Some(Content::Blocks(_)) => false,
        None => true,
    };
    content && message.tool_calls.iter().flatten().all(|call| text.contains(call.function.name.as_str()))
}

/// How many bytes the longest end of `text` has that `rest` begins with, by Knuth, Morris and Pratt.
fn suffix_that_begins(text: &str, rest: &str) -> usize {
    let pattern = &rest.as_bytes()[..rest.len().min(text.len())];
    let Some(first) = pattern.first() else { return 0 };
    // Per length of a matched beginning, the next shorter one that also matches.
    let mut shorter = vec![0; pattern.len() + 1];
    let mut length = 0;
    for end in 1..pattern.len() {
        while length > 0 && pattern[end] != pattern[length] {
            length = shorter[length];
        }
        if pattern[end] == pattern[length] {
            length += 1;
        }
        shorter[end + 1] = length;
    }
    let mut matched = 0;
    for byte in text.bytes() {
        if matched == pattern.len() {
            matched = shorter[matched];
        }
        while matched > 0 && pattern[matched] != byte {
            matched = shorter[matched];
        }
        if matched > 0 || byte == *first {
            matched += 1;
        }
    }
    matched
}

/// The labels of tokens, not shifted: those of the tokens that lie inside `written`, which is in order.
pub(crate) fn inside(encoding: &Encoding, written: &[Range<usize>]) -> Vec<i64> {
    label(encoding, written, |token, span| token.0 >= span.start && token.1 <= span.end)
}

/// The labels of tokens, not shifted: those of the tokens that share a letter with `written`, which is in order.
pub(crate) fn touching(encoding: &Encoding, written: &[Range<usize>]) -> Vec<i64> {
    label(encoding, written, |token, span| token.1 > span.start && token.0 < span.end)
}

/// What is left of `written` without what a template puts behind the token that ends a turn, such as a line break.
pub(crate) fn to_end_of_turn(
    text: &str,
    written: &Range<usize>,
    encoding: &Encoding,
    is_special: impl Fn(u32) -> bool,
) -> Range<usize> {
    let said = text.get(written.clone()).unwrap_or_default();
    let end = written.start + said.trim_end().len();
    let inside = |(_, offsets): &(&u32, &(usize, usize))| offsets.1 <= written.end;
    // A token of white space may be special itself, so the last special one is looked for.
    let last =
        encoding.get_ids().iter().zip(encoding.get_offsets()).rev().filter(inside).find(|(id, _)| is_special(**id));
    let last = last.map_or(end, |(_, offsets)| offsets.1);
    written.start..end.max(last).max(written.start)
}

fn label(
    encoding: &Encoding,
    written: &[Range<usize>],
    belongs: impl Fn((usize, usize), &Range<usize>) -> bool,
) -> Vec<i64> {
    let mut spans = written.iter().peekable();
    let mut labels = Vec::with_capacity(encoding.len());
    for (id, offsets) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
        while spans.peek().is_some_and(|span| span.end <= offsets.0) {
            spans.next();
        }
        let is_learned = spans.peek().is_some_and(|span| belongs(*offsets, span));
        labels.push(if is_learned { i64::from(*id) } else { IGNORED_LABEL });
    }
    labels
}

fn unclear(number: usize, why: &str) -> Error {
    Error::invalid(format!("it cannot be told which tokens message {number} wrote: {why}"))
        .hint("send the turns to learn as conversations of their own that end with them, or tokens with labels")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template that writes thoughts in brackets, and after the last user's turn only.
    fn forgetful(messages: &[Message], add_generation_prompt: bool, opens: &str) -> String {
        let last_user = messages.iter().rposition(|message| message.role == "user").unwrap_or(0);
        let mut text = String::new();
        for (number, message) in messages.iter().enumerate() {
            let Some(Content::Text(content)) = &message.content else { panic!("no text") };
            let thought = message.reasoning_content.as_deref().filter(|_| number > last_user);
            let thought = thought.map(|thought| format!("({thought})")).unwrap_or_default();
            text.push_str(&[message.role.as_str(), ":", &thought, content, ";"].concat());
        }
        if add_generation_prompt {
            text.push_str("assistant:");
            text.push_str(opens);
        }
        text
    }

    fn conversation(turns: &[(&str, &str, Option<&str>)]) -> Vec<Message> {
        let turn = |(role, content, thought): &(&str, &str, Option<&str>)| Message {
            reasoning_content: thought.map(str::to_owned),
            ..Message::new(*role, *content)
        };
        turns.iter().map(turn).collect()
    }

    /// An encoding with tokens at these offsets; token 9 is special.
    fn encoding(tokens: &[(u32, (usize, usize))]) -> Encoding {
        let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
        let offsets = tokens.iter().map(|(_, offsets)| *offsets).collect();
        let zeros = vec![0; ids.len()];
        let no_ranges = std::iter::empty().collect();
        let texts = vec![String::new(); ids.len()];
        let words = vec![None; ids.len()];
        Encoding::new(ids, zeros.clone(), texts, words, offsets, zeros.clone(), zeros, Vec::new(), no_ranges)
    }

    #[test]
    fn a_turn_ends_with_its_last_special_token_or_its_last_word() {
        let end = |text: &str, written: Range<usize>, tokens: &[(u32, (usize, usize))]| {
            to_end_of_turn(text, &written, &encoding(tokens), |id| id == 9)
        };
        assert_eq!(end("H:ab<e>\n", 2..8, &[(1, (0, 2)), (3, (2, 4)), (9, (4, 7)), (1, (7, 8))]), 2..7);
        assert_eq!(end("H:a<e>b\n", 2..8, &[(1, (0, 2)), (3, (2, 3)), (9, (3, 6)), (1, (6, 8))]), 2..7);
        assert_eq!(end("H:ab\nU:<e>", 2..5, &[(1, (0, 2)), (2, (2, 4)), (3, (4, 7)), (9, (7, 10))]), 2..4);
        assert_eq!(end("<e>H: ", 5..6, &[(9, (0, 3)), (1, (3, 5)), (1, (5, 6))]), 5..5);
    }

    #[test]
    fn a_token_that_begins_in_the_prompt_is_not_learned() {
        let tokens = encoding(&[(1, (0, 1)), (2, (1, 3)), (3, (3, 5)), (9, (5, 8)), (1, (8, 9))]);
        assert_eq!(inside(&tokens, std::slice::from_ref(&(2..8))), [IGNORED_LABEL, IGNORED_LABEL, 3, 9, IGNORED_LABEL]);
    }

    fn written(messages: &[Message], opens: &str) -> Result<Vec<String>> {
        let full = forgetful(messages, false, opens);
        let render = |count: usize, prompt| Ok(forgetful(&messages[..count], prompt, opens));
        // Tokens end behind punctuation.
        let token_ends =
            |text: &str| Ok(text.match_indices([':', ';', '(', ')']).map(|(start, sign)| start + sign.len()).collect());
        let rounds = Rounds { messages, full: &full, render: &render, token_ends: &token_ends };
        Ok(rounds.written(|_| true)?.into_iter().map(|span| full[span].to_owned()).collect())
    }

    #[test]
    fn each_turn_is_found_to_its_end() {
        let messages = conversation(&[
            ("user", "a", None),
            ("assistant", "b", None),
            ("user", "c", None),
            ("assistant", "d", None),
        ]);
        assert_eq!(written(&messages, "").unwrap(), ["b;", "d;"]);
    }

    #[test]
    fn thoughts_that_are_left_out_later_are_not_looked_for() {
        let messages = conversation(&[
            ("user", "a", None),
            ("assistant", "b", Some("x")),
            ("tool", "t", None),
            ("assistant", "b", Some("y")),
            ("user", "c", None),
            ("assistant", "d", Some("z")),
        ]);
        assert_eq!(written(&messages, "").unwrap(), ["b;", "b;", "(z)d;"]);
    }

    #[test]
    fn a_prompt_that_opens_more_than_the_turn_has_is_cut_between_tokens() {
        let messages = conversation(&[
            ("user", "a", None),
            ("assistant", "b", Some("")),
            ("user", "c", None),
            ("assistant", "d", Some("")),
        ]);
        assert_eq!(written(&messages, "()").unwrap(), ["b;", "d;"]);
    }

    #[test]
    fn a_turn_that_is_rewritten_is_an_error() {
        let messages = conversation(&[("user", "a", None), ("assistant", "b", None), ("user", "c", None)]);
        let full = "user:a;assistant:B;user:c;";
        let render = |count: usize, prompt| Ok(forgetful(&messages[..count], prompt, ""));
        let token_ends = |_: &str| Ok(Vec::new());
        let rounds = Rounds { messages: &messages, full, render: &render, token_ends: &token_ends };
        let error = rounds.written(|_| true).unwrap_err();
        assert!(error.message.starts_with("it cannot be told which tokens message 1 wrote: "), "{}", error.message);
    }

    #[test]
    fn only_wanted_turns_are_returned() {
        let messages = conversation(&[
            ("user", "a", None),
            ("assistant", "b", None),
            ("user", "c", None),
            ("assistant", "d", None),
        ]);
        let full = forgetful(&messages, false, "");
        let render = |count: usize, prompt| Ok(forgetful(&messages[..count], prompt, ""));
        let token_ends = |_: &str| Ok(Vec::new());
        let rounds = Rounds { messages: &messages, full: &full, render: &render, token_ends: &token_ends };
        let spans = rounds.written(|number| number == 3).unwrap();
        assert_eq!(spans.iter().map(|span| &full[span.clone()]).collect::<Vec<_>>(), ["d;"]);
    }

    #[test]
    fn the_longest_common_end_and_beginning_is_found() {
        assert_eq!(suffix_that_begins("xxabab", "ababab"), 4);
        assert_eq!(suffix_that_begins("aaaa", "aa"), 2);
        assert_eq!(suffix_that_begins("abc", "bd"), 0);
        assert_eq!(suffix_that_begins("abc", "abcd"), 3);
        assert_eq!(suffix_that_begins("", "a"), 0);
        assert_eq!(suffix_that_begins("a", ""), 0);
        assert_eq!(suffix_that_begins("…ä", "äx"), 2);
    }
}
