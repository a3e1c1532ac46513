//! From a row of a data set to conversations: the preprocessors that `map` takes by name, and the filters of `filter`.
//!
//! A preprocessor looks at one row and says which columns it adds or replaces; all other columns stay.

mod chat;
mod filters;
mod math;
mod preference;
mod vision;

use std::fmt;

use serde_json::{Map, Value, json};
use twinkle_core::error::{Error, Result, suggestion};

use crate::data::{Column, Row};
use crate::objects::Arguments;

pub use filters::{Filter, filter};

/// Makes columns of a row.
pub trait Preprocess: Send + Sync + fmt::Debug {
    /// The columns that it adds or replaces.
    fn columns(&self, row: &Row) -> Result<Vec<Column>>;
}

/// The names of the preprocessors.
pub const NAMES: &[&str] = &[
    "SelfCognitionProcessor",
    "AlpacaProcessor",
    "CompetitionMathProcessor",
    "CompetitionMathGRPOProcessor",
    "CountdownProcessor",
    "GSM8KProcessor",
    "EmojiDPOProcessor",
    "CLEVRProcessor",
    "OlympiadBenchProcessor",
];

/// The preprocessor of this name, made with these arguments.
pub fn preprocessor(name: &str, init_args: Map<String, Value>) -> Result<Box<dyn Preprocess>> {
    let class = class_of(name, "preprocessors", NAMES)?;
    let mut given = Arguments::new(format!("`{class}`"), init_args);
    let made: Box<dyn Preprocess> = match class {
        "SelfCognitionProcessor" => Box::new(chat::SelfCognition::new(&mut given)?),
        "AlpacaProcessor" => Box::new(chat::Alpaca),
        "CompetitionMathProcessor" => Box::new(math::Competition),
        "CompetitionMathGRPOProcessor" => Box::new(math::CompetitionForRewards),
        "CountdownProcessor" => Box::new(math::Countdown),
        "GSM8KProcessor" => Box::new(math::Gsm8k::new(&mut given)?),
        "EmojiDPOProcessor" => Box::new(preference::Emoji::new(&mut given)?),
        "CLEVRProcessor" => Box::new(vision::Clevr::new(&mut given)?),
        _ => Box::new(vision::OlympiadBench::new(&mut given)?),
    };
    given.finish()?;
    Ok(made)
}

/// The class a client names, perhaps with its module; code from a hub is refused.
pub(crate) fn class_of<'a>(name: &str, what: &str, known: &[&'a str]) -> Result<&'a str> {
    if name.contains("://") {
        return Err(Error::unsupported(format!("`{name}` is a plugin: Python code, which this server does not run"))
            .hint(suggestion("", what, known)));
    }
    let class = name.rsplit('.').next().unwrap_or(name);
    known.iter().copied().find(|known| *known == class).ok_or_else(|| {
        Error::invalid(format!("there is no `{class}` among the {what} of this server"))
            .hint(suggestion(class, what, known))
    })
}

/// One turn.
fn turn(role: &str, content: impl Into<Value>) -> Value {
    json!({"role": role, "content": content.into()})
}

/// The columns of a conversation.
fn conversation(messages: &[Value], user_data: Option<Value>) -> Result<Vec<Column>> {
    let mut row = Row::default();
    row.set("messages", &messages)?;
    if let Some(user_data) = user_data {
        row.set("user_data", &user_data)?;
    }
    Ok(row.into_columns())
}

/// A text where null and a missing column are empty, as Python's `get(…) or ''`.
fn text_or_empty(row: &Row, column: &str) -> Result<String> {
    Ok(row.read::<String>(column)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The row after a preprocessor.
    pub(super) fn mapped(name: &str, init_args: Value, row: &Value) -> Result<Value> {
        let Value::Object(init_args) = init_args else { panic!("an object") };
        let preprocessor = preprocessor(name, init_args)?;
        let mut row = Row::parse(&row.to_string())?;
        let columns = preprocessor.columns(&row)?;
        row.merge(columns);
        Ok(serde_json::to_value(row).unwrap())
    }

    #[test]
    fn names_may_have_a_module_and_unknown_ones_are_told_with_the_known() {
        assert!(preprocessor("twinkle.preprocessor.AlpacaProcessor", Map::new()).is_ok());
        let error = preprocessor("AlpaccaProcessor", Map::new()).unwrap_err().to_string();
        assert!(
            error.contains("did you mean `AlpacaProcessor`? known preprocessors: `SelfCognitionProcessor`"),
            "{error}"
        );
        let error = preprocessor("ms://someone/plugin", Map::new()).unwrap_err();
        assert!(error.message.contains("which this server does not run"), "{error}");
        for name in NAMES {
            assert!(preprocessor(name, Map::new()).is_ok(), "{name}");
        }
    }

    #[test]
    fn arguments_of_another_preprocessor_are_refused() {
        let error = mapped("AlpacaProcessor", json!({"model_name": "x"}), &json!({})).unwrap_err();
        assert_eq!(error.message, "`AlpacaProcessor` has no argument `model_name`");
    }
}
