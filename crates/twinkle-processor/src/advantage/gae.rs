//! Generalised advantage estimation (Schulman et al., 2016), token by token.

use serde_json::{Value, json};
use twinkle_core::error::{Error, Result};

use super::TINY;
use crate::objects::Arguments;

/// How advantages are estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gae {
    /// What a reward one token later is worth.
    pub gamma: f64,
    /// How far estimates of the value are trusted: 0 for one step, 1 not at all.
    pub lambda: f64,
    /// Whether all advantages together get mean 0 and deviation 1.
    pub normalize: bool,
}

impl Gae {
    /// Reads the constructor's arguments.
    pub fn read(given: &mut Arguments) -> Result<Self> {
        let mut share = |name, standard| match given.number(name)?.unwrap_or(standard) {
            share if (0.0..=1.0).contains(&share) => Ok(share),
            other => Err(Error::invalid(format!("`{name}` is {other}, and must be from 0 to 1"))),
        };
        let (gamma, lambda) = (share("gamma", 1.0)?, share("gae_lambda", 0.95)?);
        Ok(Self { gamma, lambda, normalize: given.flag("normalize")?.unwrap_or(true) })
    }

    pub(super) fn call(mut self, rewards: &Value, given: &mut Arguments) -> Result<Value> {
        let rewards: Vec<Vec<f64>> = rows(rewards, "rewards")?;
        let values: Vec<Vec<f64>> = rows(&given.need("values")?, "values")?;
        let masks = given.take("masks").map(|masks| rows::<Mask>(&masks, "masks")).transpose()?;
        self.normalize = given.flag("normalize")?.unwrap_or(self.normalize);
        let masks =
            masks.map(|rows| rows.into_iter().map(|row| row.into_iter().map(|Mask(bit)| bit).collect()).collect());
        let (advantages, returns) = gae(&rewards, &values, masks, self)?;
        Ok(json!({"advantages": advantages, "returns": returns}))
    }
}

/// True or 1.
struct Mask(bool);

impl<'de> serde::Deserialize<'de> for Mask {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let bit = value.as_bool().or_else(|| value.as_f64().map(|number| number != 0.0));
        bit.map(Self).ok_or_else(|| serde::de::Error::custom("a mask is made of true and false"))
    }
}

/// A list of rows; one row is a list of one.
fn rows<T: serde::de::DeserializeOwned>(value: &Value, name: &str) -> Result<Vec<Vec<T>>> {
    let wrong = |error: serde_json::Error| Error::invalid(format!("`{name}` is not a list of rows: {error}"));
    match value.as_array() {
        Some(list) if list.iter().all(Value::is_array) => serde_json::from_value(value.clone()).map_err(wrong),
        _ => serde_json::from_value(value.clone()).map(|row| vec![row]).map_err(wrong),
    }
}

/// A number a token, row by row.
pub type Rows = Vec<Vec<f64>>;

/// Advantages and returns of rows of tokens; both are 0 where the mask is false. A row ends with its last unmasked
/// token.
pub fn gae(
    rewards: &[Vec<f64>],
    values: &[Vec<f64>],
    masks: Option<Vec<Vec<bool>>>,
    settings: Gae,
) -> Result<(Rows, Rows)> {
    let lengths = |rows: &[Vec<f64>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    if lengths(rewards) != lengths(values) {
        return Err(Error::invalid("`rewards` and `values` have different shapes"));
    }
    let masks = masks.unwrap_or_else(|| rewards.iter().map(|row| vec![true; row.len()]).collect());
    if masks.iter().map(Vec::len).collect::<Vec<_>>() != lengths(rewards) {
        return Err(Error::invalid("`masks` has another shape than `rewards`"));
    }
    let mut advantages = Vec::with_capacity(rewards.len());
    let mut returns = Vec::with_capacity(rewards.len());
    for ((rewards, values), mask) in rewards.iter().zip(values).zip(&masks) {
        let (mut estimate, mut next_value) = (0.0, 0.0);
        let mut backwards = Vec::with_capacity(rewards.len());
        for ((reward, value), is_valid) in rewards.iter().zip(values).zip(mask).rev() {
            if *is_valid {
                let surprise = reward + settings.gamma * next_value - value;
                estimate = surprise + settings.gamma * settings.lambda * estimate;
                next_value = *value;
                backwards.push((estimate, estimate + value));
            } else {
                backwards.push((0.0, 0.0));
            }
        }
        let (row, of_row): (Vec<f64>, Vec<f64>) = backwards.into_iter().rev().unzip();
        advantages.push(row);
        returns.push(of_row);
    }
    if settings.normalize {
        normalize(&mut advantages, &masks);
    }
    Ok((advantages, returns))
}

/// Gives all unmasked numbers together mean 0 and deviation 1, the latter of the whole population.
fn normalize(rows: &mut [Vec<f64>], masks: &[Vec<bool>]) {
    let valid = || masks.iter().flatten();
    let numbers: Vec<f64> =
        rows.iter().flatten().zip(valid()).filter(|(_, bit)| **bit).map(|(number, _)| *number).collect();
    if numbers.len() < 2 {
        return;
    }
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / numbers.len() as f64;
    for (number, _) in rows.iter_mut().flatten().zip(valid()).filter(|(_, bit)| **bit) {
        *number = (*number - mean) / (variance.sqrt() + TINY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(normalize: bool) -> Gae {
        Gae { gamma: 0.5, lambda: 0.5, normalize }
    }

    #[test]
    fn masked_tokens_are_stepped_over() {
        let (advantages, returns) = gae(
            &[vec![9.0, 0.0, 9.0, 1.0]],
            &[vec![9.0, 0.25, 9.0, 0.5]],
            Some(vec![vec![false, true, false, true]]),
            settings(false),
        )
        .unwrap();
        // Last: 1 - 0.5; before: 0 + 0.5 * 0.5 - 0.25 + 0.25 * 0.5.
        assert_eq!(advantages, [[0.0, 0.125, 0.0, 0.5]]);
        assert_eq!(returns, [[0.0, 0.375, 0.0, 1.0]]);
    }

    #[test]
    fn normalised_advantages_have_mean_0_and_deviation_1() {
        let rewards = [vec![0.0, 1.0], vec![2.0, 0.0]];
        let values = [vec![0.0, 0.0], vec![0.0, 0.0]];
        let (advantages, _) = gae(&rewards, &values, None, settings(true)).unwrap();
        let all: Vec<f64> = advantages.concat();
        assert!(all.iter().sum::<f64>().abs() < 1e-9);
        let squares: f64 = all.iter().map(|number| number * number).sum();
        assert!((squares / 4.0 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn shapes_must_agree() {
        assert!(gae(&[vec![0.0]], &[vec![0.0, 1.0]], None, settings(false)).is_err());
        assert!(gae(&[vec![0.0]], &[vec![0.0]], Some(vec![vec![]]), settings(false)).is_err());
    }
}
