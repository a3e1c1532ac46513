//! Tool calls that a model wrote into its text.
//!
//! There are four formats. The first that a text shows any sign of reads all of it: a call inside another call's
//! arguments is not a call.

mod hermes;
mod react;
mod vcp;
mod xml;

use std::ops::Range;

use serde_json::{Map, Value};
use twinkle_core::wire::twinkle::ToolCall;

/// A format's findings in a text.
#[derive(Debug, Default, PartialEq)]
struct Found {
    /// The calls, in order.
    calls: Vec<ToolCall>,
    /// The bytes that belong to calls, in order and apart.
    spans: Vec<Range<usize>>,
}

/// The calls in a text, with arguments as objects, or none.
///
/// Known are Hermes and Qwen (`<tool_call>` with JSON or `<function=..>` inside), Cline (`<tool><argument>..`), VCP
/// (`<<<[TOOL_REQUEST]>>>`) and `ReAct` (`Action: tool[input]`).
#[must_use]
pub fn parse_tool_calls(text: &str) -> Vec<ToolCall> {
    find(text).map(|found| found.calls).unwrap_or_default()
}

/// A text without its tool calls and without white space at its end.
#[must_use]
pub fn without_tool_calls(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut end = 0;
    for span in find(text).map(|found| found.spans).unwrap_or_default() {
        kept.push_str(text.get(end..span.start).unwrap_or_default());
        end = span.end;
    }
    kept.push_str(text.get(end..).unwrap_or_default());
    kept.truncate(kept.trim_end().len());
    kept
}

fn find(text: &str) -> Option<Found> {
    hermes::find(text).or_else(|| xml::find(text)).or_else(|| vcp::find(text)).or_else(|| react::find(text))
}

/// A value as JSON where it is JSON, else as the text it is.
fn json_or_text(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// One argument by name.
fn single(name: &str, value: impl Into<Value>) -> Map<String, Value> {
    Map::from_iter([(name.to_owned(), value.into())])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Name and arguments of each call, and the rest of the text.
    fn read(text: &str) -> (Vec<(String, Value)>, String) {
        let calls = parse_tool_calls(text).into_iter().map(|call| (call.function.name, call.function.arguments));
        (calls.collect(), without_tool_calls(text))
    }

    #[test]
    fn a_text_without_a_call_only_loses_its_last_white_space() {
        assert_eq!(read("plain <b>text</b> \n"), (vec![], "plain <b>text</b>".to_owned()));
        assert_eq!(read(""), (vec![], String::new()));
    }

    #[test]
    fn the_first_format_reads_everything() {
        let text =
            "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"<r><p>1</p></r>\"}}</tool_call>\nAction: b[c]";
        let (calls, rest) = read(text);
        assert_eq!(calls, [("a".to_owned(), json!({"x": "<r><p>1</p></r>"}))]);
        assert_eq!(rest, "\nAction: b[c]");
    }

    #[test]
    fn each_call_says_that_it_is_a_function() {
        let call = parse_tool_calls("Action: look[here]").remove(0);
        let expected = json!({"type": "function", "function": {"name": "look", "arguments": {"input": "here"}}});
        assert_eq!(serde_json::to_value(call).unwrap(), expected);
    }
}
