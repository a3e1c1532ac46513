//! Questions with their answers.

use serde_json::Value;
use twinkle_core::error::Result;

use super::{Preprocess, conversation, text_or_empty, turn};
use crate::data::{Column, Row};
use crate::objects::Arguments;

/// `SelfCognitionProcessor`: `query` and `response` with `{{NAME}}` and `{{AUTHOR}}` filled in.
#[derive(Debug)]
pub(super) struct SelfCognition {
    name: String,
    author: String,
}

impl SelfCognition {
    pub(super) fn new(given: &mut Arguments) -> Result<Self> {
        let mut or = |argument, standard: &str| -> Result<String> {
            let text: Option<String> = given.text(argument)?;
            Ok(text.filter(|text| !text.is_empty()).unwrap_or_else(|| standard.to_owned()))
        };
        Ok(Self { name: or("model_name", "twinkle robot")?, author: or("model_author", "twinkle lab")? })
    }

    fn filled(&self, row: &Row, column: &str) -> Result<Value> {
        let text: String = row.need(column)?;
        Ok(Value::from(text.replace("{{NAME}}", &self.name).replace("{{AUTHOR}}", &self.author)))
    }
}

impl Preprocess for SelfCognition {
    fn columns(&self, row: &Row) -> Result<Vec<Column>> {
        let messages = [
            turn("system", "You are a helpful assistant."),
            turn("user", self.filled(row, "query")?),
            turn("assistant", self.filled(row, "response")?),
        ];
        conversation(&messages, None)
    }
}

/// `AlpacaProcessor`: `instruction`, perhaps with an `input` below it, and `output`.
#[derive(Debug)]
pub(super) struct Alpaca;

impl Preprocess for Alpaca {
    fn columns(&self, row: &Row) -> Result<Vec<Column>> {
        let instruction = text_or_empty(row, "instruction")?;
        let input = text_or_empty(row, "input")?;
        let question = if input.is_empty() { instruction } else { format!("{instruction}\n{input}") };
        conversation(&[turn("user", question), turn("assistant", text_or_empty(row, "output")?)], None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::mapped;

    #[test]
    fn names_are_filled_in_and_other_columns_stay() {
        let row = json!({"query": "Who are you, {{NAME}}?", "response": "{{NAME}} by {{AUTHOR}}", "tag": "en"});
        let expected = |name: &str, author: &str| {
            json!({
                "query": row["query"], "response": row["response"], "tag": "en",
                "messages": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": format!("Who are you, {name}?")},
                    {"role": "assistant", "content": format!("{name} by {author}")},
                ]
            })
        };
        let given = json!({"model_name": "Bot", "model_author": "Lab"});
        assert_eq!(mapped("SelfCognitionProcessor", given, &row).unwrap(), expected("Bot", "Lab"));
        let nothing = json!({"model_name": ""});
        assert_eq!(mapped("SelfCognitionProcessor", nothing, &row).unwrap(), expected("twinkle robot", "twinkle lab"));
        assert!(mapped("SelfCognitionProcessor", json!({}), &json!({"query": "a"})).is_err());
    }

    #[test]
    fn an_instruction_may_have_an_input() {
        let question = |row| mapped("AlpacaProcessor", json!({}), &row).unwrap()["messages"][0]["content"].clone();
        assert_eq!(question(json!({"instruction": "a", "input": "b", "output": "c"})), "a\nb");
        assert_eq!(question(json!({"instruction": "a", "input": null})), "a");
    }
}
