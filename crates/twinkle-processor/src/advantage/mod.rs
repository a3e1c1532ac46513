//! Advantages: how much better a sample is than what was to be expected.

mod gae;

use serde_json::{Value, json};
use twinkle_core::error::{Error, Result, suggestion};

use crate::objects::Arguments;

pub use gae::{Gae, Rows, gae};

/// Added to a standard deviation before dividing by it.
const TINY: f64 = 1e-8;

/// The names of the advantages.
pub const NAMES: &[&str] = &["GRPOAdvantage", "RLOOAdvantage", "GAEAdvantage"];

/// By which standard deviation advantages are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// That of a prompt's samples.
    Group,
    /// That of all samples.
    Batch,
    /// None.
    None,
}

/// An advantage by its name.
#[derive(Clone, Debug)]
pub enum Advantage {
    /// `GRPOAdvantage`.
    Grpo,
    /// `RLOOAdvantage`.
    Rloo,
    /// `GAEAdvantage`.
    Gae(Gae),
}

impl Advantage {
    /// The advantage of this name.
    pub fn named(name: &str, given: &mut Arguments) -> Result<Self> {
        Ok(match crate::preprocess::class_of(name, "advantages", NAMES)? {
            "GRPOAdvantage" => Self::Grpo,
            "RLOOAdvantage" => Self::Rloo,
            _ => Self::Gae(Gae::read(given)?),
        })
    }

    /// The advantages of a request's arguments.
    pub fn call(&self, given: &mut Arguments) -> Result<Value> {
        let rewards = given.need("rewards")?;
        if let Self::Gae(settings) = self {
            return settings.call(&rewards, given);
        }
        let rewards = numbers(&rewards)?;
        let samples = given.integer("num_generations", 1..=i64::from(u32::MAX))?.unwrap_or(1) as usize;
        let scale = match given.text("scale")?.as_deref() {
            None | Some("group") => Scale::Group,
            Some("batch") => Scale::Batch,
            Some("none") => Scale::None,
            Some(other) => {
                return Err(Error::invalid(format!("`scale` is `{other}`")).hint(suggestion(
                    other,
                    "scales",
                    &["group", "batch", "none"],
                )));
            }
        };
        let advantages =
            if matches!(self, Self::Rloo) { rloo(&rewards, samples, scale)? } else { grpo(&rewards, samples, scale)? };
        Ok(json!(advantages))
    }
}

/// One reward a sample; several rewards of one sample are added.
fn numbers(value: &Value) -> Result<Vec<f64>> {
    let number = |value: &Value| match value {
        Value::Array(several) => several.iter().map(Value::as_f64).sum::<Option<f64>>(),
        other => other.as_f64(),
    };
    let numbers = value.as_array().and_then(|list| list.iter().map(number).collect::<Option<Vec<f64>>>());
    numbers.ok_or_else(|| Error::invalid("`rewards` is not a list of numbers"))
}

/// Rewards minus the mean of their prompt's samples, divided by a standard deviation (Shao et al., "`DeepSeekMath`",
/// 2024). `samples` of each prompt follow one another.
///
/// A single sample a prompt is its reward, or its distance to the mean of all where `scale` is not [`Scale::Group`].
pub fn grpo(rewards: &[f64], samples: usize, scale: Scale) -> Result<Vec<f64>> {
    groups(rewards, samples, 1)?;
    if samples == 1 {
        let mean = mean(rewards);
        let centred = rewards.iter().map(|reward| reward - mean).collect();
        return Ok(match scale {
            Scale::Group => rewards.to_vec(),
            Scale::None => centred,
            Scale::Batch if rewards.len() == 1 => centred,
            Scale::Batch => divided(centred, deviation(rewards)),
        });
    }
    let baseline = |group: &[f64], _: f64| mean(group);
    Ok(scaled(rewards, samples, scale, baseline))
}

/// Rewards minus the mean of the other samples of their prompt (Ahmadian et al., "Back to Basics", 2024).
pub fn rloo(rewards: &[f64], samples: usize, scale: Scale) -> Result<Vec<f64>> {
    groups(rewards, samples, 2)?;
    let others = (samples - 1) as f64;
    let baseline = |group: &[f64], reward: f64| (group.iter().sum::<f64>() - reward) / others;
    Ok(scaled(rewards, samples, scale, baseline))
}

fn groups(rewards: &[f64], samples: usize, least: usize) -> Result<()> {
    if samples >= least && rewards.len().is_multiple_of(samples) {
        return Ok(());
    }
    let text = format!("{} rewards are not groups of {samples}", rewards.len());
    Err(Error::invalid(if samples < least {
        format!("`num_generations` is {samples}, and at least {least} are needed")
    } else {
        text
    }))
}

