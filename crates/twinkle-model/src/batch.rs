//! From the datums a client sent to rows a device can run: checked once, then trusted.

use std::ops::Range;

use twinkle_core::data::{Datum, TensorData, TensorValues, TokenIds};
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};

use crate::losses::{Column, KNOWN_INPUTS, Loss};

/// What a datum is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows of the embedding: token ids are below it.
    pub vocabulary: usize,
    /// Most tokens in one datum.
    pub max_length: usize,
}

/// A checked datum.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The input tokens.
    pub tokens: TokenIds,
    /// Position `i` predicts `targets[i]`.
    pub targets: TokenIds,
    /// Position-major `[tokens × columns]`: what [`Loss::token`] gets.
    pub inputs: Vec<f32>,
}

/// Checks every datum against the model and the loss; the first mistake names its datum and position.
pub fn check(data: Vec<Datum>, loss: &dyn Loss, limits: Limits) -> Result<Vec<Example>> {
    if data.is_empty() {
        return Err(Error::invalid("the batch is empty").hint("send at least one datum"));
    }
    data.into_iter().enumerate().map(|(index, datum)| check_datum(index, datum, loss, limits)).collect()
}

fn check_datum(index: usize, datum: Datum, loss: &dyn Loss, limits: Limits) -> Result<Example> {
    let Datum { tokens, loss_inputs } = datum;
    let length = tokens.len();
    if length == 0 {
        return Err(Error::invalid(format!("datum {index} has no tokens")));
    }
    if length > limits.max_length {
        return Err(Error::invalid(format!(
            "datum {index} has {length} tokens, more than the model's limit of {}",
            limits.max_length
        )));
    }
    check_vocabulary(index, "model_input", tokens.iter().map(|token| i64::from(*token)), limits.vocabulary)?;
    for name in loss_inputs.keys() {
        if !KNOWN_INPUTS.contains(&name.as_str()) {
            return Err(Error::invalid(format!("datum {index} has an unknown loss input `{name}`")).hint(suggestion(
                name,
                "loss inputs",
                KNOWN_INPUTS,
            )));
        }
    }

    let Some(targets) = loss_inputs.get("target_tokens") else {
        return Err(Error::invalid(format!("datum {index} has no `target_tokens`")));
    };
    check_shape(index, "target_tokens", targets, length)?;
    let TensorValues::Int64(target_ids) = &targets.values else {
        return Err(Error::invalid(format!("`target_tokens` of datum {index} must be int64")));
    };
    check_vocabulary(index, "target_tokens", target_ids.iter().copied(), limits.vocabulary)?;
    let targets = target_ids.iter().map(|id| *id as u32).collect();

    let columns = loss.columns();
    let mut inputs = vec![0.0; length * columns.len()];
    for (place, column) in columns.iter().enumerate() {
        let values = column_values(index, column, loss_inputs.get(column.name), length)?;
        for (position, value) in values.into_iter().enumerate() {
            inputs[position * columns.len() + place] = value;
        }
    }
    Ok(Example { tokens, targets, inputs })
}

fn column_values(index: usize, column: &Column, sent: Option<&TensorData>, length: usize) -> Result<Vec<f32>> {
    let name = column.name;
    let Some(tensor) = sent else {
        return match column.default {
            Some(value) => Ok(vec![value; length]),
            None => Err(Error::invalid(format!("datum {index} has no `{name}`, which this loss needs"))),
        };
    };
    check_shape(index, name, tensor, length)?;
    let values: Vec<f32> = match &tensor.values {
        TensorValues::Float32(values) => values.clone(),
        TensorValues::Int64(values) => values.iter().map(|value| *value as f32).collect(),
    };
    if let Some(position) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::invalid(format!(
            "`{name}` of datum {index} is {} at position {position}, not a finite number",
            values[position]
        )));
    }
    Ok(values)
}

