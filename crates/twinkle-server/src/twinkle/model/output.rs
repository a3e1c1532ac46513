//! What a forward answers: the original's `ModelOutput`, batch by padded length.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use twinkle_core::call::{ForwardBackwardOutcome, Table};

use super::rows::Rows;

/// Numbers at every position of every row; what was no input has 0.
type PerPosition = Vec<Vec<f32>>;

/// The result of a forward. What was not asked for is null, or not there.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ModelOutput {
    logits: Option<Vec<Vec<Vec<f32>>>>,
    /// `log p` of each label; of token 0 where nothing is learned.
    logps: Option<PerPosition>,
    loss: Option<f64>,
    past_key_values: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    entropies: Option<PerPosition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embeddings: Option<Vec<Vec<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_tokens: Option<f64>,
}

impl ModelOutput {
    /// The result of a forward over these rows, with its loss if one was asked for.
    pub(super) fn of(rows: &Rows, outcome: &ForwardBackwardOutcome, logprobs: &[Vec<f32>], loss: Option<f64>) -> Self {
        let has_logprobs = rows.has_labels && logprobs.iter().any(|row| !row.is_empty());
        let logits = (!outcome.logits.is_empty()).then(|| {
            let width = outcome.logits.iter().map(|table| table.width).max().unwrap_or_default();
            let split =
                |table: &Table| table.values.chunks(table.width.max(1)).map(<[f32]>::to_vec).collect::<Vec<_>>();
            padded(rows, outcome.logits.iter().map(split), &vec![0.0; width])
        });
        let entropies = outcome.entropies.iter().map(|table| table.values.clone());
        let embeddings = outcome.embeddings.iter().map(|table| table.values.clone()).collect::<Vec<_>>();
        Self {
            logits,
            logps: has_logprobs.then(|| padded(rows, logprobs.iter().cloned(), &0.0)),
            loss,
            past_key_values: Value::Null,
            entropies: (!outcome.entropies.is_empty()).then(|| padded(rows, entropies, &0.0)),
            embeddings: (!embeddings.is_empty()).then_some(embeddings),
            num_tokens: loss.map(|_| outcome.num_tokens),
        }
    }
}

/// Of each row the logprob of its label at each position: the first candidate, where there are several.
pub(super) fn label_logprobs(outcome: &ForwardBackwardOutcome) -> Vec<Vec<f32>> {
    let first = |width: usize, values: &[f32]| values.iter().step_by(width.max(1)).copied().collect();
    outcome
        .logprobs
        .iter()
        .map(|row| row.candidates.map_or_else(|| row.values.clone(), |width| first(width, &row.values)))
        .collect()
}

/// Puts each row at its place in the batch.
fn padded<T: Clone>(rows: &Rows, values: impl Iterator<Item = Vec<T>>, filling: &T) -> Vec<Vec<T>> {
    let length = rows.padded();
    let place = |(row, values): (&super::rows::Row, Vec<T>)| {
        let mut whole = vec![filling.clone(); rows.place(row)];
        whole.extend(values);
        whole.resize(length, filling.clone());
        whole
    };
    rows.list.iter().zip(values).map(place).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use twinkle_core::call::Logprobs;

    use super::*;

    fn rows() -> Rows {
        let features = serde_json::from_value(json!([
            { "input_ids": [1, 2], "labels": [2, 3] },
            { "input_ids": [0, 5, 6], "labels": [-100, 6, 7], "attention_mask": [0, 1, 1] },
            { "input_ids": [4, 4, 4], "labels": [4, 4, 4] },
        ]))
        .unwrap();
        Rows::of(features, false, false).unwrap()
    }

    #[test]
    fn every_row_is_as_long_as_the_longest_and_at_its_place() {
        let logprobs = vec![vec![-1.0, -2.0], vec![-3.0, -4.0], vec![-5.0, -6.0, -7.0]];
        let outcome = ForwardBackwardOutcome::default();
        let output = ModelOutput::of(&rows(), &outcome, &logprobs, Some(0.5));
        let value = serde_json::to_value(&output).unwrap();
        assert_eq!(value["logps"], json!([[-1.0, -2.0, 0.0], [0.0, -3.0, -4.0], [-5.0, -6.0, -7.0]]));
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["logits", "logps", "loss", "past_key_values", "num_tokens"]);
        assert_eq!(value["loss"], 0.5);
    }

    #[test]
    fn logits_and_embeddings_keep_their_shapes() {
        let table = |values: Vec<f32>, width| Table { values, width };
        let outcome = ForwardBackwardOutcome {
            logits: vec![table(vec![1.0; 4], 2), table(vec![2.0; 4], 2), table(vec![3.0; 6], 2)],
            embeddings: vec![table(vec![0.5, 0.5], 2)],
            ..ForwardBackwardOutcome::default()
        };
        let output = serde_json::to_value(ModelOutput::of(&rows(), &outcome, &[], None)).unwrap();
        assert_eq!(output["logits"][1], json!([[0.0, 0.0], [2.0, 2.0], [2.0, 2.0]]));
        assert_eq!(output["embeddings"], json!([[0.5, 0.5]]));
        assert_eq!((&output["logps"], &output["loss"]), (&json!(null), &json!(null)));
    }

    #[test]
    fn of_several_candidates_the_first_is_the_label() {
        let logprobs =
            vec![Logprobs { values: vec![-1.0, -9.0, -2.0, -9.0], candidates: Some(2) }, Logprobs::flat(vec![-3.0])];
        let outcome = ForwardBackwardOutcome { logprobs, ..ForwardBackwardOutcome::default() };
        assert_eq!(label_logprobs(&outcome), [vec![-1.0, -2.0], vec![-3.0]]);
    }
}
