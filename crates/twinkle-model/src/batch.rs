//! From the datums a client sent to rows a device can run: checked once, then trusted.

use std::collections::BTreeMap;
use std::ops::Range;

use twinkle_core::call::ForwardOptions;
use twinkle_core::data::{Datum, TensorData, TensorValues, TokenIds};
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};

use crate::losses::{Column, Inputs, Loss, check_is_read};

/// Most candidates one position may have. Distillation uses a few dozen.
pub const MAX_CANDIDATES: usize = 1024;

/// Most logits one request may be answered with: 64 MiB of them.
pub const MAX_LOGITS: usize = 1 << 24;

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
    /// Row-major `[tokens × candidates]`: position `i` predicts each of the `i`-th row.
    pub targets: TokenIds,
    /// Second dimension of the targets; `None`: they have one dimension.
    pub candidates: Option<usize>,
    /// Row-major `[targets × columns]`: what [`PerToken::token`](crate::losses::PerToken::token) gets. Of a loss with
    /// [`Inputs::PerDatum`], one number for each column.
    pub inputs: Vec<f32>,
    /// Everything that was sent, for a loss with [`Inputs::AsSent`] only.
    pub sent: BTreeMap<String, TensorData>,
}

impl Example {
    /// How many targets each position has, at least 1.
    #[must_use]
    pub fn width(&self) -> usize {
        self.candidates.unwrap_or(1)
    }
}

/// Checks every datum against the model and the loss; the first mistake names its datum and position.
pub fn check(data: Vec<Datum>, loss: &dyn Loss, limits: Limits) -> Result<Vec<Example>> {
    if data.is_empty() {
        return Err(Error::invalid("the batch is empty").hint("send at least one datum"));
    }
    let check = |(index, datum)| check_datum(index, datum, loss, limits);
    let mut examples = data.into_iter().enumerate().map(check).collect::<Result<Vec<_>>>()?;
    loss.prepare(&mut examples)?;
    Ok(examples)
}

/// Checks how the network is to be used and what is to be returned.
pub fn check_options(options: ForwardOptions, backward: bool, examples: &[Example], limits: Limits) -> Result<()> {
    let ForwardOptions { temperature, disable_lora, outputs, .. } = options;
    // What a device computes with is fp32.
    if !(temperature.is_finite() && temperature as f32 >= f32::MIN_POSITIVE) {
        return Err(Error::invalid(format!("`temperature` is {temperature}, but must be a number above 0")));
    }
    if disable_lora && backward {
        return Err(Error::invalid("`disable_lora` leaves nothing to train")
            .hint("it is for a forward without backward, such as a reference for preference losses"));
    }
    if let Some(datum) = examples.iter().position(|example| example.targets.is_empty())
        && (outputs.logits || outputs.entropies)
    {
        return Err(Error::invalid(format!("datum {datum} has no `target_tokens`, so it has no logits or entropies"))
            .hint("embeddings are made without the head; ask for logits in a forward with labels"));
    }
    let logits = examples.iter().map(|example| example.tokens.len()).sum::<usize>().saturating_mul(limits.vocabulary);
    if outputs.logits && logits > MAX_LOGITS {
        return Err(Error::invalid(format!(
            "the logits of this request are {logits} numbers, more than {MAX_LOGITS} that are returned at once"
        ))
        .hint("send fewer or shorter sequences, or ask for logprobs or entropies only"));
    }
    Ok(())
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
    let mut example =
        Example { tokens, targets: Vec::new(), candidates: None, inputs: Vec::new(), sent: BTreeMap::new() };
    let shape = match (loss.inputs(), loss_inputs.get("target_tokens")) {
        (Inputs::PerDatum(_), _) => vec![1],
        (_, Some(targets)) => {
            (example.targets, example.candidates) = read_targets(index, targets, length, loss, limits)?;
            targets.shape.clone()
        }
        (_, None) if !loss.needs_targets() => vec![0],
        (_, None) => return Err(Error::invalid(format!("datum {index} has no `target_tokens`"))),
    };
    match loss.inputs() {
        Inputs::Columns(columns) | Inputs::PerDatum(columns) => {
            for name in loss_inputs.keys() {
                check_name(index, name, columns, loss.known_inputs())?;
            }
            let rows: usize = shape.iter().product();
            example.inputs = vec![0.0; rows * columns.len()];
            // One number for a position with several candidates.
            let spread = example.candidates.filter(|_| loss.spreads_positions());
            for (place, column) in columns.iter().enumerate() {
                let sent = loss_inputs.get(column.name).filter(|_| rows > 0);
                let values = match (spread, sent) {
                    (Some(candidates), Some(sent)) if sent.shape.len() == 1 => {
                        let values = column_values(index, column, Some(sent), &[length])?;
                        values.into_iter().flat_map(|value| std::iter::repeat_n(value, candidates)).collect()
                    }
                    _ if rows == 0 => Vec::new(),
                    _ => column_values(index, column, sent, &shape)?,
                };
                for (cell, value) in values.into_iter().enumerate() {
                    example.inputs[cell * columns.len() + place] = value;
                }
            }
        }
        Inputs::AsSent => example.sent = loss_inputs,
    }
    loss.check(&example).map_err(|error| Error { message: format!("datum {index}: {}", error.message), ..error })?;
    Ok(example)
}

