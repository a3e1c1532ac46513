//! From texts and the keyword arguments of a loss to what the engine computes it from.
//!
//! Every input of a loss is aligned to the tokens here, so that the engine never sees padding. `losses::native` of the model
//! crate says which loss reads what; what a loss does not read may be there, since clients send the same keywords to all.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use twinkle_core::call::LossSpec;
use twinkle_core::data::{Datum, TensorData, TensorValues};
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::IGNORED_LABEL;

use super::align::{aligned, flatten, per_row};
use super::arguments::Arguments;
use super::distillation;
use super::rows::{Row, Rows};

/// The loss of one label for each text.
pub(super) const EMBEDDING_LOSS: &str = "InfonceLoss";
/// The loss with a teacher.
pub(super) const DISTILLATION_LOSS: &str = "GKDLoss";

/// Keyword arguments that losses read.
const LOSS_INPUTS: [&str; 14] = [
    "advantages",
    "old_logps",
    "ref_logps",
    "ref_outputs",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "teacher_logits",
    "topk",
    "teacher_topk_logprobs",
    "teacher_topk_indices",
    "target_logits",
    "num_items_in_batch",
    "old_values",
    "returns",
];

/// What a loss is computed from besides the texts, as it was sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LossInputs {
    given: Map<String, Value>,
}

/// What a loss is computed from besides the texts, aligned to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Columns {
    /// By name, per row one number for each token.
    columns: BTreeMap<&'static str, Vec<Vec<f32>>>,
}

impl LossInputs {
    /// Takes what losses read out of the arguments.
    pub(super) fn take(arguments: &mut Arguments) -> Self {
        let given = LOSS_INPUTS.iter().filter_map(|name| Some(((*name).to_owned(), arguments.any(name)?)));
        Self { given: given.collect() }
    }

    /// With these in place of those that both have.
    pub(super) fn replaced_by(mut self, later: Self) -> Self {
        self.given.extend(later.given);
        self
    }

    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        fn bytes(value: &Value) -> usize {
            match value {
                Value::Array(list) => list.iter().map(bytes).sum::<usize>() + 24,
                Value::Object(map) => map.values().map(bytes).sum::<usize>() + 48,
                _ => 32,
            }
        }
        self.given.values().map(bytes).sum()
    }

    /// The loss with the settings that come with a request.
    pub(super) fn applied_to(&self, mut loss: LossSpec) -> Result<LossSpec> {
        if let Some(items) = self.get("num_items_in_batch")
            && loss.name == "CISPOLoss"
        {
            let number = items.as_f64().filter(|number| *number > 0.0);
            let number = number.ok_or_else(|| Error::invalid("`num_items_in_batch` must be a number above 0"))?;
            loss.config.insert("num_items_in_batch".to_owned(), number);
        }
        Ok(loss)
    }

    /// Aligns what there is one number per token of.
    pub(super) fn columns(&self, rows: &Rows) -> Result<Columns> {
        let mut columns = BTreeMap::new();
        for name in ["advantages", "old_logps", "target_logits"] {
            if let Some(given) = self.get(name) {
                columns.insert(name, aligned(name, given, rows)?);
            }
        }
        if let Some(reference) = self.reference(rows)? {
            columns.insert("ref_logps", reference);
        }
        Ok(Columns { columns })
    }

    /// The reference's logprobs, in any of the forms that clients have them in.
    fn reference(&self, rows: &Rows) -> Result<Option<Vec<Vec<f32>>>> {
        match (self.get("ref_chosen_logps"), self.get("ref_rejected_logps")) {
            (None, None) => {}
            (Some(chosen), Some(rejected)) => return sums(chosen, rejected, rows).map(Some),
            _ => return Err(Error::invalid("`ref_chosen_logps` and `ref_rejected_logps` belong together")),
        }
        if let Some(given) = self.get("ref_logps") {
            return aligned("ref_logps", given, rows).map(Some);
        }
        let Some(outputs) = self.get("ref_outputs") else { return Ok(None) };
        match outputs.get("logps") {
            None | Some(Value::Null) => Err(Error::invalid("`ref_outputs` has no `logps`")
                .hint("send the result of `forward_only`, made with labels")),
            Some(given) => aligned("ref_outputs.logps", given, rows).map(Some),
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.given.get(name)
    }
}

/// References that are known by text only: the first learned position stands for all of them.
fn sums(chosen: &Value, rejected: &Value, rows: &Rows) -> Result<Vec<Vec<f32>>> {
    let pairs = rows.list.len() / 2;
    let mut columns = vec![Vec::new(); rows.list.len()];
    for (name, given, first) in [("ref_chosen_logps", chosen, 0), ("ref_rejected_logps", rejected, 1)] {
        let texts = rows.list.iter().zip(&mut columns).skip(first).step_by(2);
        for (given, (row, column)) in per_row(name, given, pairs)?.into_iter().zip(texts) {
            let mut numbers = Vec::new();
            flatten(given, &mut numbers)?;
            let [sum] = numbers[..] else {
                return Err(Error::invalid(format!("`{name}` must have one number for each pair")));
            };
            *column = vec![0.0; row.tokens.len()];
            let Some(place) = row.is_learned().position(|learned| learned) else { continue };
            column[place] = sum;
        }
    }
    Ok(columns)
}

impl Columns {
    /// One of them, if it was sent.
    pub(super) fn get(&self, name: &str) -> Option<&[Vec<f32>]> {
        self.columns.get(name).map(Vec::as_slice)
    }
}

