//! One turn of a conversation, in the shape of the `OpenAI` protocol.

use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or whatever else the model's template knows.
    pub role: String,
    /// What was said; a turn that only calls tools may have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// What an assistant thought before it spoke, without the tags around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The tools an assistant calls.
    #[serde(default, deserialize_with = "calls_or_text", skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Which call a tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Everything else, for templates that know it and for the client that sent it.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn of this role that says `text`.
    pub fn new(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Content::Text(text.into())), ..Self::default() }
    }

    /// About how many bytes of text it holds.
    #[must_use]
    pub fn text_len(&self) -> usize {
        let content = match &self.content {
            None => 0,
            Some(Content::Text(text)) => text.len(),
            Some(Content::Blocks(blocks)) => blocks.iter().map(value_len).sum(),
        };
        let calls = self.tool_calls.iter().flatten();
        let calls: usize = calls.map(|call| call.function.name.len() + value_len(&call.function.arguments)).sum();
        let extra: usize = self.extra.iter().map(|(key, value)| key.len() + value_len(value)).sum();
        self.role.len() + content + self.reasoning_content.as_ref().map_or(0, String::len) + calls + extra
    }
}

/// About how many bytes a JSON value has as text.
fn value_len(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(value_len).sum::<usize>(),
        Value::Object(fields) => 2 + fields.iter().map(|(key, value)| key.len() + 2 + value_len(value)).sum::<usize>(),
    }
}

/// What a turn says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Content {
    /// A text.
    Text(String),
    /// Blocks such as `{"type": "text", "text": ..}`.
    Blocks(Vec<Value>),
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;

        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text or a list of content blocks")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
                let mut blocks = Vec::new();
                while let Some(block) = list.next_element()? {
                    blocks.push(block);
                }
                Ok(Content::Blocks(blocks))
            }

            fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Content, A::Error> {
                Err(A::Error::custom("an object where a text or a list of content blocks is expected"))
            }
        }

        deserializer.deserialize_any(ContentVisitor)
    }
}

/// One call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ToolCall {
    /// What the tool's answer refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Which function, and with what.
    pub function: FunctionCall,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ToolCall {
    /// A call of this function with these arguments by name.
    pub fn new(name: impl Into<String>, arguments: Map<String, Value>) -> Self {
        let function = FunctionCall { name: name.into(), arguments: Value::Object(arguments), extra: Map::new() };
        Self { id: None, kind: Some("function".to_owned()), function, extra: Map::new() }
    }
}

/// A function's name and arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// An object, or its JSON text.
    #[serde(default)]
    pub arguments: Value,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Tool calls as a list, or as the JSON text of one, which tables of texts hold.
fn calls_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<ToolCall>>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let calls = match value {
        Value::String(text) if text.trim().is_empty() => return Ok(Some(Vec::new())),
        Value::String(text) => serde_json::from_str(&text),
        other => serde_json::from_value(other),
    };
    calls.map_err(|error| D::Error::custom(format!("`tool_calls`: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn round_trip(message: &Value) -> Value {
        let read: Message = serde_json::from_value(message.clone()).unwrap();
        serde_json::to_value(&read).unwrap()
    }

    #[test]
    fn a_turn_keeps_what_it_does_not_know() {
        let message = json!({
            "role": "assistant", "content": "hm", "reasoning_content": "why",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": 2}},
                            "index": 0}],
            "name": "Robin",
        });
        assert_eq!(round_trip(&message).to_string(), message.to_string());
    }

    #[test]
    fn content_is_a_text_blocks_or_nothing() {
        let blocks = json!({"role": "user", "content": [{"type": "text", "text": "a"}]});
        assert_eq!(round_trip(&blocks), blocks);
        let nothing: Message = serde_json::from_value(json!({"role": "assistant", "content": null})).unwrap();
        assert_eq!(nothing.content, None);
        assert!(serde_json::from_value::<Message>(json!({"role": "user", "content": 7})).is_err());
        assert!(serde_json::from_value::<Message>(json!({"role": "user", "content": {"text": "a"}})).is_err());
    }

    #[test]
    fn tool_calls_may_be_json_text() {
        let text = r#"[{"function": {"name": "f", "arguments": "{}"}}]"#;
        let message: Message = serde_json::from_value(json!({"role": "assistant", "tool_calls": text})).unwrap();
        assert_eq!(message.tool_calls.unwrap()[0].function.name, "f");
        for nothing in [json!(""), json!([])] {
            let message: Message = serde_json::from_value(json!({"role": "a", "tool_calls": nothing})).unwrap();
            assert_eq!(message.tool_calls, Some(Vec::new()));
        }
        let null: Message = serde_json::from_value(json!({"role": "a", "tool_calls": null})).unwrap();
        assert_eq!(null.tool_calls, None);
        let broken = serde_json::from_value::<Message>(json!({"role": "a", "tool_calls": [{"name": "f"}]}));
        assert!(broken.unwrap_err().to_string().contains("`tool_calls`: missing field `function`"));
    }
}