/// The targets, and their second dimension.
fn read_targets(
    index: usize,
    targets: &TensorData,
    length: usize,
    loss: &dyn Loss,
    limits: Limits,
) -> Result<(TokenIds, Option<usize>)> {
    let TensorValues::Int64(ids) = &targets.values else {
        return Err(Error::invalid(format!("`target_tokens` of datum {index} must be int64")));
    };
    let most = loss.takes_candidates().then(|| loss.max_candidates(limits.vocabulary));
    let candidates = candidates_of(index, targets, length, most)?;
    check_vocabulary(index, "target_tokens", ids.iter().copied(), limits.vocabulary)?;
    Ok((ids.iter().map(|id| *id as u32).collect(), candidates))
}

/// Refuses names no loss knows, and those without which the user would expect another result.
fn check_name(index: usize, name: &str, columns: &[Column], known: &[&str]) -> Result<()> {
    if !known.contains(&name) {
        let hint = suggestion(name, "loss inputs", known);
        return Err(Error::invalid(format!("datum {index} has an unknown loss input `{name}`")).hint(hint));
    }
    check_is_read(name, columns)
        .map_err(|error| Error { message: format!("datum {index}: {}", error.message), ..error })
}

/// The second dimension of `target_tokens`, `None` for one dimension; `most` of them, if the loss takes several.
fn candidates_of(index: usize, targets: &TensorData, length: usize, most: Option<usize>) -> Result<Option<usize>> {
    let [rows, candidates] = targets.shape[..] else {
        check_shape(index, "target_tokens", targets, &[length])?;
        return Ok(None);
    };
    let Some(most) = most else {
        return Err(Error::invalid(format!(
            "`target_tokens` of datum {index} has shape {:?}, but this loss takes one target per position",
            targets.shape
        ))
        .hint("several candidates per position are for `cross_entropy`"));
    };
    if candidates == 0 || candidates > most {
        return Err(Error::invalid(format!(
            "`target_tokens` of datum {index} has {candidates} candidates per position, not between 1 and {most}"
        )));
    }
    if rows.checked_mul(candidates) != Some(targets.len()) {
        return Err(Error::invalid(format!(
            "`target_tokens` of datum {index} has {} values, which do not fill its shape {:?}",
            targets.len(),
            targets.shape
        )));
    }
    if rows != length {
        return Err(Error::invalid(format!(
            "`target_tokens` of datum {index} has {rows} rows, but the model input has {length} tokens"
        ))
        .hint(ALIGNED));
    }
    Ok(Some(candidates))
}

