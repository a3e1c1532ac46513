//! Pairs of a better and a worse answer.

use serde_json::{Value, json};
use twinkle_core::error::Result;

use super::{Preprocess, text_or_empty, turn};
use crate::data::{Column, Row};
use crate::objects::Arguments;

/// `EmojiDPOProcessor`: one question with two answers becomes `positive` and `negative`.
#[derive(Debug)]
pub(super) struct Emoji {
    system: Option<String>,
    chosen: String,
    rejected: String,
    prompt: String,
}

impl Emoji {
    pub(super) fn new(given: &mut Arguments) -> Result<Self> {
        let mut or = |argument, standard: &str| -> Result<String> {
            Ok(given.text(argument)?.unwrap_or_else(|| standard.to_owned()))
        };
        Ok(Self {
            chosen: or("chosen_key", "answer_zh")?,
            rejected: or("rejected_key", "answer_en")?,
            prompt: or("prompt_key", "prompt")?,
            system: Some(or("system", "")?).filter(|text| !text.is_empty()),
        })
    }

    fn answered(&self, row: &Row, answer: &str) -> Result<Value> {
        let mut messages: Vec<Value> = self.system.iter().map(|text| turn("system", text.as_str())).collect();
        messages.push(turn("user", text_or_empty(row, &self.prompt)?));
        messages.push(turn("assistant", text_or_empty(row, answer)?));
        Ok(json!({"messages": messages}))
    }
}

impl Preprocess for Emoji {
    fn columns(&self, row: &Row) -> Result<Vec<Column>> {
        let mut pair = Row::default();
        pair.set("positive", &self.answered(row, &self.chosen)?)?;
        pair.set("negative", &self.answered(row, &self.rejected)?)?;
        Ok(pair.into_columns())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::mapped;

    #[test]
    fn both_answers_follow_the_same_question() {
        let row = json!({"q": "Hi", "good": "你好😊", "answer_en": "Hello"});
        let given = json!({"system": "S", "prompt_key": "q", "chosen_key": "good"});
        let row = mapped("EmojiDPOProcessor", given, &row).unwrap();
        let with = |answer: &str| {
            json!({"messages": [
                {"role": "system", "content": "S"}, {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": answer}
            ]})
        };
        assert_eq!((&row["positive"], &row["negative"]), (&with("你好😊"), &with("Hello")));
        let without = mapped("EmojiDPOProcessor", json!({}), &json!({"prompt": "Hi"})).unwrap();
        assert_eq!(without["positive"]["messages"].as_array().unwrap().len(), 2);
    }
}
