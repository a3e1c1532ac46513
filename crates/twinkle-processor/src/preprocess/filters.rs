//! What `filter` takes by name. The original has no filter that can be named; these two are this server's own.

use std::fmt;

use serde_json::value::RawValue;
use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result};

use super::class_of;
use crate::data::Row;
use crate::objects::Arguments;

/// Says which rows stay.
pub trait Filter: Send + Sync + fmt::Debug {
    /// Whether the row stays.
    fn keeps(&self, row: &Row) -> Result<bool>;
}

const NAMES: &[&str] = &["LengthFilter", "NotEmptyFilter"];

/// The filter of this name, made with these arguments.
pub fn filter(name: &str, init_args: Map<String, Value>) -> Result<Box<dyn Filter>> {
    let class = class_of(name, "filters", NAMES)?;
    let mut given = Arguments::new(format!("`{class}`"), init_args);
    let made: Box<dyn Filter> = match class {
        "LengthFilter" => Box::new(Length {
            column: given.text("column")?.unwrap_or_else(|| "input_ids".to_owned()),
            least: given.integer("min_length", 0..=i64::MAX)?.unwrap_or(0) as usize,
            most: given.integer("max_length", 0..=i64::MAX)?.map_or(usize::MAX, |most| most as usize),
        }),
        _ => Box::new(NotEmpty { columns: given.texts("columns")?.unwrap_or_default() }),
    };
    given.finish()?;
    Ok(made)
}

/// Rows whose list or text in a column has so many elements or letters.
#[derive(Debug)]
struct Length {
    column: String,
    least: usize,
    most: usize,
}

impl Filter for Length {
    fn keeps(&self, row: &Row) -> Result<bool> {
        let length = match row.read::<Value>(&self.column)? {
            None => 0,
            Some(Value::Array(list)) => list.len(),
            Some(Value::String(text)) => text.chars().count(),
            Some(_) => return Err(Error::invalid(format!("the column `{}` has no length", self.column))),
        };
        Ok((self.least..=self.most).contains(&length))
    }
}

/// Rows with something in these columns, or in all.
#[derive(Debug)]
struct NotEmpty {
    columns: Vec<String>,
}

impl Filter for NotEmpty {
    fn keeps(&self, row: &Row) -> Result<bool> {
        let is_empty = |value: Option<&RawValue>| {
            value.is_none_or(|value| matches!(value.get().trim(), "null" | "\"\"" | "[]" | "{}"))
        };
        if self.columns.is_empty() {
            return Ok(!row.columns().any(|(_, value)| is_empty(Some(value))));
        }
        Ok(!self.columns.iter().any(|column| is_empty(row.get(column))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn keeps(name: &str, init_args: Value, row: &Value) -> Result<bool> {
        let Value::Object(init_args) = init_args else { panic!("an object") };
        filter(name, init_args)?.keeps(&Row::parse(&row.to_string())?)
    }

    #[test]
    fn rows_stay_by_their_length() {
        let row = json!({"input_ids": [1, 2, 3], "text": "üü", "n": 1});
        assert_eq!(keeps("LengthFilter", json!({"max_length": 3}), &row), Ok(true));
        assert_eq!(keeps("LengthFilter", json!({"max_length": 2}), &row), Ok(false));
        assert_eq!(keeps("LengthFilter", json!({"min_length": 2, "column": "text"}), &row), Ok(true));
        assert_eq!(keeps("LengthFilter", json!({"min_length": 1, "column": "none"}), &row), Ok(false));
        assert!(keeps("LengthFilter", json!({"column": "n"}), &row).is_err());
    }

    #[test]
    fn rows_stay_by_what_they_hold() {
        let row = json!({"a": "x", "b": "", "c": null});
        assert_eq!(keeps("NotEmptyFilter", json!({"columns": "a"}), &row), Ok(true));
        assert_eq!(keeps("NotEmptyFilter", json!({"columns": ["a", "b"]}), &row), Ok(false));
        assert_eq!(keeps("NotEmptyFilter", json!({}), &row), Ok(false));
        assert!(
            keeps("NotEmptyFiter", json!({}), &row).unwrap_err().to_string().contains("did you mean `NotEmptyFilter`?")
        );
    }
}
