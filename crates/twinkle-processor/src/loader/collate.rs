//! `InputProcessor`: rows as tensors, in nested lists.

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result};

use crate::data::Row;
use crate::objects::Arguments;

/// The columns that become tensors, and what stands where a row has nothing.
const FIELDS: &[(&str, i64)] = &[
    ("input_ids", 0),
    ("attention_mask", 0),
    ("position_ids", -1),
    ("labels", -100),
    ("completion_mask", 0),
    ("mm_token_type_ids", 0),
];

/// Columns of other media, which this server cannot put together.
const OF_MEDIA: &[&str] = &[
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "input_features",
    "feature_attention_mask",
];

/// Makes tensors of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputProcessor {
    pads_left: bool,
    padding_free: bool,
}

impl InputProcessor {
    /// Reads its settings from the arguments of a request.
    pub fn read(given: &mut Arguments) -> Result<Self> {
        let padding_free = given.flag("padding_free")?.unwrap_or(false);
        let pads_left = match given.text("padding_side")?.as_deref() {
            None | Some("right") => false,
            Some("left") => true,
            Some(other) => {
                return Err(Error::invalid(format!("`padding_side` is `{other}`")).hint("`left` or `right`"));
            }
        };
        match given.text("framework")?.as_deref() {
            None | Some("transformers") => {}
            Some(other) => {
                return Err(Error::unsupported(format!("batches for `{other}` are not made here"))
                    .hint("leave `framework` out: this server's models need no other form"));
            }
        }
        given.without_effect(&["device_mesh", "remote_group"]);
        Ok(Self { pads_left, padding_free })
    }

    /// The tensors of rows: `[rows, longest]` each, padded, or `[1, sum]` without padding.
    pub fn collate(&self, rows: &[Row]) -> Result<Map<String, Value>> {
        let mut tensors = Map::new();
        if let Some(name) = OF_MEDIA.iter().find(|name| rows.iter().any(|row| is_there(row, name))) {
            return Err(Error::unsupported(format!(
                "the column `{name}` cannot be put into a batch: this server reads text"
            )));
        }
        let lengths = rows.iter().map(|row| row.need::<Vec<i64>>("input_ids").map(|tokens| tokens.len()));
        let lengths = lengths.collect::<Result<Vec<_>>>()?;
        let is_free = self.padding_free || rows.iter().any(is_packed);
        for (name, padding) in FIELDS {
            if !rows.iter().any(|row| is_there(row, name)) || (is_free && *name == "attention_mask" && rows.len() > 1) {
                continue;
            }
            let values = rows.iter().zip(&lengths).map(|(row, length)| {
                let values: Option<Numbers> = row.read(name)?;
                Ok(values.unwrap_or_else(|| Numbers::Row(vec![*padding; *length])))
            });
            let values = values.collect::<Result<Vec<_>>>()?;
            let longest = values.iter().map(Numbers::len).max().unwrap_or(0);
            let together = |rows: Vec<Vec<i64>>| {
                if is_free {
                    Value::from(vec![rows.concat()])
                } else {
                    rows.into_iter().map(|row| Value::from(self.padded(row, longest, *padding))).collect()
                }
            };
            let axes = values.iter().map(Numbers::axes).max().unwrap_or(0);
            let tensor = if axes == 0 {
                together(values.into_iter().map(|row| row.axis(0)).collect())
            } else {
                (0..axes).map(|axis| together(values.iter().cloned().map(|row| row.axis(axis)).collect())).collect()
            };
            tensors.insert((*name).to_owned(), tensor);
        }
        Ok(tensors)
    }

    fn padded(&self, mut row: Vec<i64>, longest: usize, padding: i64) -> Vec<i64> {
        if self.pads_left {
            let mut padded = vec![padding; longest.saturating_sub(row.len())];
            padded.append(&mut row);
            return padded;
        }
        row.resize(longest, padding);
        row
    }
}

/// One number a token, or several, axis by axis.
#[derive(Clone, serde::Deserialize)]
#[serde(untagged)]
enum Numbers {
    Row(Vec<i64>),
    Axes(Vec<Vec<i64>>),
}

impl Numbers {
    fn len(&self) -> usize {
        match self {
            Self::Row(row) => row.len(),
            Self::Axes(axes) => axes.iter().map(Vec::len).max().unwrap_or(0),
        }
    }

