//! Which tokens of a rendered conversation an assistant wrote: the ones to learn from.
//!
//! A turn's tokens begin where the prompt ends that was there when the assistant began: the turns before it, rendered
//! with a generation prompt. They end with the turn's end-of-turn token, because a model must learn to stop. Both are
//! found by character offsets, so the mask is exact or there is none: a template that writes earlier turns differently
//! once more turns follow is answered with an error. A token that begins in the prompt and ends in the answer, such as
//! two line breaks in one, is not learned: when the answer is sampled, the prompt's part of it is already there.

use std::ops::Range;

use tokenizers::Encoding;
use twinkle_core::call::ChatMessage;
use twinkle_core::error::{Error, ErrorCode, Result};

use crate::limits::MOST_RENDERED;
use crate::template::ChatTemplate;

/// What one assistant wrote, in bytes of the rendered conversation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AssistantTurn {
    /// Its number among the messages, from 0.
    message: usize,
    /// From the end of the prompt to the end of the content.
    written: Range<usize>,
    /// Where the content itself begins; a template may put more before it, such as an empty think block.
    content_start: usize,
}

/// The assistant turns of `rendered`, which is `messages` through `template` without a generation prompt.
pub(crate) fn assistant_turns(
    template: &ChatTemplate,
    messages: &[ChatMessage],
    rendered: &str,
) -> Result<Vec<AssistantTurn>> {
    let mut turns = Vec::new();
    let mut rendered_in_all = rendered.len();
    for (number, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            continue;
        }
        let prompt = template.render(&messages[..number], true)?;
        rendered_in_all += prompt.len();
        if rendered_in_all > MOST_RENDERED {
            return Err(Error::new(ErrorCode::TooLarge, "a conversation is too long to find its assistant's tokens")
                .hint("split it into several conversations"));
        }
        let Some(after) = rendered.strip_prefix(prompt.as_str()) else {
            return Err(unclear(number, "the chat template writes the turns before it differently when it follows"));
        };
        let content = message.content.trim();
        let Some(offset) = after.find(content) else {
            return Err(unclear(number, "the chat template changes its text"));
        };
        let content_start = prompt.len() + offset;
        turns.push(AssistantTurn {
            message: number,
            written: prompt.len()..content_start + content.len(),
            content_start,
        });
    }
    Ok(turns)
}

/// Per token 1 where an assistant wrote it. `is_special` tells the tokens that end turns from text.
pub(crate) fn mask(
    turns: &[AssistantTurn],
    rendered: &str,
    encoding: &Encoding,
    is_special: impl Fn(u32) -> bool,
) -> Result<Vec<u8>> {
    let ids = encoding.get_ids();
    let offsets = encoding.get_offsets();
    let mut mask = vec![0; ids.len()];
    for turn in turns {
        let Range { start, end } = turn.written;
        let first = offsets.partition_point(|(token_start, _)| *token_start < start);
        let mut end_of_turn = None;
        for (id, (token_start, token_end)) in ids.iter().zip(offsets).skip(first) {
            if !is_special(*id) {
                continue;
            }
            if *token_start < turn.content_start {
                // The content was found, but behind the end of this turn.
                return Err(unclear(turn.message, "the chat template changes its text"));
            }
            let gap = rendered.get(end..*token_start);
            if *token_start >= end {
                end_of_turn = gap.filter(|gap| gap.trim().is_empty()).map(|_| *token_end);
                break;
            }
        }
        let end = end_of_turn.unwrap_or(end);
        for (bit, (_, token_end)) in mask.iter_mut().zip(offsets).skip(first) {
            if *token_end > end {
                break;
            }
            *bit = 1;
        }
    }
    Ok(mask)
}

fn unclear(number: usize, why: &str) -> Error {
    Error::invalid(format!("it cannot be told which tokens message {number} wrote: {why}"))
        .hint("end the conversation with the assistant's turn to learn, as its only one, or render it yourself")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.to_owned(), content: content.to_owned() }
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
    fn a_token_that_begins_in_the_prompt_is_not_learned() {
        let rendered = "H\n\nab<e>\n";
        let turns = [AssistantTurn { message: 1, written: 2..5, content_start: 3 }];
        let encoding = encoding(&[(1, (0, 1)), (2, (1, 3)), (3, (3, 5)), (9, (5, 8)), (1, (8, 9))]);
        assert_eq!(mask(&turns, rendered, &encoding, |id| id == 9).unwrap(), [0, 0, 1, 1, 0]);
    }

    #[test]
    fn without_an_end_of_turn_token_the_content_alone_is_learned() {
        let rendered = "H:ab\nU:<e>";
        let turns = [AssistantTurn { message: 1, written: 2..4, content_start: 2 }];
        let encoding = encoding(&[(1, (0, 2)), (2, (2, 4)), (3, (4, 7)), (9, (7, 10))]);
        assert_eq!(mask(&turns, rendered, &encoding, |id| id == 9).unwrap(), [0, 1, 0, 0]);
    }

    #[test]
    fn content_that_is_only_found_in_a_later_turn_is_an_error() {
        let rendered = "H:<e>U:ab<e>";
        let turns = [AssistantTurn { message: 1, written: 2..9, content_start: 7 }];
        let encoding = encoding(&[(1, (0, 2)), (9, (2, 5)), (3, (5, 7)), (4, (7, 9)), (9, (9, 12))]);
        assert!(mask(&turns, rendered, &encoding, |id| id == 9).is_err());
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_is_an_error() {
        let source = "{{ messages | length }}{% for message in messages %}{{ message.content }}{% endfor %}";
        let template = ChatTemplate::compile(source, BTreeMap::new(), "test").unwrap();
        let messages = [message("user", "a"), message("assistant", "b")];
        let rendered = template.render(&messages, false).unwrap();
        let error = assistant_turns(&template, &messages, &rendered).unwrap_err();
        assert_eq!(
            error.message,
            "it cannot be told which tokens message 1 wrote: the chat template writes the turns before it differently when it follows"
        );
    }
}