/// What the engine is given: one datum for each row.
pub(super) fn data(rows: &Rows, loss: &LossSpec, inputs: &LossInputs, columns: &Columns) -> Result<Vec<Datum>> {
    if loss.name == EMBEDDING_LOSS {
        return Ok(rows.list.iter().map(embedded).collect());
    }
    if loss.name == DISTILLATION_LOSS {
        return distillation::data(rows, &inputs.given);
    }
    let datum = |(index, row): (usize, &Row)| {
        let mut loss_inputs = targets(row);
        for (name, column) in &columns.columns {
            if let Some(values) = column.get(index) {
                loss_inputs.insert((*name).to_owned(), TensorData::floats(values.clone()));
            }
        }
        Datum { tokens: row.tokens.clone(), loss_inputs }
    };
    Ok(rows.list.iter().enumerate().map(datum).collect())
}

/// Labels as targets, 0 where nothing is learned, and the mask over them.
pub(super) fn targets(row: &Row) -> BTreeMap<String, TensorData> {
    let targets = row.labels.iter().map(|label| if *label == IGNORED_LABEL { 0 } else { *label }).collect();
    let mask = row.is_learned().map(|learned| if learned { 1.0 } else { 0.0 }).collect();
    BTreeMap::from([
        ("target_tokens".to_owned(), TensorData::ints(targets)),
        ("mask".to_owned(), TensorData::floats(mask)),
    ])
}

/// A text and its one label.
fn embedded(row: &Row) -> Datum {
    let label = row.labels.last().copied().unwrap_or_default();
    let label = TensorData { shape: vec![1], values: TensorValues::Float32(vec![label as f32]) };
    Datum { tokens: row.tokens.clone(), loss_inputs: BTreeMap::from([("label".to_owned(), label)]) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use twinkle_core::wire::twinkle::InputFeature;

    use super::*;

    fn rows() -> Rows {
        let features: Vec<InputFeature> = serde_json::from_value(json!([
            { "input_ids": [1, 2, 3], "labels": [-100, 3, 4] },
            { "input_ids": [5, 6], "labels": [-100, 7] },
        ]))
        .unwrap();
        Rows::of(features, false, false).unwrap()
    }

    fn inputs(value: &Value) -> LossInputs {
        let mut arguments = Arguments::new("forward_backward", value.as_object().cloned().unwrap());
        let inputs = LossInputs::take(&mut arguments);
        arguments.end().unwrap();
        inputs
    }

    #[test]
    fn labels_become_targets_and_a_mask() {
        let (rows, loss) = (rows(), LossSpec::named("CrossEntropyLoss"));
        let inputs = inputs(&json!({}));
        let data = data(&rows, &loss, &inputs, &inputs.columns(&rows).unwrap()).unwrap();
        assert_eq!(data[0].tokens, [1, 2, 3]);
        assert_eq!(data[0].loss_inputs["target_tokens"], TensorData::ints(vec![0, 3, 4]));
        assert_eq!(data[0].loss_inputs["mask"], TensorData::floats(vec![0.0, 1.0, 1.0]));
        assert_eq!(data[1].loss_inputs.len(), 2);
    }

    #[test]
    fn a_reference_is_read_in_every_form() {
        let rows = rows();
        let expected = [vec![0.0, -1.0, -2.0], vec![0.0, -3.0]];
        let per_token = json!([[-9, -1, -2], [-9, -3, 0]]);
        for given in [
            json!({ "ref_logps": per_token }),
            json!({ "ref_outputs": { "logps": per_token, "logits": null, "past_key_values": null } }),
        ] {
            assert_eq!(inputs(&given).columns(&rows).unwrap().get("ref_logps").unwrap(), expected, "{given}");
        }
        let sums = inputs(&json!({ "ref_chosen_logps": [-3], "ref_rejected_logps": [-4] }));
        assert_eq!(sums.columns(&rows).unwrap().get("ref_logps").unwrap(), [vec![0.0, -3.0, 0.0], vec![0.0, -4.0]]);
        let half = inputs(&json!({ "ref_chosen_logps": [-3] })).columns(&rows).unwrap_err();
        assert!(half.message.contains("belong together"), "{half}");
        let empty = inputs(&json!({ "ref_outputs": {} })).columns(&rows).unwrap_err();
        assert!(empty.message.contains("no `logps`"), "{empty}");
    }

    #[test]
    fn later_inputs_count() {
        let both = inputs(&json!({ "advantages": [1, 2], "old_logps": [[0], [0]] }))
            .replaced_by(inputs(&json!({ "advantages": [3, 4] })));
        assert_eq!(both, inputs(&json!({ "advantages": [3, 4], "old_logps": [[0], [0]] })));
    }

    #[test]
    fn an_embedded_text_has_its_label_alone() {
        let features = serde_json::from_value(json!([{ "input_ids": [1, 2], "labels": [1] }])).unwrap();
        let rows = Rows::of(features, false, true).unwrap();
        let data = data(&rows, &LossSpec::named(EMBEDDING_LOSS), &inputs(&json!({})), &Columns::default()).unwrap();
        assert_eq!(data[0].loss_inputs.keys().collect::<Vec<_>>(), ["label"]);
    }

    #[test]
    fn a_count_of_items_is_a_setting_of_the_loss_that_divides_by_it() {
        let given = inputs(&json!({ "num_items_in_batch": 12 }));
        let loss = given.applied_to(LossSpec::named("CISPOLoss")).unwrap();
        assert_eq!(loss.config, [("num_items_in_batch".to_owned(), 12.0)].into());
        assert!(given.applied_to(LossSpec::named("GRPOLoss")).unwrap().config.is_empty());
    }
}
