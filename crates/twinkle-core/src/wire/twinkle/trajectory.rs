//! A conversation with what belongs to it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::message::Message;

/// A conversation with the tools it may call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Trajectory {
    /// The turns, the oldest first.
    pub messages: Vec<Message>,
    /// Descriptions of the tools, as the model's template wants them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Value>>,
    /// Pairs of a name and the JSON text of a value: what a data set carries beside the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<Value>,
    /// Everything else: images and whatever the client wants back.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Trajectory {
    /// A conversation of these turns.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// The first value of this name in `user_data`, read from its JSON text; a text that is no JSON is itself.
    #[must_use]
    pub fn user_data(&self, name: &str) -> Option<Value> {
        let pairs = self.user_data.as_ref()?.as_array()?;
        let named = |pair: &&Value| pair.get(0).and_then(Value::as_str) == Some(name);
        let value =
            pairs.iter().filter(|pair| pair.as_array().is_some_and(|pair| pair.len() == 2)).find(named)?.get(1)?;
        let Some(text) = value.as_str() else { return Some(value.clone()) };
        Some(serde_json::from_str(text).unwrap_or_else(|_| value.clone()))
    }

    /// The numbers of the messages to learn from, when the data set names some in `key_rounds`.
    #[must_use]
    pub fn key_rounds(&self) -> Option<BTreeSet<usize>> {
        let rounds = self.user_data("key_rounds")?;
        let rounds = rounds.as_array().filter(|rounds| !rounds.is_empty())?;
        Some(rounds.iter().filter_map(Value::as_u64).filter_map(|round| usize::try_from(round).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(user_data: &Value) -> Trajectory {
        serde_json::from_value(json!({"messages": [], "user_data": user_data})).unwrap()
    }

    #[test]
    fn user_data_is_pairs_of_a_name_and_json() {
        let trajectory = with(&json!([["answer", "[1, 2]"], ["note", "no json"], ["note", "\"later\""], ["n", 3]]));
        assert_eq!(trajectory.user_data("answer"), Some(json!([1, 2])));
        assert_eq!(trajectory.user_data("note"), Some(json!("no json")), "the first counts");
        assert_eq!(trajectory.user_data("n"), Some(json!(3)));
        assert_eq!(trajectory.user_data("other"), None);
        assert_eq!(with(&json!("text")).user_data("a"), None);
    }

    #[test]
    fn key_rounds_are_message_numbers_and_an_empty_list_is_none() {
        assert_eq!(with(&json!([["key_rounds", "[3, 1]"]])).key_rounds(), Some(BTreeSet::from([1, 3])));
        assert_eq!(with(&json!([["key_rounds", "[]"]])).key_rounds(), None);
        assert_eq!(with(&json!([])).key_rounds(), None);
    }

    #[test]
    fn other_keys_come_back_in_their_order() {
        let text =
            r#"{"messages":[{"role":"user","content":"a"}],"tools":[{"zeta":1,"alpha":2}],"question":"q","b":1}"#;
        let trajectory: Trajectory = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&trajectory).unwrap(), text);
    }
}
