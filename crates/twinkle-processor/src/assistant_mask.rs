//! Which tokens of a rendered conversation an assistant wrote: the ones to learn from.
//!
//! A turn's tokens begin where the prompt ends that was there when the assistant began: the turns before it, rendered
//! with a generation prompt. They end with the turn's end-of-turn token, because a model must learn to stop. Both are
//! found by character offsets, so the mask is exact or there is none: a template that writes earlier turns differently
//! once more turns follow is answered with an error.

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
