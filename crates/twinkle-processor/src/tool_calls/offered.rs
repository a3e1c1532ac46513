//! The tools that a model was offered: their names and which kinds of values their parameters take.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde_json::Value;

/// The kinds of values that a parameter takes, as its JSON schema says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kinds {
    /// Whether it may be a text.
    text: bool,
    /// Whether it may be anything else.
    other: bool,
}

/// Functions by name, each with the kinds of its parameters by name.
#[derive(Clone, Debug, Default)]
pub struct OfferedTools(BTreeMap<String, BTreeMap<String, Kinds>>);

impl OfferedTools {
    /// Reads descriptions of tools as chat templates get them: `{"type": "function", "function": {"name", "parameters"}}`, or
    /// the inner object alone. What is described otherwise is left out: it can still be called.
    #[must_use]
    pub fn new(tools: &[Value]) -> Self {
        let function = |tool: &Value| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?.to_owned();
            let properties = function.pointer("/parameters/properties").and_then(Value::as_object);
            let kinds = properties.into_iter().flatten().map(|(name, schema)| (name.clone(), Kinds::of(schema)));
            Some((name, kinds.collect()))
        };
        Self(tools.iter().filter_map(function).collect())
    }

    /// Whether a function is among them; nobody knows where none is.
    pub(super) fn may_have(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.contains_key(name)
    }

    /// The first of these names that is offered.
    pub(super) fn first_of(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.0.contains_key(*name))
    }

    /// The value of a parameter as JSON text, from how it is written between tags.
    ///
    /// Where the schema takes texts only it is a text. Else it is JSON when it reads as JSON or as Python's `True`, `False` and
    /// `None`, which is how chat templates write them, and a text when it does not.
    pub(super) fn json_of(&self, function: &str, parameter: &str, written: &str) -> String {
        let kinds = self.0.get(function).and_then(|parameters| parameters.get(parameter)).copied().unwrap_or_default();
        let text = || Value::from(written).to_string();
        if kinds.text && !kinds.other {
            return text();
        }
        match written.trim() {
            "True" => "true".to_owned(),
            "False" => "false".to_owned(),
            "None" => "null".to_owned(),
            // Where a text is possible too, what reads as JSON is JSON all the same.
            other if serde_json::from_str::<IgnoredAny>(other).is_ok() => other.to_owned(),
            _ => text(),
        }
    }
}

impl Kinds {
    fn of(schema: &Value) -> Self {
        let mut kinds = Self::default();
        match schema.get("type") {
            Some(Value::String(kind)) => kinds.add(kind),
            Some(Value::Array(several)) => {
                for kind in several.iter().filter_map(Value::as_str) {
                    kinds.add(kind);
                }
            }
            _ => {}
        }
        for choices in ["anyOf", "oneOf"] {
            for choice in schema.get(choices).and_then(Value::as_array).into_iter().flatten() {
                if let Some(kind) = choice.get("type").and_then(Value::as_str) {
                    kinds.add(kind);
                }
            }
        }
        if kinds == Self::default() {
            for value in schema.get("enum").and_then(Value::as_array).into_iter().flatten() {
                kinds.add(if value.is_string() { "string" } else { "other" });
            }
        }
        kinds
    }

    fn add(&mut self, kind: &str) {
        if kind == "string" { self.text = true } else { self.other = true }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn offered() -> OfferedTools {
        let properties = json!({
            "text": {"type": "string"}, "count": {"type": "integer"}, "either": {"type": ["string", "null"]},
            "any": {"anyOf": [{"type": "number"}, {"type": "string"}]}, "choice": {"enum": ["1", "2"]}, "free": {},
        });
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}});
        OfferedTools::new(&[tool, json!({"name": "flat"}), json!("nonsense")])
    }

    #[test]
    fn a_schema_says_what_is_a_text() {
        let offered = offered();
        for (parameter, written, expected) in [
            ("text", "3", "\"3\""),
            ("text", "True", "\"True\""),
            ("text", " a\nb", "\" a\\nb\""),
            ("count", "3", "3"),
            ("count", "many", "\"many\""),
            ("either", "None", "null"),
            ("either", "words", "\"words\""),
            ("any", "1.50", "1.50"),
            ("choice", "2", "\"2\""),
            ("free", "False", "false"),
            ("unknown", "{\"a\": 1}", "{\"a\": 1}"),
            ("unknown", "{a}", "\"{a}\""),
            ("unknown", "", "\"\""),
        ] {
            assert_eq!(offered.json_of("f", parameter, written), expected, "{parameter}: {written}");
        }
        assert_eq!(offered.json_of("other", "text", "3"), "3");
    }

    #[test]
    fn functions_are_known_by_name() {
        assert!(offered().may_have("f") && offered().may_have("flat") && !offered().may_have("g"));
        assert!(OfferedTools::default().may_have("g"), "nothing is known of what was offered");
        assert_eq!(offered().first_of(&["x", "flat"]), Some("flat"));
    }
}
