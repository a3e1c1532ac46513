//! What Llama writes behind `<|python_tag|>`: `tool.call(key="value")`, or code for an interpreter.

use serde_json::{Map, Value};

use crate::tool_calls::offered::OfferedTools;

/// Tools that run code, by the names that they have where they are offered.
const INTERPRETERS: [&str; 3] = ["code_interpreter", "ipython", "python"];

/// The function that a text calls, and its arguments as JSON. Code is a call of the interpreter, if there is one.
pub(super) fn call(text: &str, tools: &OfferedTools) -> Option<(String, String)> {
    let code = text.trim();
    if let Some((name, arguments)) = method(code) {
        return Some((name.to_owned(), Value::Object(arguments).to_string()));
    }
    let interpreter = tools.first_of(&INTERPRETERS).filter(|_| !code.is_empty())?;
    Some((interpreter.to_owned(), Value::Object(Map::from_iter([("code".to_owned(), code.into())])).to_string()))
}

/// `name.call(key="value", other=1)`
fn method(code: &str) -> Option<(&str, Map<String, Value>)> {
    let (name, rest) = code.split_once(".call(")?;
    let is_name = !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
    let mut rest = rest.strip_suffix(')').filter(|_| is_name)?.trim();
    let mut arguments = Map::new();
    while !rest.is_empty() {
        let (key, behind) = rest.split_once('=')?;
        let mut values = serde_json::Deserializer::from_str(behind).into_iter::<Value>();
        let value = values.next()?.ok()?;
        let behind = behind.get(values.byte_offset()..)?.trim_start();
        arguments.insert(key.trim().to_owned(), value);
        rest = match behind.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if behind.is_empty() => behind,
            None => return None,
        };
    }
    Some((name, arguments))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_method_with_named_arguments_is_a_call() {
        let tools = OfferedTools::default();
        let read = |text: &str| call(text, &tools);
        let of = |name: &str, arguments: &str| Some((name.to_owned(), arguments.to_owned()));
        assert_eq!(read("brave_search.call(query=\"a (b), c=d\")\n"), of("brave_search", r#"{"query":"a (b), c=d"}"#));
        assert_eq!(read("f.call(a=1, b=\"\")"), of("f", r#"{"a":1,"b":""}"#));
        assert_eq!(read("f.call()"), of("f", "{}"));
        for none in ["f.call(1)", "f.call(a=b)", "two words.call()", "f.call(a=1", "print(1)", ""] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn code_is_for_the_interpreter_that_is_offered() {
        let tools = OfferedTools::new(&[json!({"type": "function", "function": {"name": "ipython"}})]);
        assert_eq!(call("print(\"a\")", &tools), Some(("ipython".to_owned(), r#"{"code":"print(\"a\")"}"#.to_owned())));
        assert_eq!(call(" ", &tools), None);
    }
}