fn check_shape(index: usize, name: &str, tensor: &TensorData, length: usize) -> Result<()> {
    if tensor.shape.len() > 1 {
        return Err(Error::unsupported(format!(
            "`{name}` of datum {index} has shape {:?}; only one value per position is supported",
            tensor.shape
        )));
    }
    if tensor.shape != [length] || tensor.len() != length {
        return Err(Error::invalid(format!(
            "`{name}` of datum {index} has {} values, but the model input has {length} tokens",
            tensor.len()
        ))
        .hint("loss inputs are aligned to the model input: one value per position, no shift by the server"));
    }
    Ok(())
}

fn check_vocabulary(index: usize, name: &str, ids: impl Iterator<Item = i64>, vocabulary: usize) -> Result<()> {
    for (position, id) in ids.enumerate() {
        if usize::try_from(id).is_ok_and(|id| id < vocabulary) {
            continue;
        }
        return Err(Error::invalid(format!(
            "`{name}` of datum {index} has token {id} at position {position}, outside the vocabulary of {vocabulary}"
        )));
    }
    Ok(())
}

/// Cuts `lengths` into consecutive ranges of at most `row_limit` rows each, never splitting a sequence.
#[must_use]
pub fn packs(lengths: &[usize], row_limit: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    let mut rows = 0;
    for (index, length) in lengths.iter().enumerate() {
        if index > start && rows + length > row_limit {
            ranges.push(start..index);
            start = index;
            rows = 0;
        }
        rows += length;
    }
    if start < lengths.len() {
        ranges.push(start..lengths.len());
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use twinkle_core::call::LossSpec;

    use super::*;

    const LIMITS: Limits = Limits { vocabulary: 10, max_length: 4 };

    fn datum(tokens: &[u32], inputs: &[(&str, TensorData)]) -> Datum {
        Datum {
            tokens: tokens.to_vec(),
            loss_inputs: inputs.iter().map(|(name, tensor)| ((*name).into(), tensor.clone())).collect(),
        }
    }

    fn check_one(datum: Datum) -> Result<Example> {
        let loss = crate::losses::build(&LossSpec { name: "cross_entropy".into(), config: BTreeMap::new() }).unwrap();
        Ok(check(vec![datum], loss.as_ref(), LIMITS)?.remove(0))
    }

    #[test]
    fn weights_default_to_one() {
        let example = check_one(datum(&[1, 2], &[("target_tokens", TensorData::ints(vec![2, 3]))])).unwrap();
        assert_eq!(example.inputs, [1.0, 1.0]);
        assert_eq!(example.targets, [2, 3]);
    }

    #[test]
    fn mistakes_are_named() {
        let targets = |values: Vec<i64>| ("target_tokens", TensorData::ints(values));
        let cases = [
            (datum(&[], &[]), "datum 0 has no tokens"),
            (datum(&[1, 10], &[]), "token 10 at position 1, outside the vocabulary of 10"),
            (datum(&[1, 2, 3, 4, 5], &[]), "more than the model's limit of 4"),
            (datum(&[1], &[]), "has no `target_tokens`"),
            (datum(&[1, 2], &[targets(vec![1])]), "has 1 values, but the model input has 2 tokens"),
            (datum(&[1], &[targets(vec![-1])]), "token -1"),
            (datum(&[1], &[targets(vec![1]), ("weigths", TensorData::floats(vec![1.0]))]), "did you mean `weights`"),
            (datum(&[1], &[targets(vec![1]), ("weights", TensorData::floats(vec![f32::NAN]))]), "NaN at position 0"),
            (datum(&[1], &[("target_tokens", TensorData::floats(vec![1.0]))]), "must be int64"),
        ];
        for (datum, expected) in cases {
            let error = check_one(datum).unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        }
    }

    proptest! {
        #[test]
        fn packs_keep_order_and_respect_the_limit(lengths in proptest::collection::vec(1_usize..300, 0..60)) {
            let ranges = packs(&lengths, 256);
            let flattened: Vec<usize> = ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(flattened, (0..lengths.len()).collect::<Vec<_>>());
            for range in ranges {
                let rows: usize = lengths[range.clone()].iter().sum();
                prop_assert!(rows <= 256 || range.len() == 1);
            }
        }
    }
}
