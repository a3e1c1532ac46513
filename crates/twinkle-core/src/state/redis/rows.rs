//! A row as Redis holds it: `MessagePack` with column names, so that columns can be added later.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Column as _, Row as _, TypeInfo as _, ValueRef as _};

use super::super::codec::{from_blob, to_blob};
use super::super::failure::Failure;
use crate::error::Result;

/// The cells of a row by column.
pub(super) type Cells = BTreeMap<String, Cell>;

/// One value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Cell {
    #[serde(rename = "n")]
    Null,
    #[serde(rename = "i")]
    Integer(i64),
    #[serde(rename = "t")]
    Text(String),
    #[serde(rename = "b", with = "serde_bytes")]
    Bytes(Vec<u8>),
}

/// The row's bytes.
pub(super) fn encode(cells: &Cells) -> Result<Vec<u8>> {
    to_blob(cells)
}

/// The inverse of [`encode`].
pub(super) fn decode(bytes: &[u8]) -> Result<Cells> {
    from_blob(bytes)
}

/// The cells of a row, from column `first` on.
pub(super) fn read(row: &SqliteRow, first: usize) -> Result<Cells, Failure> {
    let mut cells = Cells::new();
    for (index, column) in row.columns().iter().enumerate().skip(first) {
        cells.insert(column.name().to_owned(), cell(row, index)?);
    }
    Ok(cells)
}

/// One cell of a row.
pub(super) fn cell(row: &SqliteRow, index: usize) -> Result<Cell, Failure> {
    let value = row.try_get_raw(index)?;
    if value.is_null() {
        return Ok(Cell::Null);
    }
    Ok(match value.type_info().name() {
        "INTEGER" => Cell::Integer(row.try_get_unchecked(index)?),
        "TEXT" => Cell::Text(row.try_get_unchecked(index)?),
        _ => Cell::Bytes(row.try_get_unchecked(index)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_look_like_text_stay_bytes() {
        let cells = Cells::from([
            ("a".to_owned(), Cell::Bytes(b"plain".to_vec())),
            ("b".to_owned(), Cell::Text("plain".to_owned())),
            ("c".to_owned(), Cell::Null),
            ("d".to_owned(), Cell::Integer(i64::MIN)),
        ]);
        assert_eq!(decode(&encode(&cells).unwrap()).unwrap(), cells);
    }
}
