//! Rows of a data set: a conversation, or an object that holds several.

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::{InputFeature, Trajectory};

use super::Template;

impl Template {
    /// A row as examples. A row with `messages` is a conversation; in any other each value with `messages`, such as
    /// `positive` and `negative`, becomes an example in its place. Blocking.
    pub fn encode_row(&self, row: Map<String, Value>, add_generation_prompt: bool) -> Result<Vec<Map<String, Value>>> {
        if row.contains_key("messages") {
            let features = self.encode(&trajectory(Value::Object(row))?, add_generation_prompt)?;
            return features.iter().map(fields).collect();
        }
        let mut encoded = Map::new();
        let mut found = false;
        for (name, value) in row {
            if value.get("messages").is_none() {
                encoded.insert(name, value);
                continue;
            }
            found = true;
            let mut features = self.encode(&trajectory(value)?, add_generation_prompt)?;
            match (features.pop(), features.is_empty()) {
                // One that is too long leaves no pair.
                (None, _) => return Ok(Vec::new()),
                (Some(only), true) => encoded.insert(name, Value::Object(fields(&only)?)),
                (Some(_), false) => {
                    return Err(Error::invalid(format!("`{name}` is too long, and a pair cannot be split"))
                        .hint("use another `truncation_strategy`"));
                }
            };
        }
        if !found {
            return Err(Error::invalid("a row has no `messages`").hint("map the data set to conversations first"));
        }
        Ok(vec![encoded])
    }
}

fn trajectory(value: Value) -> Result<Trajectory> {
    serde_json::from_value(value).map_err(|error| Error::invalid(format!("a row is not a conversation: {error}")))
}

fn fields(feature: &InputFeature) -> Result<Map<String, Value>> {
    match serde_json::to_value(feature) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(Error::internal("an example is not a JSON object")),
    }
}
