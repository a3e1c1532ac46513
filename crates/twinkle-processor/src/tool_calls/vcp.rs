//! VCP: `<<<[TOOL_REQUEST]>>>` with `key:「始」value「末」` inside; `tool_name` is the function.

use serde_json::{Map, Value};
use twinkle_core::wire::twinkle::ToolCall;

use super::Found;

const OPEN: &str = "<<<[TOOL_REQUEST]>>>";
const CLOSE: &str = "<<<[END_TOOL_REQUEST]>>>";
/// How a value begins and ends; the first pair may hold the second.
const QUOTES: [(&str, &str); 2] = [("「始ESCAPE」", "「末ESCAPE」"), ("「始」", "「末」")];

/// The calls of a text that has at least one opening mark.
pub(super) fn find(text: &str) -> Option<Found> {
    if !text.contains(OPEN) {
        return None;
    }
    let mut found = Found::default();
    let mut end = 0;
    while let Some(start) = text.get(end..)?.find(OPEN).map(|offset| end + offset) {
        let inside = start + OPEN.len();
        let Some(length) = text.get(inside..)?.find(CLOSE) else { break };
        found.calls.extend(call(text.get(inside..inside + length)?));
        end = inside + length + CLOSE.len();
        found.spans.push(start..end);
    }
    Some(found)
}

fn call(block: &str) -> Option<ToolCall> {
    let mut arguments = Map::new();
    let mut name = None;
    let mut rest = block;
    while let Some((key, value, after)) = entry(rest) {
        if key == "tool_name" {
            name = Some(value.trim()).filter(|name| !name.is_empty());
        } else {
            arguments.insert(key.to_owned(), Value::from(value));
        }
        rest = after;
    }
    Some(ToolCall::new(name?, arguments))
}

/// The next key with its value, and what follows them.
fn entry(text: &str) -> Option<(&str, &str, &str)> {
    let opening = |(open, close): (&'static str, &'static str)| Some((text.find(open)?, open, close));
    let (at, open, close) = QUOTES.into_iter().filter_map(opening).min_by_key(|(at, ..)| *at)?;
    let before = text.get(..at)?.trim_end();
    let value = text.get(at + open.len()..)?;
    let (value, after) = value.split_once(close)?;
    let before = before.strip_suffix(':').map(str::trim_end).unwrap_or_default();
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    let key = before
        .rfind(|letter| !is_part(letter))
        .map_or(before, |last| before.get(last..).unwrap_or_default().trim_start_matches(|letter| !is_part(letter)));
    if key.is_empty() { entry(after) } else { Some((key, value, after)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_a_call() {
        let text = "I look.\n<<<[TOOL_REQUEST]>>>\nmaid:「始」Robin「末」,\ntool_name: 「始」 Search 「末」,\n\
                    query:「始ESCAPE」a「末」b「末ESCAPE」\n<<<[END_TOOL_REQUEST]>>> then";
        let found = find(text).unwrap();
        assert_eq!(found.calls[0].function.name, "Search");
        assert_eq!(found.calls[0].function.arguments, json!({"maid": "Robin", "query": "a「末」b"}));
        assert_eq!(&text[found.spans[0].end..], " then");
    }

    #[test]
    fn a_request_without_a_name_or_an_end_is_no_call() {
        let nameless = "<<<[TOOL_REQUEST]>>>a:「始」b「末」<<<[END_TOOL_REQUEST]>>>";
        assert_eq!(find(nameless).unwrap().calls, []);
        let open = find("<<<[TOOL_REQUEST]>>>tool_name:「始」b「末」").unwrap();
        assert_eq!((open.calls.len(), open.spans.len()), (0, 0));
        assert_eq!(find("text"), None);
    }
}
