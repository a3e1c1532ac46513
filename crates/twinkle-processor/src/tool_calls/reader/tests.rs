use proptest::prelude::*;
use serde_json::json;

use super::*;

fn calling(format: CallFormat) -> Calling {
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"properties": {
        "text": {"type": "string"}}}}})
    };
    Calling { format, tools: Arc::new(OfferedTools::new(&[tool("f"), tool("g")])) }
}

/// The parts with neighbours of one kind joined, a line each.
fn read_with(mut reader: CallReader, pieces: &[&str]) -> Vec<String> {
    let mut parts = Parts::default();
    let read: Vec<CallPart> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    for part in read.into_iter().chain(reader.finish()) {
        match part {
            CallPart::Text(text) => parts.text(&text),
            CallPart::Arguments(json) => parts.arguments(&json),
            other => parts.0.push(other),
        }
    }
    let line = |part| match part {
        CallPart::Text(text) => Some(format!("text {text}")),
        CallPart::Name(name) => Some(format!("name {name}")),
        CallPart::Arguments(json) => Some(format!("arguments {json}")),
        CallPart::End { .. } => None,
    };
    parts.0.into_iter().filter_map(line).collect()
}

/// However the text comes in pieces, the parts are the same, and together with what calls are written as they are the text.
fn always(format: CallFormat, text: &str, expected: &[&str]) {
    let letters: Vec<String> = text.chars().map(String::from).collect();
    for every in [1, 2, 3, 7, letters.len().max(1)] {
        let pieces: Vec<String> = letters.chunks(every).map(<[String]>::concat).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let read = read_with(CallReader::new(calling(format)), &pieces);
        assert_eq!(read, expected, "{text:?} in pieces of {every}");
        assert_eq!(source(format, &pieces), text, "in pieces of {every}");
    }
}

/// What was read, put together again.
fn source(format: CallFormat, pieces: &[&str]) -> String {
    let mut reader = CallReader::new(calling(format));
    let mut parts: Vec<CallPart> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    parts.extend(reader.finish());
    let source = |part| match part {
        CallPart::Text(text) | CallPart::End { written: text } => text,
        CallPart::Name(_) | CallPart::Arguments(_) => String::new(),
    };
    parts.into_iter().map(source).collect()
}

#[test]
fn json_between_tags_is_told_as_it_is_written() {
    let text = "a <tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": [true, \"}\\\"\"]}}\n</tool_call> b\n\
                <tool_call>{\"arguments\": {}, \"tool_name\": \"g\", \"id\": [1]}</tool_call>";
    let expected =
        ["text a ", "name f", "arguments {\"z\": 1, \"a\": [true, \"}\\\"\"]}", "text  b\n", "name g", "arguments {}"];
    always(CallFormat::Tagged, text, &expected);
    always(CallFormat::Functions, text, &expected);
}

#[test]
fn tags_may_hold_several_calls() {
    let text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
    always(CallFormat::Tagged, text, &["name f", "arguments {}", "name g", "arguments {}"]);
    let text = "<tool_call><function=f></function>\n<function=g></function></tool_call>";
    always(CallFormat::Functions, text, &["name f", "arguments {}", "name g", "arguments {}"]);
}

#[test]
fn arguments_may_be_missing_or_json_in_a_text() {
    let f = |arguments: &str| format!("<tool_call>{{\"name\": \"f\"{arguments}}}</tool_call>");
    always(CallFormat::Tagged, &f(""), &["name f", "arguments {}"]);
    always(CallFormat::Tagged, &f(", \"arguments\": null"), &["name f", "arguments {}"]);
    always(CallFormat::Tagged, &f(", \"arguments\": \" \""), &["name f", "arguments {}"]);
    always(CallFormat::Tagged, &f(", \"arguments\": \"{\\\"x\\\": 2}\""), &["name f", "arguments {\"x\": 2}"]);
}

#[test]
fn a_call_that_is_cut_off_is_told_as_far_as_it_came() {
    let text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b";
    always(CallFormat::Tagged, text, &["name f", "arguments {\"a\": \"b"]);
    always(CallFormat::Tagged, "so <tool_call>{\"name\": \"f\"}", &["text so ", "name f", "arguments {}"]);
    let unclosed = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}</tool_call>!";
    always(CallFormat::Tagged, unclosed, &["name f", "arguments {\"a\": 1}", "text !"]);
    let more = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}]}</tool_call>!";
    always(CallFormat::Tagged, more, &["name f", "arguments {\"a\": 1}", "text !"]);
}

