//! Which rows are wanted: `DatasetMeta` of the protocol.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use twinkle_core::error::{Error, ErrorCode, Result};

use super::row::{Row, raw};
use super::table::Table;
use crate::objects::Arguments;

/// The most indexes of a slice.
const MOST_INDEXES: usize = 20_000_000;

/// Which rows are wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetMeta {
    /// A file, a folder, or an id of a hub, perhaps with `ms://` or `hf://`; empty when the rows came along.
    pub id: String,
    /// The subset, also called configuration.
    pub subset: String,
    /// The split: `train`, `test`, …
    pub split: String,
    /// Which of the rows, by number.
    pub slice: Option<DataSlice>,
    /// Rows that came with the request.
    pub rows: Option<Vec<Value>>,
}

/// Rows by number; numbers past the end begin again at the first row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSlice {
    /// Python's `range`.
    Range {
        /// The first number.
        start: i64,
        /// The number before which it ends.
        stop: i64,
        /// From one number to the next; not 0.
        step: i64,
    },
    /// These numbers.
    List(Vec<i64>),
}

impl DatasetMeta {
    /// Reads the object of a request; fields of later versions are left aside, as the original does.
    pub fn read(mut values: Map<String, Value>) -> Result<Self> {
        values.retain(|name, _| ["dataset_id", "subset_name", "split", "data_slice", "data"].contains(&name.as_str()));
        let mut given = Arguments::new("`DatasetMeta`", values);
        let meta = Self {
            id: given.text("dataset_id")?.unwrap_or_default(),
            subset: given.text("subset_name")?.unwrap_or_else(|| "default".to_owned()),
            split: given.text("split")?.unwrap_or_else(|| "train".to_owned()),
            slice: given.take("data_slice").map(|slice| DataSlice::read(&slice)).transpose()?,
            rows: given.take("data").map(rows_of).transpose()?,
        };
        if meta.id.is_empty() && meta.rows.is_none() {
            return Err(Error::invalid("`DatasetMeta` names neither a `dataset_id` nor `data`"));
        }
        Ok(meta)
    }

    /// The name under which a data set with several parts knows this one: its id or content, subset and split.
    #[must_use]
    pub fn key(&self) -> String {
        let what = match &self.rows {
            Some(rows) => hex::encode(Sha256::digest(Value::from(rows.clone()).to_string().as_bytes())),
            None => self.id.clone(),
        };
        [what.as_str(), &self.subset, &self.split].join("\n")
    }
}

impl DataSlice {
    fn read(value: &Value) -> Result<Self> {
        let wrong = || {
            Error::invalid("`data_slice` is neither a range nor a list of numbers").hint(
                r#"write `range(0, 100)` in Python, or {"_slice_type_": "range", "start": 0, "stop": 100, "step": 1}"#,
            )
        };
        let numbers = |list: &Value| list.as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>();
        let slice = match value.get("_slice_type_").and_then(Value::as_str) {
            Some("range") => {
                let number = |name: &str| value.get(name).and_then(Value::as_i64);
                let (start, stop) = (number("start").ok_or_else(wrong)?, number("stop").ok_or_else(wrong)?);
                Self::Range { start, stop, step: number("step").unwrap_or(1) }
            }
            Some("list") => Self::List(value.get("values").and_then(numbers).ok_or_else(wrong)?),
            Some(_) => return Err(wrong()),
            None => Self::List(numbers(value).ok_or_else(wrong)?),
        };
        match &slice {
            Self::Range { step: 0, .. } => Err(Error::invalid("the step of `data_slice` is 0")),
            slice if slice.count() > MOST_INDEXES => {
                let text = format!("`data_slice` has {} numbers, more than {MOST_INDEXES}", slice.count());
                Err(Error::new(ErrorCode::TooLarge, text))
            }
            _ => Ok(slice),
        }
    }

    /// How many numbers it has.
    fn count(&self) -> usize {
        match self {
            Self::List(numbers) => numbers.len(),
            Self::Range { start, stop, step } => {
                let (first, end, stride) = (i128::from(*start), i128::from(*stop), i128::from(*step));
                let distance = if stride > 0 { end - first } else { first - end };
                let count = (distance.max(0) + stride.abs() - 1) / stride.abs();
                usize::try_from(count).unwrap_or(usize::MAX)
            }
        }
    }

    /// The indexes into so many rows: numbers past the end begin again at the first row.
    pub fn indexes(&self, length: usize) -> Result<Vec<usize>> {
        let index = |number: i64| {
            let number = usize::try_from(number)
                .map_err(|_| Error::invalid(format!("`data_slice` has the number {number}, which is below 0")))?;
            number.checked_rem(length).ok_or_else(|| Error::invalid("`data_slice` takes rows of an empty data set"))
        };
        match self {
            Self::List(numbers) => numbers.iter().map(|number| index(*number)).collect(),
            Self::Range { start, step, .. } => {
                (0..self.count() as i64).map(|turn| index(start + turn * step)).collect()
            }
        }
    }

