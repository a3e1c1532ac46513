//! Rewards: how good an answer is, by rules.
//!
//! A reward looks at the last turn of an assistant, and where it needs the truth at `user_data` of the same
//! conversation or at a second one.

mod answers;
mod olympiad;

use serde_json::Value;
use twinkle_core::error::{Error, Result};

use crate::objects::Arguments;
use answers::{boxed_in_last, is_between, last_after_hashes, last_boxed, same_mathematics, same_number};

/// The names of the rewards.
pub const NAMES: &[&str] = &[
    "FormatReward",
    "GSM8KAccuracyReward",
    "GSM8KFormatReward",
    "MathReward",
    "MultiModalAccuracyReward",
    "OlympiadBenchAccuracyReward",
    "OlympiadBenchFormatReward",
    "OlympiadBenchQualityReward",
];

/// A reward by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reward {
    /// 1 for thoughts in `<think>` and an answer in `<answer>`.
    Format,
    /// 1 for the right number in `\boxed{}`, or behind `####`.
    Gsm8kAccuracy,
    /// 1 for any answer in one of these forms.
    Gsm8kFormat,
    /// 1 for the same mathematics in `\boxed{}` as the truth has, which is in `user_data` under this name.
    Math(String),
    /// 1 for the right text or number in `<answer>`.
    MultiModalAccuracy,
    /// 1 for the right answer, less for a number that is close.
    OlympiadAccuracy,
    /// For an answer in `\boxed{}`, at the end, and only one.
    OlympiadFormat,
    /// For steps that can be followed, a fitting length and no repetition.
    OlympiadQuality,
}

impl Reward {
    /// The reward of this name.
    pub fn named(name: &str, given: &mut Arguments) -> Result<Self> {
        Ok(match crate::preprocess::class_of(name, "rewards", NAMES)? {
            "FormatReward" => Self::Format,
            "GSM8KAccuracyReward" => Self::Gsm8kAccuracy,
            "GSM8KFormatReward" => Self::Gsm8kFormat,
            "MathReward" => Self::Math(given.text("ground_truth_key")?.unwrap_or_else(|| "solution".to_owned())),
            "MultiModalAccuracyReward" => Self::MultiModalAccuracy,
            "OlympiadBenchAccuracyReward" => Self::OlympiadAccuracy,
            "OlympiadBenchFormatReward" => Self::OlympiadFormat,
            _ => Self::OlympiadQuality,
        })
    }

    /// A reward for each conversation. `truths` is only looked at by [`Reward::Math`]; it may be the same list.
    pub fn rewards(&self, trajectories: &[Value], truths: &[Value]) -> Result<Vec<f64>> {
        if trajectories.len() != truths.len() {
            return Err(Error::invalid(format!(
                "there are {} conversations and {} truths",
                trajectories.len(),
                truths.len()
            )));
        }
        Ok(trajectories.iter().zip(truths).map(|(trajectory, truth)| self.reward(trajectory, truth)).collect())
    }

    fn reward(&self, trajectory: &Value, truth: &Value) -> f64 {
        let answer = completion(trajectory);
        let is_right = match self {
            Self::OlympiadAccuracy => {
                let is_multiple = user_data(trajectory, "is_multiple_answer").is_some_and(|value| is_true(&value));
                return olympiad::accuracy(&answer, &text_of(user_data(trajectory, "ground_truth")), is_multiple);
            }
            Self::OlympiadFormat => return olympiad::format(&answer),
            Self::OlympiadQuality => return olympiad::quality(&answer),
            Self::Format => is_between(&answer, "<think>", "</think>") && is_between(&answer, "<answer>", "</answer>"),
            Self::Gsm8kFormat => last_boxed(&answer).is_some() || last_after_hashes(&answer).is_some(),
            Self::Gsm8kAccuracy => {
                let truth = text_of(user_data(trajectory, "ground_truth"));
                let end = last_letters(&answer, 500);
                let given = last_boxed(end).or_else(|| last_after_hashes(end)).unwrap_or_default();
                let given: String = given.chars().filter(|letter| !matches!(letter, ',' | ' ')).collect();
                !given.is_empty() && !truth.is_empty() && same_number(given.trim(), &truth).unwrap_or(given == truth)
            }
            Self::Math(name) => {
                let last = last_content(trajectory);
                let known = user_data(truth, name).map_or_else(|| last_content(truth), |value| text_of(Some(value)));
                same_mathematics(&boxed_in_last(&last), &boxed_in_last(&known))
            }
            Self::MultiModalAccuracy => {
                let truth = text_of(user_data(trajectory, "ground_truth"));
                let truth = truth.trim();
                let inside = answer.split_once("<answer>").and_then(|(_, rest)| rest.split_once("</answer>"));
                let given = inside.map_or("", |(given, _)| given).trim();
                let same = given.to_lowercase() == truth.to_lowercase();
                !given.is_empty() && !truth.is_empty() && (same || same_number(given, truth) == Some(true))
            }
        };
        f64::from(u8::from(is_right))
    }
}

/// The text of the last turn of an assistant.
fn completion(trajectory: &Value) -> String {
    let messages = trajectory.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let last = messages.iter().rev().find(|message| message.get("role").and_then(Value::as_str) == Some("assistant"));
    last.map(content).unwrap_or_default()
}

/// The text of the last turn, whoever's it is.
fn last_content(trajectory: &Value) -> String {
    trajectory.get("messages").and_then(Value::as_array).and_then(|list| list.last()).map(content).unwrap_or_default()
}

/// The text of a turn, which may be blocks.
fn content(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(blocks)) => {
            let texts = blocks.iter().filter(|block| block.get("type").and_then(Value::as_str) == Some("text"));
            texts.filter_map(|block| block.get("text")?.as_str()).collect()
        }
        _ => String::new(),
    }
}

/// What a conversation carries under a name.
fn user_data(trajectory: &Value, name: &str) -> Option<Value> {
    let pairs = trajectory.get("user_data")?.as_array()?;
    pairs.iter().find(|pair| pair.get(0).and_then(Value::as_str) == Some(name))?.get(1).cloned()
}

/// A value as text. Texts that say JSON texts are what they say.
fn text_of(value: Option<Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => serde_json::from_str::<String>(&text).unwrap_or(text),
        Some(other) => other.to_string(),
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(value) => *value,
        Value::String(text) => matches!(text.as_str(), "true" | "True" | "1"),
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => false,
    }
}

/// The last so many letters of a text.
fn last_letters(text: &str, count: usize) -> &str {
    let start = text.char_indices().rev().nth(count.saturating_sub(1)).map_or(0, |(start, _)| start);
    text.get(start..).unwrap_or(text)
}

#[cfg(test)]
mod tests;
