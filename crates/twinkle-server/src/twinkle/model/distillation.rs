//! What a teacher said, as candidates at every position: the label first, which does not count, then the teacher's.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Map, Value};
use twinkle_core::data::{Datum, TensorData, TensorValues};
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::IGNORED_LABEL;

use super::align::per_row;
use super::rows::{Row, Rows};

/// At one position, what the teacher gave some tokens: logprobs, or logits, which differ from them by a constant.
type Said = Vec<(i64, f32)>;

/// The datums of a loss with a teacher.
pub(super) fn data(rows: &Rows, given: &Map<String, Value>) -> Result<Vec<Datum>> {
    let count = rows.list.len();
    let texts: Vec<Vec<Said>> =
        match (given.get("teacher_logits"), given.get("teacher_topk_logprobs"), given.get("teacher_topk_indices")) {
            (Some(logits), None, None) => {
                let best = match given.get("topk") {
                    None => None,
                    Some(value) => Some(value.as_u64().filter(|best| *best > 0).ok_or_else(|| {
                        Error::invalid(format!("`topk` is {value}, but must be a whole number above 0"))
                    })? as usize),
                };
                let text =
                    |(row, given): (&Row, &Value)| of_logits(positions("teacher_logits", given, row, rows)?, best);
                rows.list.iter().zip(per_row("teacher_logits", logits, count)?).map(text).collect::<Result<_>>()?
            }
            (None, Some(logprobs), Some(indices)) => {
                let logprobs = per_row("teacher_topk_logprobs", logprobs, count)?;
                let indices = per_row("teacher_topk_indices", indices, count)?;
                let text = |(row, (logprobs, indices)): (&Row, (&Value, &Value))| {
                    let logprobs = positions("teacher_topk_logprobs", logprobs, row, rows)?;
                    of_best(logprobs, positions("teacher_topk_indices", indices, row, rows)?)
                };
                rows.list.iter().zip(logprobs.into_iter().zip(indices)).map(text).collect::<Result<_>>()?
            }
            _ => {
                return Err(Error::invalid("`GKDLoss` needs a teacher")
                    .hint("send `teacher_logits`, or `teacher_topk_logprobs` together with `teacher_topk_indices`"));
            }
        };
    rows.list.iter().zip(texts).map(|(row, said)| datum(row, &said)).collect()
}

/// What was given for the positions of one row, padding taken off.
fn positions<'a>(name: &str, given: &'a Value, row: &Row, rows: &Rows) -> Result<&'a [Value]> {
    let list = given.as_array().ok_or_else(|| Error::invalid(format!("`{name}` must be a list of lists per input")))?;
    let start = if list.len() == row.tokens.len() { 0 } else { rows.place(row) };
    list.get(start..start + row.tokens.len()).ok_or_else(|| {
        let (found, wanted) = (list.len(), row.tokens.len());
        Error::invalid(format!("`{name}` has {found} positions for an input of {wanted} tokens"))
    })
}

fn of_logits(positions: &[Value], best: Option<usize>) -> Result<Vec<Said>> {
    let position = |given: &Value| {
        let mut said: Said =
            numbers("teacher_logits", given)?.into_iter().zip(0..).map(|(logit, token)| (token, logit)).collect();
        if let Some(best) = best {
            said.sort_by(|one, other| other.1.partial_cmp(&one.1).unwrap_or(Ordering::Equal));
            said.truncate(best);
        }
        Ok(said)
    };
    positions.iter().map(position).collect()
}

fn of_best(logprobs: &[Value], indices: &[Value]) -> Result<Vec<Said>> {
    let position = |(logprobs, indices): (&Value, &Value)| {
        let logprobs = numbers("teacher_topk_logprobs", logprobs)?;
        let indices = numbers("teacher_topk_indices", indices)?;
        if logprobs.len() != indices.len() {
            return Err(Error::invalid("`teacher_topk_logprobs` and `teacher_topk_indices` have other lengths"));
        }
        Ok(indices.into_iter().map(|index| index as i64).zip(logprobs).collect())
    };
    logprobs.iter().zip(indices).map(position).collect()
}