    /// Whether a stream's row has a place in it; `None` when a stream cannot follow it.
    #[must_use]
    pub fn of_stream(&self) -> Option<(usize, usize, usize)> {
        let Self::Range { start, stop, step } = self else { return None };
        Some((usize::try_from(*start).ok()?, usize::try_from((*stop).max(0)).ok()?, usize::try_from(*step).ok()?))
    }

    /// The rows of a table that it takes.
    pub fn of_table(&self, table: &Table) -> Result<Table> {
        table.select(self.indexes(table.len())?)
    }
}

/// Rows as a list of objects, or as an object with a list a column.
fn rows_of(value: Value) -> Result<Vec<Value>> {
    let wrong = || Error::invalid("`data` is neither a list of rows nor an object with a list of values per column");
    let columns = match crate::objects::decoded(value) {
        Value::Array(rows) if rows.iter().all(Value::is_object) => return Ok(rows),
        Value::Object(columns) => columns,
        _ => return Err(wrong()),
    };
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    for (number, (name, values)) in columns.into_iter().enumerate() {
        let Value::Array(values) = values else { return Err(wrong()) };
        if number == 0 {
            rows.resize_with(values.len(), Map::new);
        }
        if values.len() != rows.len() {
            return Err(Error::invalid(format!("the column `{name}` of `data` has another number of values")));
        }
        for (row, value) in rows.iter_mut().zip(values) {
            row.insert(name.clone(), value);
        }
    }
    Ok(rows.into_iter().map(Value::Object).collect())
}

/// A row that came with a request.
pub(crate) fn row_of(value: &Value) -> Result<Row> {
    let Value::Object(columns) = value else { return Err(Error::invalid("a row is not an object")) };
    let mut row = Row::default();
    for (name, value) in columns {
        row.set_raw(name.clone(), raw(value)?);
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<DatasetMeta> {
        let Value::Object(values) = value else { panic!("an object") };
        DatasetMeta::read(values)
    }

    #[test]
    fn what_the_client_sends_is_understood_and_the_rest_has_defaults() {
        let meta = read(json!({
            "dataset_id": "ms://swift/self-cognition", "subset_name": "default", "split": "train", "data": null,
            "data_slice": {"_slice_type_": "range", "start": 0, "stop": 500, "step": 1}, "_TWINKLE_TYPE_": "DatasetMeta"
        }));
        let slice = Some(DataSlice::Range { start: 0, stop: 500, step: 1 });
        let expected = DatasetMeta {
            id: "ms://swift/self-cognition".into(),
            subset: "default".into(),
            split: "train".into(),
            slice,
            rows: None,
        };
        assert_eq!(meta, Ok(expected));
        assert!(read(json!({"split": "test"})).is_err());
    }

    #[test]
    fn numbers_past_the_end_begin_again() {
        let slice = |value: Value| DataSlice::read(&value).and_then(|slice| slice.indexes(3));
        assert_eq!(slice(json!([0, 3, 5])), Ok(vec![0, 0, 2]));
        assert_eq!(slice(json!({"_slice_type_": "range", "start": 1, "stop": 6, "step": 2})), Ok(vec![1, 0, 2]));
        assert_eq!(slice(json!({"_slice_type_": "range", "start": 5, "stop": 1, "step": -2})), Ok(vec![2, 0]));
        assert_eq!(slice(json!({"_slice_type_": "range", "start": 5, "stop": 1, "step": 2})), Ok(vec![]));
        assert!(slice(json!([-1])).unwrap_err().message.contains("below 0"));
        assert!(slice(json!("all")).is_err());
        assert!(slice(json!({"_slice_type_": "range", "start": 0, "stop": 6, "step": 0})).is_err());
        let endless = json!({"_slice_type_": "range", "start": i64::MIN, "stop": i64::MAX, "step": 1});
        assert_eq!(slice(endless).unwrap_err().code, ErrorCode::TooLarge);
        assert!(DataSlice::List(vec![0]).indexes(0).is_err());
    }

    #[test]
    fn rows_come_along_by_row_or_by_column_and_equal_ones_have_one_key() {
        let by_row = read(json!({"data": [{"a": 1}, {"a": 2}]})).unwrap();
        let by_column = read(json!({"data": {"a": [1, 2]}})).unwrap();
        assert_eq!(by_row, by_column);
        assert_eq!(by_row.key(), by_column.key());
        assert!(read(json!({"data": {"a": [1, 2], "b": [1]}})).is_err());
        assert!(read(json!({"data": [1]})).is_err());
    }
}