fn column_values(index: usize, column: &Column, sent: Option<&TensorData>, shape: &[usize]) -> Result<Vec<f32>> {
    let name = column.name;
    let Some(tensor) = sent else {
        return match column.default {
            Some(value) => Ok(vec![value; shape.iter().product()]),
            None => Err(Error::invalid(format!("datum {index} has no `{name}`, which this loss needs"))),
        };
    };
    check_shape(index, name, tensor, shape)?;
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

const ALIGNED: &str = "loss inputs are aligned to the model input: one value per position, no shift by the server";

fn check_shape(index: usize, name: &str, tensor: &TensorData, expected: &[usize]) -> Result<()> {
    if tensor.shape == expected && tensor.len() == expected.iter().product::<usize>() {
        return Ok(());
    }
    let [length] = expected else {
        return Err(Error::invalid(format!(
            "`{name}` of datum {index} has shape {:?}, but `target_tokens` has {expected:?}",
            tensor.shape
        )));
    };
    if tensor.shape.len() > 1 {
        return Err(Error::invalid(format!(
            "`{name}` of datum {index} has shape {:?}, but one value per position is needed, {length} in all",
            tensor.shape
        )));
    }
    Err(Error::invalid(format!(
        "`{name}` of datum {index} has {} values, but the model input has {length} tokens",
        tensor.len()
    ))
    .hint(ALIGNED))
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
        let loss = crate::losses::build(&LossSpec::named("cross_entropy")).unwrap();
        Ok(check(vec![datum], loss.as_ref(), LIMITS)?.remove(0))
    }

    #[test]
    fn weights_default_to_one() {
        let example = check_one(datum(&[1, 2], &[("target_tokens", TensorData::ints(vec![2, 3]))])).unwrap();
        assert_eq!(example.inputs, [1.0, 1.0]);
        assert_eq!(example.targets, [2, 3]);
        assert_eq!(example.candidates, None);
    }

    fn table(values: Vec<i64>, shape: [usize; 2]) -> (&'static str, TensorData) {
        ("target_tokens", TensorData { shape: shape.to_vec(), ..TensorData::ints(values) })
    }

    #[test]
    fn every_candidate_is_a_target_with_a_weight_of_its_own() {
        let weights = TensorData { shape: vec![2, 2], ..TensorData::floats(vec![0.5, 0.25, -1.0, 0.0]) };
        let targets = table(vec![2, 3, 4, 0], [2, 2]);
        let example = check_one(datum(&[1, 2], &[targets, ("weights", weights)])).unwrap();
        assert_eq!(example.candidates, Some(2));
        assert_eq!(example.targets, [2, 3, 4, 0]);
        assert_eq!(example.inputs, [0.5, 0.25, -1.0, 0.0]);
    }

    #[test]
    fn candidates_are_bounded_and_for_losses_that_take_them() {
        let many = MAX_CANDIDATES + 1;
        let flat = ("weights", TensorData::floats(vec![1.0, 1.0]));
        let cases = [
            (datum(&[1], &[table(vec![], [1, 0])]), "has 0 candidates per position, not between 1 and 1024"),
            (datum(&[1], &[table(vec![1; many], [1, many])]), "has 1025 candidates"),
            (datum(&[1], &[table(vec![1, 1], [2, 1])]), "has 2 rows, but the model input has 1 tokens"),
            (datum(&[1, 2], &[table(vec![1, 1], [2, 1]), flat]), "has shape [2], but `target_tokens` has [2, 1]"),
            (datum(&[1], &[table(vec![1, 10], [1, 2])]), "token 10 at position 1"),
        ];
        for (datum, expected) in cases {
            let error = check_one(datum).unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        }
        let ppo = crate::losses::build(&LossSpec::named("ppo")).unwrap();
        let error = check(vec![datum(&[1], &[table(vec![1, 2], [1, 2])])], ppo.as_ref(), LIMITS).unwrap_err();
        assert!(error.to_string().contains("takes one target per position"), "{error}");
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

    #[test]
    fn ways_to_use_the_network_that_make_no_sense_are_refused() {
        let examples = [check_one(datum(&[1, 2], &[("target_tokens", TensorData::ints(vec![2, 3]))])).unwrap()];
        let check = |options: ForwardOptions, backward: bool, vocabulary: usize| {
            check_options(options, backward, &examples, Limits { vocabulary, ..LIMITS })
        };
        let usual = ForwardOptions::default();
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-40] {
            let error = check(ForwardOptions { temperature, ..usual }, false, 10).unwrap_err().to_string();
            assert!(error.contains("must be a number above 0"), "{error}");
        }
        let bare = ForwardOptions { disable_lora: true, ..usual };
        assert!(check(bare, true, 10).unwrap_err().to_string().contains("leaves nothing to train"));
        let mut logits = usual;
        logits.outputs.logits = true;
        let error = check(logits, false, MAX_LOGITS / 2 + 1).unwrap_err().to_string();
        assert!(error.contains("more than 16777216"), "{error}");
        let bare_example = [Example { targets: vec![], ..examples[0].clone() }];
        let error = check_options(logits, false, &bare_example, LIMITS).unwrap_err().to_string();
        assert!(error.contains("so it has no logits"), "{error}");
        for (options, backward, vocabulary) in [(usual, true, 10), (bare, false, 10), (logits, true, MAX_LOGITS / 2)] {
            assert!(check(options, backward, vocabulary).is_ok());
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
