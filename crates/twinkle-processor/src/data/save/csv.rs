//! Rows as comma-separated values.

use std::fs::File;

use csv::Writer;
use serde_json::Value;
use twinkle_core::error::{Error, Result};

use crate::data::row::Row;

/// Writes all rows below a line with the names of all columns. `rows` is called twice.
pub(super) fn write<I>(file: &File, rows: impl Fn() -> Result<I>) -> Result<()>
where
    I: Iterator<Item = Result<Row>>,
{
    let failed = |error: csv::Error| Error::internal(format!("the table cannot be written: {error}"));
    let mut columns: Vec<String> = Vec::new();
    for row in rows()? {
        for name in row?.names() {
            if !columns.iter().any(|column| column == name) {
                columns.push(name.to_owned());
            }
        }
    }
    let mut writer = Writer::from_writer(file);
    if !columns.is_empty() {
        writer.write_record(&columns).map_err(failed)?;
    }
    for row in rows()? {
        let row = row?;
        let cells = columns.iter().map(|column| row.read::<Value>(column).map(|value| cell(value.as_ref())));
        writer.write_record(cells.collect::<Result<Vec<_>>>()?).map_err(failed)?;
    }
    writer.flush().map_err(|error| super::failed(&error))
}

/// A value as Python's tools write it; lists and objects as JSON.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::Bool(true)) => "True".to_owned(),
        Some(Value::Bool(false)) => "False".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