fn scaled(rewards: &[f64], samples: usize, scale: Scale, baseline: impl Fn(&[f64], f64) -> f64) -> Vec<f64> {
    let batch = deviation(rewards);
    let of_group = |group: &[f64]| {
        let advantages = group.iter().map(|reward| reward - baseline(group, *reward)).collect();
        match scale {
            Scale::Group => divided(advantages, deviation(group)),
            Scale::Batch => divided(advantages, batch),
            Scale::None => advantages,
        }
    };
    rewards.chunks(samples).flat_map(of_group).collect()
}

fn divided(mut numbers: Vec<f64>, deviation: f64) -> Vec<f64> {
    for number in &mut numbers {
        *number /= deviation + TINY;
    }
    numbers
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}

/// The standard deviation of a sample: divided by one less than there are.
fn deviation(numbers: &[f64]) -> f64 {
    let mean = mean(numbers);
    let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
    (squares / (numbers.len().max(2) - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len(), "{actual:?}");
        for (actual, expected) in actual.iter().zip(expected) {
            assert!((actual - expected).abs() < 2e-6, "{actual} is not {expected}");
        }
    }

    const REWARDS: [f64; 8] = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0];

    // The values are those of torch 2.11 with the formulas of the documents.
    #[test]
    fn grpo_centres_each_prompt() {
        close(&grpo(&REWARDS, 4, Scale::None).unwrap(), &[-0.5, 0.5, -0.5, 0.5, 0.75, -0.25, -0.25, -0.25]);
        let third = 0.5 / (1.0_f64 / 3.0).sqrt();
        close(&grpo(&REWARDS, 4, Scale::Group).unwrap(), &[-third, third, -third, third, 1.5, -0.5, -0.5, -0.5]);
        let all = (15.0_f64 / 56.0).sqrt();
        close(&grpo(&REWARDS, 4, Scale::Batch).unwrap()[..2], &[-0.5 / all, 0.5 / all]);
        close(&grpo(&[2.0, 2.0], 2, Scale::Group).unwrap(), &[0.0, 0.0]);
    }

    #[test]
    fn a_single_sample_a_prompt_is_its_reward_or_compared_with_all() {
        close(&grpo(&[1.0, 3.0], 1, Scale::Group).unwrap(), &[1.0, 3.0]);
        close(&grpo(&[1.0, 3.0], 1, Scale::None).unwrap(), &[-1.0, 1.0]);
        close(&grpo(&[1.0, 3.0], 1, Scale::Batch).unwrap(), &[-1.0 / 2.0_f64.sqrt(), 1.0 / 2.0_f64.sqrt()]);
        close(&grpo(&[3.0], 1, Scale::Batch).unwrap(), &[0.0]);
    }

    #[test]
    fn rloo_leaves_the_sample_itself_out() {
        close(&rloo(&[1.0, 0.0, 0.0], 3, Scale::None).unwrap(), &[1.0, -0.5, -0.5]);
        let deviation = (1.0_f64 / 3.0).sqrt();
        close(
            &rloo(&[1.0, 0.0, 0.0], 3, Scale::Group).unwrap(),
            &[1.0 / deviation, -0.5 / deviation, -0.5 / deviation],
        );
    }

    #[test]
    fn rewards_that_are_no_groups_are_refused() {
        assert!(grpo(&[1.0; 5], 2, Scale::Group).is_err());
        assert!(grpo(&[1.0], 0, Scale::Group).is_err());
        assert_eq!(
            rloo(&[1.0], 1, Scale::Group).unwrap_err().message,
            "`num_generations` is 1, and at least 2 are needed"
        );
    }

    #[test]
    fn a_request_has_its_own_names() {
        let call = |name: &str, arguments: Value| {
            let Value::Object(arguments) = arguments else { panic!("an object") };
            let mut given = Arguments::new("`__call__`", arguments);
            let advantage = Advantage::named(name, &mut Arguments::new("x", serde_json::Map::new()))?;
            let answer = advantage.call(&mut given)?;
            given.finish().map(|()| answer)
        };
        let given = json!({"rewards": [[1, 1], [0, 0]], "num_generations": 2, "scale": "none"});
        assert_eq!(call("GRPOAdvantage", given), Ok(json!([1.0, -1.0])));
        assert!(call("GRPOAdvantage", json!({"rewards": [1], "scale": "grup"})).is_err());
        assert!(call("GRPO", json!({})).is_err());
        let given = json!({"rewards": [[0.0, 1.0]], "values": [[0.5, 0.5]], "normalize": false});
        let expected = json!({"advantages": [[0.475, 0.5]], "returns": [[0.975, 1.0]]});
        assert_eq!(call("GAEAdvantage", given), Ok(expected));
    }
}
