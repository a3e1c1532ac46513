//! What a client trains on or samples from: tokens, or a conversation that becomes tokens.

use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::feature::{InputFeature, Positions, tokens};
use super::numbers::Whole;
use super::trajectory::Trajectory;

/// Arrays that this server cannot use; ignored when they are null or empty.
const NOT_READ: [&str; 7] = [
    "pixel_values",
    "pixel_values_videos",
    "image_grid_thw",
    "video_grid_thw",
    "input_features",
    "feature_attention_mask",
    "routed_experts",
];

/// One input: an object with `input_ids` is tokens, any other is a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Input {
    /// Tokens.
    Feature(InputFeature),
    /// A conversation.
    Trajectory(Trajectory),
}

impl Input {
    /// How many tokens it holds; a conversation has none yet.
    #[must_use]
    pub fn tokens(&self) -> usize {
        match self {
            Self::Feature(feature) => feature.input_ids.len(),
            Self::Trajectory(_) => 0,
        }
    }
}

/// Inputs as a client sends them: a list of them, or a single one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Inputs(pub Vec<Input>);

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Inputs {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Inputs".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one = generator.subschema_for::<Input>();
        schemars::json_schema!({
            "description": "A list of inputs, or a single one.",
            "anyOf": [{ "type": "array", "items": one }, one],
        })
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InputVisitor)
    }
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InputsVisitor;

        impl<'de> Visitor<'de> for InputsVisitor {
            type Value = Inputs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a conversation, an object with `input_ids`, or a list of either")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Inputs, A::Error> {
                Ok(Inputs(vec![InputVisitor.visit_map(fields)?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Inputs, A::Error> {
                let mut inputs = Vec::new();
                while let Some(input) = list.next_element()? {
                    inputs.push(input);
                }
                Ok(Inputs(inputs))
            }
        }

        deserializer.deserialize_any(InputsVisitor)
    }
}

/// Reads the fields one after the other: long arrays of numbers never pass through a tree of JSON values.
struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a conversation or an object with `input_ids`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Input, A::Error> {
        let mut feature = InputFeature::default();
        let mut has_tokens = false;
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "input_ids" => {
                    feature.input_ids = tokens(fields.next_value::<Whole>()?.0)?;
                    has_tokens = true;
                }
                "labels" => feature.labels = optional(&mut fields)?,
                "attention_mask" => feature.attention_mask = optional(&mut fields)?,
                "completion_mask" => feature.completion_mask = optional(&mut fields)?,
                "position_ids" => feature.position_ids = fields.next_value::<Option<Positions>>()?,
                "length" => feature.length = length(&mut fields)?,
                unread if NOT_READ.contains(&unread) => {
                    if !fields.next_value::<Nothing>()?.0 {
                        return Err(A::Error::custom(format!(
                            "`{name}` is not supported: this server reads text alone"
                        )));
                    }
                }
                _ => {
                    feature.extra.insert(name, fields.next_value()?);
                }
            }
        }
        if has_tokens {
            return Ok(Input::Feature(feature));
        }
        if !feature.extra.contains_key("messages") {
            return Err(A::Error::custom("an input has neither `input_ids` nor `messages`"));
        }
        let trajectory = serde_json::from_value(Value::Object(whole(feature)));
        trajectory.map(Input::Trajectory).map_err(A::Error::custom)
    }
}

fn optional<'de, A: MapAccess<'de>>(fields: &mut A) -> Result<Option<Vec<i64>>, A::Error> {
    Ok(fields.next_value::<Option<Whole>>()?.map(|Whole(row)| row))
}

fn length<'de, A: MapAccess<'de>>(fields: &mut A) -> Result<Option<usize>, A::Error> {
    match optional(fields)?.as_deref() {
        None => Ok(None),
        Some([length]) => Ok(usize::try_from(*length).ok()),
        Some(_) => Err(A::Error::custom("`length` is a list where one number is expected")),
    }
}

/// The fields of a conversation, with those that only tokens have put back.
fn whole(feature: InputFeature) -> Map<String, Value> {
    let InputFeature { labels, attention_mask, position_ids, completion_mask, length, mut extra, .. } = feature;
    let numbers = [("labels", labels), ("attention_mask", attention_mask), ("completion_mask", completion_mask)];
    for (name, row) in numbers {
        extra.extend(row.map(|row| (name.to_owned(), Value::from(row))));
    }
    extra.extend(
        position_ids.and_then(|positions| Some(("position_ids".to_owned(), serde_json::to_value(positions).ok()?))),
    );
    extra.extend(length.map(|length| ("length".to_owned(), Value::from(length))));
    extra
}

/// Whether a value is null or an empty list, found without keeping it.
struct Nothing(bool);

impl<'de> Deserialize<'de> for Nothing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NothingVisitor;

        impl<'de> Visitor<'de> for NothingVisitor {
            type Value = Nothing;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an array")
            }

            fn visit_unit<E: Error>(self) -> Result<Nothing, E> {
                Ok(Nothing(true))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Nothing, A::Error> {
                let mut is_empty = true;
                while list.next_element::<serde::de::IgnoredAny>()?.is_some() {
                    is_empty = false;
                }
                Ok(Nothing(is_empty))
            }
        }

        deserializer.deserialize_any(NothingVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Input>, String> {
        serde_json::from_str::<Inputs>(text).map(|Inputs(inputs)| inputs).map_err(|error| error.to_string())
    }

    #[test]
    fn one_object_is_a_list_of_one() {
        assert_eq!(read(r#"{"input_ids": [1]}"#).unwrap(), read(r#"[{"input_ids": [1]}]"#).unwrap());
        assert_eq!(read("[]").unwrap(), []);
    }

    #[test]
    fn tokens_and_conversations_are_told_apart_by_input_ids() {
        let text = r#"[{"messages": [{"role": "user", "content": "a"}], "labels": [1], "id": 7},
                       {"messages": [], "input_ids": [3, 4], "labels": null, "pixel_values": null}]"#;
        let inputs = read(text).unwrap();
        let [Input::Trajectory(trajectory), Input::Feature(feature)] = &inputs[..] else { panic!("{inputs:?}") };
        assert_eq!(trajectory.extra["id"], 7);
        assert_eq!(trajectory.extra["labels"], serde_json::json!([1]));
        assert_eq!((feature.input_ids.as_slice(), feature.labels.as_ref()), (&[3, 4][..], None));
        assert_eq!(feature.extra["messages"], serde_json::json!([]));
        assert_eq!(inputs[1].tokens(), 2);
    }

    #[test]
    fn what_is_neither_says_so() {
        assert!(read(r#"[{"text": "a"}]"#).unwrap_err().contains("neither `input_ids` nor `messages`"));
        assert!(read(r#""text""#).unwrap_err().contains("expected a conversation, an object with `input_ids`"));
        assert!(read(r#"[{"messages": [{"content": "a"}]}]"#).unwrap_err().contains("missing field `role`"));
    }

    #[test]
    fn arrays_of_images_are_refused_and_empty_ones_are_not() {
        assert!(read(r#"{"input_ids": [1], "pixel_values": [[0.1]]}"#).unwrap_err().contains("`pixel_values` is not"));
        assert!(read(r#"{"input_ids": [1], "image_grid_thw": []}"#).is_ok());
    }
}
