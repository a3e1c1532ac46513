//! What a model wrote in its turn, taken apart.

use twinkle_core::wire::twinkle::ToolCall;

use crate::encode::split_thinking;
use crate::tool_calls::{Calling, split_tool_calls};

/// An assistant's turn in its parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assistant {
    /// What it says.
    pub content: String,
    /// What it thought before, without the tags around it; `None` when it did not think.
    pub reasoning_content: Option<String>,
    /// The tools it calls, with arguments as objects. They have no ids: a model writes none.
    pub tool_calls: Vec<ToolCall>,
}

/// Takes apart what a model wrote, without special tokens but the marks of its calls: thinking in `<think>`, tool calls of
/// its own and the other known formats, and the rest.
///
/// A tool call inside the thinking is a thought and no call. Thinking that does not end, because the answer was cut off,
/// is recognised by its opening tag.
#[must_use]
pub fn parse_assistant(text: &str, calling: &Calling) -> Assistant {
    let (reasoning_content, speech) = match split_thinking(text) {
        Some((thought, speech)) => (Some(thought.to_owned()), speech),
        None => match text.trim_start().strip_prefix("<think>") {
            Some(thought) => (Some(thought.trim_matches('\n').to_owned()), ""),
            None => (None, text),
        },
    };
    let (tool_calls, content) = split_tool_calls(speech, calling);
    Assistant { content, reasoning_content, tool_calls }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(text: &str) -> Assistant {
        parse_assistant(text, &Calling::default())
    }

    #[test]
    fn thinking_speech_and_calls_are_told_apart() {
        let text = "<think>\nlook <tool_call>{}</tool_call>\n</think>\n\nOne moment.\n<tool_call>\n\
                    {\"name\": \"look\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>";
        let parsed = parse(text);
        assert_eq!(parsed.reasoning_content.as_deref(), Some("look <tool_call>{}</tool_call>"));
        assert_eq!(parsed.content, "One moment.");
        assert_eq!(parsed.tool_calls.len(), 1);
        assert_eq!(parsed.tool_calls[0].function.arguments, json!({"city": "Köln"}));
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        let parsed = parse(" Hello\n");
        assert_eq!(parsed, Assistant { content: " Hello\n".to_owned(), ..Assistant::default() });
    }

    #[test]
    fn a_thought_without_an_end_is_a_thought() {
        let parsed = parse("<think>\nhm, so");
        assert_eq!((parsed.reasoning_content.as_deref(), parsed.content.as_str()), (Some("hm, so"), ""));
    }
}
