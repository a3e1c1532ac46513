//! Problems whose answers can be checked.

use serde_json::{Value, json};
use twinkle_core::error::Result;

use super::{Preprocess, conversation, turn};
use crate::data::{Column, Row};
use crate::objects::Arguments;

/// `CompetitionMathProcessor`: `problem` and `solution`.
#[derive(Debug)]
pub(super) struct Competition;

impl Preprocess for Competition {
    fn columns(&self, row: &Row) -> Result<Vec<Column>> {
        let problem: String = row.need("problem")?;
        let solution: String = row.need("solution")?;
        conversation(&[turn("user", problem), turn("assistant", solution)], None)
    }
}

/// `CompetitionMathGRPOProcessor`: the problem with an empty answer; the solution is kept for the reward.
#[derive(Debug)]
pub(super) struct CompetitionForRewards;

impl Preprocess for CompetitionForRewards {
    fn columns(&self, row: &Row) -> Result<Vec<Column>> {
        const SYSTEM: &str = "You are a helpful math assistant. Respond with only the final answer in the form \
                              \\boxed{...} and nothing else.";
        let problem: String = row.need("problem")?;
        let solution: String = row.need("solution")?;
        let messages = [turn("system", SYSTEM), turn("user", problem), turn("assistant", "")];
        conversation(&messages, Some(json!([["solution", solution]])))
    }
}

/// `CountdownProcessor`: numbers that are to be made into a target.
#[derive(Debug)]
pub(super) struct Countdown;

impl Preprocess for Countdown {
    fn columns(&self, row: &Row) -> Result<Vec<Column>> {
        const SYSTEM: &str = "You are a helpful assistant. You first thinks about the reasoning process in the mind \
                              and then provides the user with the answer.";
        let numbers: Value = row.read("nums")?.unwrap_or_else(|| json!([]));
        let column = if row.get("response").is_some() { "response" } else { "target" };
        let target: Value = row.read(column)?.unwrap_or_else(|| json!(0));
        let question = format!(
            "Using the numbers {}, create an equation that equals {}.\n\
             You can use basic arithmetic operations (+, -, *, /) and each number can only be used once.\n\
             Show your work in <think> </think> tags. And return the final equation and answer in <answer> </answer> \
             tags,\nfor example <answer> (1 + 2) / 3 * 4 = 4 </answer>.",
            in_python(&numbers),
            in_python(&target)
        );
        let messages = [turn("system", SYSTEM), turn("user", question)];
        conversation(&messages, Some(json!([{"target": target, "nums": numbers}])))
    }
}

/// Numbers and lists of them as Python prints them.
fn in_python(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("[{}]", list.iter().map(in_python).collect::<Vec<_>>().join(", ")),
        Value::String(text) => text.clone(),
        Value::Null => "None".to_owned(),
        other => other.to_string(),
    }
}

/// `GSM8KProcessor`: a question whose answer ends with `#### number`, which is kept for the reward.
#[derive(Debug)]
pub(super) struct Gsm8k {
    system: String,
    with_answer: bool,
}

impl Gsm8k {
    pub(super) fn new(given: &mut Arguments) -> Result<Self> {
        const SYSTEM: &str = "You are a helpful math assistant. Solve the problem step by step and put your final \
                              answer within \\boxed{}.";
        Ok(Self {
            system: given.text("system")?.unwrap_or_else(|| SYSTEM.to_owned()),
            with_answer: given.flag("add_assistant")?.unwrap_or(false),
        })
    }
}

impl Preprocess for Gsm8k {
    fn columns(&self, row: &Row) -> Result<Vec<Column>> {
        let question: String = row.need("question")?;
        let answer: String = row.read("answer")?.unwrap_or_default();
        let mut messages = vec![turn("system", self.system.as_str()), turn("user", question)];
        if self.with_answer {
            messages.push(turn("assistant", answer.as_str()));
        }
        conversation(&messages, Some(json!([["ground_truth", after_hashes(&answer)]])))
    }
}

/// The number after the first `####` that one follows, without commas; empty when there is none.
fn after_hashes(answer: &str) -> String {
    let is_of_number = |letter: &char| letter.is_ascii_digit() || "-,.".contains(*letter);
    let numbers = answer.match_indices("####").map(|(at, hashes)| {
        let rest = answer.get(at + hashes.len()..).unwrap_or_default().trim_start();
        rest.chars().take_while(is_of_number).filter(|letter| *letter != ',').collect::<String>()
    });
    numbers.into_iter().find(|number| !number.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::mapped;
    use super::*;

    #[test]
    fn the_number_behind_the_hashes_is_the_answer() {
        for (answer, number) in [
            ("6 * 7 = <<6*7=42>>42\n#### 42", "42"),
            ("####1,234.5 dollars", "1234.5"),
            ("#### -3", "-3"),
            ("no number", ""),
            ("####", ""),
        ] {
            assert_eq!(after_hashes(answer), number, "{answer}");
        }
    }

    #[test]
    fn a_question_is_asked_and_the_answer_kept_apart() {
        let row = json!({"question": "How many?", "answer": "Two.\n#### 2"});
        let mapped = |given| mapped("GSM8KProcessor", given, &row).unwrap();
        let standard = mapped(json!({}));
        assert_eq!(standard["user_data"], json!([["ground_truth", "2"]]));
        assert_eq!(standard["messages"].as_array().unwrap().len(), 2);
        let own = mapped(json!({"system": "Be brief.", "add_assistant": true}));
        assert_eq!(own["messages"][0]["content"], "Be brief.");
        assert_eq!(own["messages"][2], json!({"role": "assistant", "content": "Two.\n#### 2"}));
    }

    #[test]
    fn competition_problems_keep_their_solution() {
        let row = json!({"problem": "1+1", "solution": "\\boxed{2}"});
        let plain = mapped("CompetitionMathProcessor", json!({}), &row).unwrap();
        assert_eq!(plain["messages"][1]["content"], "\\boxed{2}");
        let rewarded = mapped("CompetitionMathGRPOProcessor", json!({}), &row).unwrap();
        assert_eq!(rewarded["user_data"], json!([["solution", "\\boxed{2}"]]));
        assert_eq!(rewarded["messages"][2]["content"], "");
    }

    #[test]
    fn numbers_are_told_as_python_prints_them() {
        let row = json!({"nums": [44, 19, 35], "target": 98});
        let row = mapped("CountdownProcessor", json!({}), &row).unwrap();
        let question = row["messages"][1]["content"].as_str().unwrap();
        assert!(
            question.starts_with("Using the numbers [44, 19, 35], create an equation that equals 98.\n"),
            "{question}"
        );
        assert_eq!(row["user_data"], json!([{"target": 98, "nums": [44, 19, 35]}]));
    }
}
