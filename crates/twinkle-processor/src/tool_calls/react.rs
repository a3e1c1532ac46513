//! `ReAct`: a line `Action: tool[input]`.

use twinkle_core::wire::twinkle::ToolCall;

use super::{Found, single};

/// The calls of a text that has such a line.
pub(super) fn find(text: &str) -> Option<Found> {
    let mut found = Found::default();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let end = start + line.len();
        if let Some((name, input)) = action(line.trim()) {
            found.calls.push(ToolCall::new(name, single("input", input)));
            // The line break stays.
            found.spans.push(start..start + line.trim_end_matches('\n').len());
        }
        start = end;
    }
    (!found.calls.is_empty()).then_some(found)
}

fn action(line: &str) -> Option<(&str, &str)> {
    let call = line.strip_prefix("Action")?.trim_start().strip_prefix(':')?.trim_start();
    let (name, input) = call.strip_suffix(']')?.split_once('[')?;
    let name = name.trim_end();
    let is_name = |letter: char| letter.is_alphanumeric() || "_-./".contains(letter);
    (!name.is_empty() && name.chars().all(is_name)).then_some((name, input))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(text: &str) -> Vec<(String, String)> {
        let found = find(text).unwrap_or_default();
        let input = |call: &ToolCall| call.function.arguments["input"].as_str().unwrap().to_owned();
        found.calls.iter().map(|call| (call.function.name.clone(), input(call))).collect()
    }

    #[test]
    fn each_action_line_is_a_call() {
        let text = "Thought: look\n  Action: web/search.v2[two [words]]  \nAction : b[]\nDone";
        let expected = [("web/search.v2", "two [words]"), ("b", "")];
        assert_eq!(calls(text), expected.map(|(name, input)| (name.to_owned(), input.to_owned())));
        assert_eq!(find(text).unwrap().spans.len(), 2);
    }

    #[test]
    fn what_only_looks_like_one_is_text() {
        for text in ["Action: think about it", "An Action: a[b]", "Action: two words[b]", "Action: a[b] now"] {
            assert_eq!(find(text), None, "{text}");
        }
    }
}