#[test]
fn what_is_no_call_stays_text() {
    for text in [
        "<tool_call>\nnonsense\n</tool_call> after",
        "<tool_call>{\"name\": </tool_call>",
        "<tool_call>[1]</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "a <tool_call>{\"name\"",
        "a <b> <tool",
        "<tool_call><function=></function></tool_call>",
        "<tool_call><tool_call>",
    ] {
        always(CallFormat::Tagged, text, &[&format!("text {text}")]);
    }
    always(CallFormat::Functions, "<function= >x", &["text <function= >x"]);
}

#[test]
fn tags_of_parameters_become_json_by_the_tools_schema() {
    let text = "I look.\n<tool_call>\n<function=f>\n<parameter=text>\n3\n</parameter>\n<parameter=count>\n3\n</parameter>\n\
                <parameter=deep>\n{\"a\": null}\n</parameter>\n<parameter=flag>\nTrue\n</parameter>\n</function>\n</tool_call>";
    let arguments = "arguments {\"text\":\"3\",\"count\":3,\"deep\":{\"a\": null},\"flag\":true}";
    always(CallFormat::Functions, text, &["text I look.\n", "name f", arguments]);
    always(CallFormat::Tagged, text, &["text I look.\n", "name f", arguments]);
}

#[test]
fn a_value_may_hold_the_tag_that_ends_it() {
    let text = "<tool_call><function=f><parameter=text>\n a\n</parameter> b\n\n</parameter>\n</function></tool_call>";
    always(CallFormat::Functions, text, &["name f", "arguments {\"text\":\" a\\n</parameter> b\\n\"}"]);
}

#[test]
fn a_function_needs_no_tag_around_it_where_the_model_writes_functions() {
    let text = "<function=f>\n</function> then <function=g><parameter=a>\nb\n</parameter></function>";
    let expected = ["name f", "arguments {}", "text  then ", "name g", "arguments {\"a\":\"b\"}"];
    always(CallFormat::Functions, text, &expected);
    always(CallFormat::Tagged, text, &[&format!("text {text}")]);
}

#[test]
fn a_function_that_is_cut_off_has_the_parameters_that_are_complete() {
    let text = "<tool_call><function=f><parameter=a>\n1\n</parameter><parameter=b>\nhal";
    always(CallFormat::Functions, text, &["name f", "arguments {\"a\":1"]);
    let closed = "<tool_call><function=f><parameter=a>\n1\n</parameter><parameter=b>\nwhole\n</function></tool_call>";
    always(CallFormat::Functions, closed, &["name f", "arguments {\"a\":1,\"b\":\"whole\"}"]);
}

#[test]
fn a_turn_of_llama_is_one_call_or_several_or_none() {
    let one = "\n{\"name\": \"f\", \"parameters\": {\"a\": {\"b\": 1}}}";
    always(CallFormat::Bare, one, &["name f", "arguments {\"a\": {\"b\": 1}}"]);
    let two = "{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}} ok";
    always(CallFormat::Bare, two, &["name f", "arguments {}", "name g", "arguments {}", "text  ok"]);
    for text in [
        "{\"answer\": {\"name\": \"f\"}}",
        "{\"name\": \"unknown\", \"parameters\": {}}",
        "{\"name\": \"f\"}",
        "so {\"name\": \"f\", \"parameters\": {}}",
        "{",
        " ",
    ] {
        always(CallFormat::Bare, text, &[&format!("text {text}")]);
    }
}

#[test]
fn behind_llamas_tag_are_calls_too() {
    always(CallFormat::Bare, "<|python_tag|>f.call(text=\"a\")", &["name f", "arguments {\"text\":\"a\"}"]);
    always(
        CallFormat::Bare,
        "ok<|python_tag|>{\"name\": \"x\", \"parameters\": {}}",
        &["text ok", "name x", "arguments {}"],
    );
    always(CallFormat::Bare, "<|python_tag|>print(1)", &["text <|python_tag|>print(1)"]);
}

#[test]
fn mistrals_list_has_calls() {
    let text = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": [1]}, \"id\": \"x\"}, {\"name\": \"g\", \"arguments\": {}}] so";
    always(CallFormat::Listed, text, &["name f", "arguments {\"a\": [1]}", "name g", "arguments {}", "text  so"]);
    always(CallFormat::Listed, "[TOOL_CALLS] none", &["text [TOOL_CALLS] none"]);
    always(CallFormat::Listed, "[TOOL_CALLS][]", &["text [TOOL_CALLS][]"]);
}

#[test]
fn a_name_comes_before_its_arguments_and_these_as_they_are_written() {
    let mut reader = CallReader::new(calling(CallFormat::Tagged));
    assert_eq!(reader.push("<tool_call>{\"name\": \"f\", \"argu"), []);
    let name = CallPart::Name("f".to_owned());
    assert_eq!(reader.push("ments\": {\"a\""), [name, CallPart::Arguments("{\"a\"".to_owned())]);
    assert_eq!(reader.push(": 1"), [CallPart::Arguments(": 1".to_owned())]);
}

#[test]
fn a_forced_call_is_one_whatever_the_model_writes() {
    let read = |format, text| read_with(CallReader::inside_call(calling(format), "f"), &[text]);
    assert_eq!(read(CallFormat::Tagged, " {\"a\": 1}}\n</tool_call>"), ["name f", "arguments {\"a\": 1}"]);
    assert_eq!(read(CallFormat::Tagged, " no, sorry"), ["name f", "arguments no, sorry"]);
    assert_eq!(read(CallFormat::Tagged, ""), ["name f"]);
    let parameters = "<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>";
    assert_eq!(read(CallFormat::Functions, parameters), ["name f", "arguments {\"a\":1}"]);
    assert_eq!(read(CallFormat::Bare, " {\"a\": 1}}"), ["name f", "arguments {\"a\": 1}"]);
    assert_eq!(read(CallFormat::Listed, " {\"a\": 1}}] so"), ["name f", "arguments {\"a\": 1}", "text  so"]);
}

#[test]
fn a_forced_call_is_what_a_call_that_was_not_forced_is() {
    for format in [CallFormat::Tagged, CallFormat::Functions, CallFormat::Bare, CallFormat::Listed] {
        let end = match format {
            CallFormat::Functions => "<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
            CallFormat::Listed => " {\"a\":1}}]",
            CallFormat::Tagged | CallFormat::Bare => " {\"a\":1}}",
        };
        let whole = format.beginning_of_call("f") + end;
        assert_eq!(
            read_with(CallReader::new(calling(format)), &[&whole]),
            ["name f", "arguments {\"a\":1}"],
            "{whole}"
        );
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_and_pieces_change_nothing(
        words in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "{\"name\": \"f\"", ", \"arguments\": ", "{\"a\": 1}", "}", "{", "\"", "[", "]",
            "<function=f>", "</function>", "<parameter=a>", "</parameter>", "\n", "[TOOL_CALLS]", "<|python_tag|>", "ä", ";",
        ]), 0..14),
        every in 1_usize..6,
    ) {
        let text = words.concat();
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<String> = letters.chunks(every).map(<[String]>::concat).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        for format in [CallFormat::Tagged, CallFormat::Functions, CallFormat::Bare, CallFormat::Listed] {
            prop_assert_eq!(source(format, &pieces), text.as_str());
            let whole = read_with(CallReader::new(calling(format)), &[&text]);
            prop_assert_eq!(read_with(CallReader::new(calling(format)), &pieces), whole);
        }
    }
}
