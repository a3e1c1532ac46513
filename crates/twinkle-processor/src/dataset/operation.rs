//! What is done to rows: each takes one and gives any number.

use std::sync::Arc;

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result};

use crate::data::Row;
use crate::encode::Template;
use crate::preprocess::{Filter, Preprocess};

/// Columns that encoding makes and that are never dropped.
const PRODUCED: &[&str] = &["input_ids", "labels", "attention_mask", "position_ids", "length"];

/// Something that is done to every row; a cheap handle.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Adds columns, then drops some.
    Map(Arc<dyn Preprocess>, Arc<[String]>),
    /// Keeps some rows.
    Filter(Arc<dyn Filter>),
    /// Turns conversations into tokens; other columns stay.
    Encode {
        /// How.
        template: Template,
        /// Whether the tokens are a prompt to be continued.
        add_generation_prompt: bool,
        /// Columns to drop.
        remove_columns: Arc<[String]>,
    },
    /// Keeps the conversations that can be encoded.
    Check(Template),
}

impl Operation {
    /// The rows that come of a row. Blocking.
    pub fn apply(&self, row: Row) -> Result<Vec<Row>> {
        match self {
            Self::Map(preprocess, removed) => {
                let columns = preprocess.columns(&row)?;
                let kept: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
                let removed = removed.iter().filter(|name| !kept.contains(&name.as_str()));
                let mut row = without(row, removed);
                row.merge(columns);
                Ok(vec![row])
            }
            Self::Filter(filter) => Ok(if filter.keeps(&row)? { vec![row] } else { Vec::new() }),
            Self::Check(template) => {
                let passes = encode(template, &row, false).is_ok_and(|rows| !rows.is_empty());
                Ok(if passes { vec![row] } else { Vec::new() })
            }
            Self::Encode { template, add_generation_prompt, remove_columns } => {
                let encoded = encode(template, &row, *add_generation_prompt)?;
                let is_removed = |name: &String| remove_columns.contains(name) && !PRODUCED.contains(&name.as_str());
                let row = without(row, remove_columns.iter());
                let completed = encoded.into_iter().map(|fields| {
                    let mut row = row.clone();
                    for (name, value) in fields.iter().filter(|(name, _)| !is_removed(name)) {
                        row.set(name, value)?;
                    }
                    Ok(row)
                });
                completed.collect()
            }
        }
    }
}

fn without<'a>(mut row: Row, removed: impl Iterator<Item = &'a String>) -> Row {
    for name in removed {
        row.remove(name);
    }
    row
}

/// The tokens of a row's conversations; a row that has none but tokens stays as it is.
fn encode(template: &Template, row: &Row, add_generation_prompt: bool) -> Result<Vec<Map<String, Value>>> {
    let fields: Map<String, Value> = serde_json::from_str(&row.to_text()?)
        .map_err(|error| Error::invalid(format!("a row cannot be read: {error}")))?;
    if fields.contains_key("input_ids") && !fields.contains_key("messages") {
        return Ok(vec![fields]);
    }
    template.encode_row(fields, add_generation_prompt)
}
