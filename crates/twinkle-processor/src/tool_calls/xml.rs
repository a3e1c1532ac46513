//! Cline: `<tool><argument>value</argument></tool>`.
//!
//! Any tag in small letters may be a tool. It is one when it holds at least one argument, and is not a tag that texts
//! have for other reasons.

use std::collections::HashMap;

use serde_json::{Map, Value};
use twinkle_core::wire::twinkle::ToolCall;

use super::Found;

/// Tags of prompts, of other formats and of web pages.
#[rustfmt::skip]
const NO_TOOLS: [&str; 49] = [
    "think", "answer", "tool_call", "tool_response", "function", "parameter", "parameters", "tools", "tool", "system",
    "user", "assistant", "message", "messages", "content", "response", "output", "role", "reasoning_content",
    "p", "a", "b", "i", "em", "strong", "div", "span", "pre", "code", "br", "hr", "ul", "ol", "li",
    "h1", "h2", "h3", "h4", "h5", "h6", "table", "tr", "td", "th", "tbody", "thead", "img", "video", "audio",
];

/// The calls of a text that has at least one.
pub(super) fn find(text: &str) -> Option<Found> {
    let tags = Tags::of(text);
    let mut found = Found::default();
    let mut end = 0;
    while let Some(element) = tags.next(end, text.len()) {
        end = element.end;
        if NO_TOOLS.contains(&element.name) {
            continue;
        }
        let mut arguments = Map::new();
        let mut at = element.inside.0;
        while let Some(argument) = tags.next(at, element.inside.1) {
            let value = text.get(argument.inside.0..argument.inside.1)?.trim();
            arguments.insert(argument.name.to_owned(), Value::from(value));
            at = argument.end;
        }
        if !arguments.is_empty() {
            found.calls.push(ToolCall::new(element.name, arguments));
            found.spans.push(element.start..element.end);
        }
    }
    (!found.calls.is_empty()).then_some(found)
}

/// A tag with its end.
struct Element<'a> {
    name: &'a str,
    start: usize,
    inside: (usize, usize),
    end: usize,
}

/// Every tag of a text by place, so that finding the end of one takes no walk through the text.
struct Tags<'a> {
    /// Start and name, in order.
    open: Vec<(usize, &'a str)>,
    /// Starts by name, in order.
    close: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Tags<'a> {
    fn of(text: &'a str) -> Self {
        let mut tags = Self { open: Vec::new(), close: HashMap::new() };
        for (start, _) in text.match_indices('<') {
            let Some(rest) = text.get(start + 1..) else { continue };
            let (is_end, rest) = rest.strip_prefix('/').map_or((false, rest), |rest| (true, rest));
            let length = rest.bytes().take_while(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')).count();
            let (name, rest) = rest.split_at(length);
            if !rest.starts_with('>') || !name.starts_with(|letter: char| letter.is_ascii_lowercase()) {
                continue;
            }
            if is_end {
                tags.close.entry(name).or_default().push(start);
            } else {
                tags.open.push((start, name));
            }
        }
        tags
    }

    /// The first element that begins at `from` or later and ends at `to` or earlier.
    fn next(&self, from: usize, to: usize) -> Option<Element<'a>> {
        let first = self.open.partition_point(|(start, _)| *start < from);
        let until = self.open.partition_point(|(start, _)| *start < to);
        self.open.get(first..until)?.iter().find_map(|(start, name)| {
            let inside = start + name.len() + 2;
            let ends = self.close.get(name)?;
            let close = *ends.get(ends.partition_point(|close| *close < inside))?;
            let end = close + name.len() + 3;
            (end <= to).then_some(Element { name, start: *start, inside: (inside, close), end })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn calls(text: &str) -> Vec<(String, Value)> {
        let found = find(text).unwrap_or_default();
        found.calls.into_iter().map(|call| (call.function.name, call.function.arguments)).collect()
    }

    #[test]
    fn a_tag_with_arguments_is_a_call() {
        let text = "I read.\n<read_file><path>src/a.rs</path></read_file>\n<run>\n <command>ls -la</command>\n \
                    <approve>false</approve>\n</run> done";
        assert_eq!(
            calls(text),
            [
                ("read_file".to_owned(), json!({"path": "src/a.rs"})),
                ("run".to_owned(), json!({"command": "ls -la", "approve": "false"})),
            ]
        );
        assert_eq!(&text[find(text).unwrap().spans[1].end..], " done");
    }

    #[test]
    fn web_pages_and_prompts_are_no_calls() {
        for text in [
            "<div><span>a</span></div>",
            "<think><plan>x</plan></think>",
            "<alone>no argument</alone>",
            "<open><a>b</a>",
            "<Upper><p>a</p></Upper>",
            "a < b > c",
        ] {
            assert_eq!(find(text), None, "{text}");
        }
    }

    #[test]
    fn a_text_of_open_tags_is_read_in_no_time() {
        let text: String =
            (0..200_000).flat_map(|number| ["<t".to_owned(), number.to_string(), ">".to_owned()]).collect();
        assert_eq!(find(&text), None);
        assert_eq!(find(&"<a_b>".repeat(200_000)), None);
    }
}
