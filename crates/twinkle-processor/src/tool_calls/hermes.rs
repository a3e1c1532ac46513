//! Hermes and Qwen: `<tool_call>` around JSON, or around `<function=name>` with `<parameter=name>` inside.

use serde_json::{Map, Value};
use twinkle_core::wire::twinkle::ToolCall;

use super::{Found, json_or_text};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The calls of a text that has at least one `<tool_call>`. One that is cut off ends with the text.
pub(super) fn find(text: &str) -> Option<Found> {
    let mut found = Found::default();
    let mut end = 0;
    while let Some(start) = text.get(end..)?.find(OPEN).map(|offset| end + offset) {
        let inside = start + OPEN.len();
        let rest = text.get(inside..)?;
        let (block, after) = match rest.find(CLOSE) {
            Some(length) => (rest.get(..length)?, inside + length + CLOSE.len()),
            None => (rest, text.len()),
        };
        found.calls.extend(call(block.trim()));
        found.spans.push(start..after);
        end = after;
    }
    (!found.spans.is_empty()).then_some(found)
}

fn call(block: &str) -> Option<ToolCall> {
    function(block).or_else(|| from_json(block))
}

/// `<function=name>..</function>`
fn function(block: &str) -> Option<ToolCall> {
    let (_, rest) = block.split_once("<function=")?;
    let (name, rest) = rest.split_once('>')?;
    let (body, _) = rest.split_once("</function>")?;
    let mut arguments = Map::new();
    let mut rest = body;
    while let Some((name, value, after)) = parameter(rest) {
        arguments.insert(name.trim().to_owned(), json_or_text(value.trim()));
        rest = after;
    }
    (!name.is_empty()).then(|| ToolCall::new(name.trim(), arguments))
}

/// The next `<parameter=name>value</parameter>`, and what follows it.
fn parameter(text: &str) -> Option<(&str, &str, &str)> {
    let (_, rest) = text.split_once("<parameter=")?;
    let (name, rest) = rest.split_once('>')?;
    let (value, after) = rest.split_once("</parameter>")?;
    Some((name, value, after))
}

/// `{"name": .., "arguments": ..}`
fn from_json(block: &str) -> Option<ToolCall> {
    let call: Map<String, Value> = serde_json::from_str(block).ok()?;
    let text = |key: &str| call.get(key).and_then(Value::as_str).filter(|name| !name.is_empty());
    let name = text("name").or_else(|| text("tool_name"))?;
    let arguments = match call.get("arguments") {
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
        _ => Map::new(),
    };
    Some(ToolCall::new(name, arguments))
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
    fn json_blocks_are_calls_in_order() {
        let text = "a <tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": [true]}}\n</tool_call> b\n\
                    <tool_call>{\"tool_name\": \"g\", \"arguments\": \"{\\\"x\\\": 2}\"}</tool_call>";
        assert_eq!(calls(text), [("f".to_owned(), json!({"z": 1, "a": [true]})), ("g".to_owned(), json!({"x": 2})),]);
        let spans = find(text).unwrap().spans;
        assert_eq!(&text[spans[0].end..spans[1].start], " b\n");
    }

    #[test]
    fn xml_blocks_take_values_that_are_json_and_texts_that_are_not() {
        let text = "<tool_call>\n<function=search>\n<parameter=query>\ntwo\nlines\n</parameter>\n\
                    <parameter=count>\n3\n</parameter>\n<parameter=deep>\n{\"a\": null}\n</parameter>\n</function>\n</tool_call>";
        assert_eq!(
            calls(text),
            [("search".to_owned(), json!({"query": "two\nlines", "count": 3, "deep": {"a": null}}),)]
        );
    }

    #[test]
    fn a_block_that_is_cut_off_reaches_to_the_end() {
        let text = "so <tool_call>{\"name\": \"f\"}";
        assert_eq!(calls(text), [("f".to_owned(), json!({}))]);
        let spans = find(text).unwrap().spans;
        assert_eq!((spans.len(), spans[0].clone()), (1, 3..text.len()));
    }

    #[test]
    fn a_broken_block_is_no_call_and_belongs_to_no_text() {
        for text in ["<tool_call>{\"name\": </tool_call>", "<tool_call>[1]</tool_call>", "<tool_call>{}</tool_call>"] {
            assert_eq!(calls(text), []);
            assert_eq!(find(text).unwrap().spans.len(), 1, "{text}");
        }
        assert_eq!(find("no call"), None);
    }
}