fn numbers(name: &str, given: &Value) -> Result<Vec<f32>> {
    let list = given.as_array().ok_or_else(|| Error::invalid(format!("`{name}` must have a list at each position")))?;
    let number = |value: &Value| {
        let number = value.as_f64().filter(|number| number.is_finite());
        number
            .map(|number| number as f32)
            .ok_or_else(|| Error::invalid(format!("`{name}` holds `{value}`, no finite number")))
    };
    list.iter().map(number).collect()
}

fn datum(row: &Row, said: &[Said]) -> Result<Datum> {
    // Positions that are not learned may have said less, or nothing.
    let width = said.iter().map(Vec::len).max().unwrap_or_default();
    if width == 0 {
        return Err(Error::invalid("the teacher says nothing about any position"));
    }
    let (mut targets, mut teacher, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (label, said) in row.labels.iter().zip(said) {
        targets.push(if *label == IGNORED_LABEL { 0 } else { *label });
        teacher.push(0.0);
        counts.push(0.0);
        for place in 0..width {
            let candidate = said.get(place);
            let (token, logprob) = candidate.copied().unwrap_or_default();
            targets.push(token);
            teacher.push(logprob);
            counts.push(if candidate.is_some() { 1.0 } else { 0.0 });
        }
    }
    let shape = vec![row.tokens.len(), width + 1];
    let floats = |values| TensorData { shape: shape.clone(), values: TensorValues::Float32(values) };
    let mask = row.is_learned().map(|learned| if learned { 1.0 } else { 0.0 }).collect();
    let loss_inputs = BTreeMap::from([
        ("target_tokens".to_owned(), TensorData { shape: shape.clone(), values: TensorValues::Int64(targets) }),
        ("teacher_logprobs".to_owned(), floats(teacher)),
        ("candidate_mask".to_owned(), floats(counts)),
        ("mask".to_owned(), TensorData::floats(mask)),
    ]);
    Ok(Datum { tokens: row.tokens.clone(), loss_inputs })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows() -> Rows {
        let features = serde_json::from_value(json!([{ "input_ids": [1, 2], "labels": [-100, 7] }])).unwrap();
        Rows::of(features, false, false).unwrap()
    }

    fn made(given: &Value) -> Result<Vec<Datum>> {
        data(&rows(), given.as_object().unwrap())
    }

    #[test]
    fn the_label_comes_first_and_does_not_count() {
        let given = json!({
            "teacher_topk_logprobs": [[[-0.5, -1.5], [-0.25, -2.0]]],
            "teacher_topk_indices": [[[3, 4], [5, 6]]],
        });
        let datum = made(&given).unwrap().remove(0);
        let targets = TensorData { shape: vec![2, 3], ..TensorData::ints(vec![0, 3, 4, 7, 5, 6]) };
        assert_eq!(datum.loss_inputs["target_tokens"], targets);
        let counts = TensorData { shape: vec![2, 3], ..TensorData::floats(vec![0.0, 1.0, 1.0, 0.0, 1.0, 1.0]) };
        assert_eq!(datum.loss_inputs["candidate_mask"], counts);
        assert_eq!(datum.loss_inputs["mask"], TensorData::floats(vec![0.0, 1.0]));
    }

    #[test]
    fn the_best_of_a_teachers_logits_are_taken() {
        let given = json!({ "teacher_logits": [[[1, 3, 2], [9, 7, 8]]], "topk": 2 });
        let datum = made(&given).unwrap().remove(0);
        let targets = TensorData { shape: vec![2, 3], ..TensorData::ints(vec![0, 1, 2, 7, 0, 2]) };
        assert_eq!(datum.loss_inputs["target_tokens"], targets);
        assert_eq!(
            made(&json!({ "teacher_logits": [[[1, 3, 2], [9, 7, 8]]] })).unwrap()[0].loss_inputs["mask"].len(),
            2
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (given, expected) in [
            (json!({}), "needs a teacher"),
            (json!({ "teacher_logits": [[[1, 2]]] }), "1 positions for an input of 2 tokens"),
            (json!({ "teacher_logits": [[[1, 2], [1, 2]]], "topk": 0 }), "`topk` is 0"),
            (json!({ "teacher_logits": [[[], []]] }), "says nothing"),
            (
                json!({ "teacher_topk_logprobs": [[[-1], [-1]]], "teacher_topk_indices": [[[1], [1, 2]]] }),
                "other lengths",
            ),
        ] {
            let error = made(&given).unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        }
    }
}
