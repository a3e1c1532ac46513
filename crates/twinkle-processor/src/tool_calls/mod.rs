//! Tool calls that a model wrote into its text.
//!
//! [`CallFormat`] is how a model writes them, known from its chat template, and [`CallReader`] reads them piece by piece. A
//! whole text is also read for formats that prompts ask for: the first that it shows any sign of reads all of it, so that
//! a call inside another call's arguments is not a call.

mod format;
mod offered;
mod react;
mod reader;
mod vcp;
mod xml;

use std::ops::Range;

use serde_json::{Map, Value};
use twinkle_core::wire::twinkle::ToolCall;

use self::format::{LIST, TAG};

pub use self::format::CallFormat;
pub use self::offered::OfferedTools;
pub use self::reader::{CallPart, CallReader, Calling};

/// A format's findings in a text.
#[derive(Debug, Default, PartialEq)]
struct Found {
    /// The calls, in order.
    calls: Vec<ToolCall>,
    /// The bytes that belong to calls, in order and apart.
    spans: Vec<Range<usize>>,
}

/// The calls in a text, with arguments as objects, and the text without them and without white space at its end. A text
/// without a call is what it was.
///
/// Known are the model's own format, Hermes and Qwen (`<tool_call>` with JSON or `<function=..>` inside), Cline
/// (`<tool><argument>..`), VCP (`<<<[TOOL_REQUEST]>>>`) and `ReAct` (`Action: tool[input]`).
#[must_use]
pub fn split_tool_calls(text: &str, calling: &Calling) -> (Vec<ToolCall>, String) {
    let Found { calls, spans } = find(text, calling).unwrap_or_default();
    if calls.is_empty() {
        return (calls, text.to_owned());
    }
    let mut kept = String::with_capacity(text.len());
    let mut end = 0;
    for span in spans {
        kept.push_str(text.get(end..span.start).unwrap_or_default());
        end = span.end;
    }
    kept.push_str(text.get(end..).unwrap_or_default());
    kept.truncate(kept.trim_end().len());
    (calls, kept)
}

fn find(text: &str, calling: &Calling) -> Option<Found> {
    let tagged = || Calling { format: CallFormat::Tagged, ..calling.clone() };
    marked(text, calling.clone())
        .or_else(|| marked(text, tagged()))
        .or_else(|| xml::find(text))
        .or_else(|| vcp::find(text))
        .or_else(|| react::find(text))
}

/// The calls of a model's own format. One whose arguments are no object, because it was cut off, stays text.
fn marked(text: &str, calling: Calling) -> Option<Found> {
    let has_mark = [TAG, LIST].iter().any(|mark| calling.format.openings().contains(mark) && text.contains(mark));
    let mut reader = CallReader::new(calling);
    let mut parts = reader.push(text);
    parts.extend(reader.finish());
    let mut found = Found::default();
    let (mut at, mut name, mut arguments) = (0, String::new(), String::new());
    for part in parts {
        match part {
            CallPart::Text(text) => at += text.len(),
            CallPart::Name(next) => (name, arguments) = (next, String::new()),
            CallPart::Arguments(json) => arguments.push_str(&json),
            CallPart::End { written } => {
                let span = at..at + written.len();
                at = span.end;
                if let Ok(arguments) = serde_json::from_str(&arguments) {
                    found.calls.push(ToolCall::new(std::mem::take(&mut name), arguments));
                    found.spans.push(span);
                }
            }
        }
    }
    (has_mark || !found.calls.is_empty()).then_some(found)
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
    fn read_as(format: CallFormat, text: &str) -> (Vec<(String, Value)>, String) {
        let (calls, rest) = split_tool_calls(text, &Calling { format, ..Calling::default() });
        let calls = calls.into_iter().map(|call| (call.function.name, call.function.arguments));
        (calls.collect(), rest)
    }

    fn read(text: &str) -> (Vec<(String, Value)>, String) {
        read_as(CallFormat::default(), text)
    }

    #[test]
    fn a_text_without_a_call_is_what_it_was() {
        assert_eq!(read("plain <b>text</b> \n"), (vec![], "plain <b>text</b> \n".to_owned()));
        assert_eq!(read(""), (vec![], String::new()));
    }

    #[test]
    fn the_first_format_reads_everything() {
        let text =
            "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"<r><p>1</p></r>\"}}</tool_call>\nAction: b[c]";
        let (calls, rest) = read(text);
        assert_eq!(calls, [("a".to_owned(), json!({"x": "<r><p>1</p></r>"}))]);
        assert_eq!(rest, "\nAction: b[c]");
        let broken = "<tool_call>{\"name\": </tool_call>\nAction: b[c]";
        assert_eq!(read(broken), (vec![], broken.to_owned()));
    }

    #[test]
    fn a_models_own_format_comes_before_the_others() {
        let llama = "{\"name\": \"f\", \"parameters\": {\"a\": \"Action: b[c]\"}} ";
        assert_eq!(
            read_as(CallFormat::Bare, llama),
            (vec![("f".to_owned(), json!({"a": "Action: b[c]"}))], String::new())
        );
        assert_eq!(read(llama), (vec![], llama.to_owned()));
        let (calls, _) = read_as(CallFormat::Bare, "<tool_call>{\"name\": \"g\"}</tool_call>");
        assert_eq!(calls, [("g".to_owned(), json!({}))]);
        let (calls, _) = read_as(CallFormat::Listed, "Action: b[c]");
        assert_eq!(calls, [("b".to_owned(), json!({"input": "c"}))]);
    }

    #[test]
    fn a_call_that_was_cut_off_stays_text() {
        let text = "a <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call> <tool_call>{\"name\": \"g\", \"arguments\": {\"a";
        let (calls, rest) = read(text);
        assert_eq!(calls, [("f".to_owned(), json!({}))]);
        assert_eq!(rest, "a  <tool_call>{\"name\": \"g\", \"arguments\": {\"a");
    }

    #[test]
    fn each_call_says_that_it_is_a_function() {
        let call = split_tool_calls("Action: look[here]", &Calling::default()).0.remove(0);
        let expected = json!({"type": "function", "function": {"name": "look", "arguments": {"input": "here"}}});
        assert_eq!(serde_json::to_value(call).unwrap(), expected);
    }
}
