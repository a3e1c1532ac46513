//! Questions about images. An image stays what the row has for it; reading it is the model's part.

use serde_json::{Value, json};
use twinkle_core::error::Result;

use super::{Preprocess, conversation, text_or_empty, turn};
use crate::data::{Column, Row};
use crate::objects::Arguments;

/// `CLEVRProcessor`: `image`, `problem` and a `solution` with `<answer>` tags.
#[derive(Debug)]
pub(super) struct Clevr {
    system: String,
}

impl Clevr {
    pub(super) fn new(given: &mut Arguments) -> Result<Self> {
        const SYSTEM: &str = "A conversation between User and Assistant. The user asks a question, and the Assistant \
                              solves it. The assistant first thinks about the reasoning process in the mind and then \
                              provides the user with the answer. The reasoning process and answer are enclosed within \
                              <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning \
                              process here </think><answer> answer here </answer>";
        Ok(Self { system: given.text("system")?.unwrap_or_else(|| SYSTEM.to_owned()) })
    }
}

impl Preprocess for Clevr {
    fn columns(&self, row: &Row) -> Result<Vec<Column>> {
        let image: Value = row.need("image")?;
        let problem: String = row.need("problem")?;
        let solution = text_or_empty(row, "solution")?;
        let inside = solution.split_once("<answer>").and_then(|(_, rest)| rest.split_once("</answer>"));
        let truth = inside.map_or(solution.as_str(), |(answer, _)| answer).trim();
        let messages = [
            turn("system", json!([{"type": "text", "text": self.system}])),
            turn("user", json!([{"type": "image", "image": image}, {"type": "text", "text": problem}])),
        ];
        conversation(&messages, Some(json!([["ground_truth", truth], ["solution", solution]])))
    }
}

/// `OlympiadBenchProcessor`: a `question`, perhaps with a `context` and up to nine images.
#[derive(Debug)]
pub(super) struct OlympiadBench {
    system: String,
}

impl OlympiadBench {
    pub(super) fn new(given: &mut Arguments) -> Result<Self> {
        const CHINESE: &str = "你是一个专业的数学和物理解题助手。请仔细分析题目，逐步推理解答，并将最终答案用 \
                               \\boxed{} 格式给出。如果有多个答案，请用逗号分隔。";
        const ENGLISH: &str = "You are a professional math and physics problem solver. Analyze the problem carefully, \
                               solve it step by step, and provide your final answer in \\boxed{} format. If there are \
                               multiple answers, separate them with commas.";
        let language = given.text("language")?;
        let standard = if language.is_none_or(|language| language == "zh") { CHINESE } else { ENGLISH };
        Ok(Self { system: given.text("system")?.unwrap_or_else(|| standard.to_owned()) })
    }
}

impl Preprocess for OlympiadBench {
    fn columns(&self, row: &Row) -> Result<Vec<Column>> {
        let question = text_or_empty(row, "question")?;
        let context = text_or_empty(row, "context")?;
        let background = if context.is_empty() { String::new() } else { format!("背景信息：{context}\n\n") };
        let mut blocks = Vec::new();
        for number in 1..10 {
            let image: Option<Value> = row.read(&format!("image_{number}"))?;
            blocks.extend(image.map(|image| json!({"type": "image", "url": image})));
        }
        let asked = if blocks.is_empty() {
            Value::from(format!("{background}{question}"))
        } else {
            if !background.is_empty() {
                blocks.push(json!({"type": "text", "text": background}));
            }
            blocks.push(json!({"type": "text", "text": question}));
            Value::from(blocks)
        };
        let truth = final_answer(row.read("final_answer")?);
        let messages = [turn("system", self.system.as_str()), turn("user", asked)];
        conversation(&messages, Some(json!([["ground_truth", truth]])))
    }
}

/// The answers of a list in one text; units are left to the row.
fn final_answer(answer: Option<Value>) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    };
    let is_something = |value: &&Value| !(value.is_null() || value.as_str() == Some("") || value.as_f64() == Some(0.0));
    match answer {
        Some(Value::Array(list)) => list.iter().filter(is_something).map(text).collect::<Vec<_>>().join(", "),
        Some(value) if is_something(&&value) => text(&value),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::mapped;

    #[test]
    fn an_image_is_asked_about_and_the_answer_taken_out_of_its_tags() {
        let row = json!({"image": {"bytes": "aGk=", "path": null}, "problem": "How many?", "solution": "<answer> 3 </answer>"});
        let row = mapped("CLEVRProcessor", json!({}), &row).unwrap();
        assert_eq!(
            row["messages"][1]["content"][0],
            json!({"type": "image", "image": {"bytes": "aGk=", "path": null}})
        );
        assert_eq!(row["user_data"], json!([["ground_truth", "3"], ["solution", "<answer> 3 </answer>"]]));
    }

    #[test]
    fn a_problem_without_images_is_plain_text() {
        let row = json!({"question": "Q", "context": "C", "final_answer": ["1", " 2 ", ""], "image_1": null});
        let row = mapped("OlympiadBenchProcessor", json!({"language": "en"}), &row).unwrap();
        assert_eq!(row["messages"][1]["content"], "背景信息：C\n\nQ");
        assert_eq!(row["user_data"], json!([["ground_truth", "1, 2"]]));
        assert!(row["messages"][0]["content"].as_str().unwrap().starts_with("You are a professional"));
        let seen = mapped("OlympiadBenchProcessor", json!({}), &json!({"question": "Q", "image_2": "u"})).unwrap();
        assert_eq!(
            seen["messages"][1]["content"],
            json!([{"type": "image", "url": "u"}, {"type": "text", "text": "Q"}])
        );
    }
}