    /// 0 where there is one number a token.
    fn axes(&self) -> usize {
        match self {
            Self::Row(_) => 0,
            Self::Axes(axes) => axes.len(),
        }
    }

    /// The numbers of an axis; a plain row's are the same in all.
    fn axis(self, axis: usize) -> Vec<i64> {
        match self {
            Self::Row(row) => row,
            Self::Axes(mut rows) => {
                if axis < rows.len() {
                    rows.swap_remove(axis)
                } else {
                    Vec::new()
                }
            }
        }
    }
}

fn is_there(row: &Row, name: &str) -> bool {
    row.get(name).is_some_and(|value| value.get() != "null")
}

/// Whether a row is several sequences: its positions begin again.
fn is_packed(row: &Row) -> bool {
    let positions = row.read::<Numbers>("position_ids").ok().flatten().map(|positions| positions.axis(0));
    let count = |number| positions.iter().flatten().filter(|position| **position == number).count();
    count(0) > 1 && count(1) > 1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn collated(settings: Value, rows: &[Value]) -> Result<Value> {
        let Value::Object(settings) = settings else { panic!("an object") };
        let mut given = Arguments::new("`InputProcessor`", settings);
        let processor = InputProcessor::read(&mut given)?;
        given.finish()?;
        let rows: Vec<Row> = rows.iter().map(|row| Row::parse(&row.to_string()).unwrap()).collect();
        processor.collate(&rows).map(Value::Object)
    }

    fn rows() -> [Value; 2] {
        [
            json!({"input_ids": [1, 2, 3], "labels": [2, 3, -100], "position_ids": [0, 1, 2], "attention_mask": [1, 1, 1], "length": 3}),
            json!({"input_ids": [4], "labels": [-100], "position_ids": [0], "completion_mask": [1], "messages": []}),
        ]
    }

    #[test]
    fn rows_are_padded_to_the_longest() {
        let expected = json!({
            "input_ids": [[1, 2, 3], [4, 0, 0]], "attention_mask": [[1, 1, 1], [0, 0, 0]],
            "position_ids": [[0, 1, 2], [0, -1, -1]], "labels": [[2, 3, -100], [-100, -100, -100]],
            "completion_mask": [[0, 0, 0], [1, 0, 0]]
        });
        assert_eq!(collated(json!({}), &rows()).unwrap(), expected);
        let left = collated(json!({"padding_side": "left"}), &rows()).unwrap();
        assert_eq!(left["labels"], json!([[2, 3, -100], [-100, -100, -100]]));
        assert_eq!(left["input_ids"], json!([[1, 2, 3], [0, 0, 4]]));
    }

    #[test]
    fn without_padding_rows_follow_one_another() {
        let free = collated(json!({"padding_free": true}), &rows()).unwrap();
        assert_eq!(free["input_ids"], json!([[1, 2, 3, 4]]));
        assert_eq!(free.get("attention_mask"), None);
        let packed = json!({"input_ids": [1, 2, 3, 4], "position_ids": [0, 1, 0, 1]});
        assert_eq!(
            collated(json!({}), &[packed.clone(), packed]).unwrap()["input_ids"],
            json!([[1, 2, 3, 4, 1, 2, 3, 4]])
        );
    }

    #[test]
    fn positions_with_several_axes_keep_them() {
        let rows = [
            json!({"input_ids": [1, 2], "position_ids": [[0, 1], [0, 0]]}),
            json!({"input_ids": [1], "position_ids": [[0], [5]]}),
        ];
        let tensors = collated(json!({}), &rows).unwrap();
        assert_eq!(tensors["position_ids"], json!([[[0, 1], [0, -1]], [[0, 0], [5, -1]]]));
    }

    #[test]
    fn what_cannot_be_put_together_is_told() {
        assert!(collated(json!({"framework": "megatron"}), &[]).is_err());
        assert!(collated(json!({"padding_side": "top"}), &[]).is_err());
        let error = collated(json!({}), &[json!({"input_ids": [1], "pixel_values": [[0.5]]})]).unwrap_err();
        assert!(error.message.contains("`pixel_values`"));
        assert!(collated(json!({}), &[json!({"messages": []})]).unwrap_err().message.contains("`input_ids`"));
    }
}
