//! Rows in memory.

use std::sync::Arc;

use twinkle_core::error::{Error, ErrorCode, Result};

use super::room::{Reservation, Room};
use super::row::Row;

/// The most rows of a table.
const MOST_ROWS: usize = 20_000_000;
/// What a row takes besides its text.
const ROW_OVERHEAD: u64 = 32;

/// Rows in memory, as text: compact, and of a known size. Rows are shared by the tables that are made of it.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Arc<str>>,
    reservation: Reservation,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn empty(room: &Arc<Room>) -> Self {
        Self { rows: Vec::new(), reservation: room.reserve() }
    }

    /// Reads rows to their end. Columns that some rows lack are null there.
    pub fn collect(room: &Arc<Room>, rows: impl Iterator<Item = Result<Row>>) -> Result<Self> {
        let mut table = Self::empty(room);
        let mut columns: Vec<String> = Vec::new();
        let mut is_ragged = false;
        for row in rows {
            let row = row?;
            let known = columns.len();
            for name in row.names() {
                if !columns.iter().any(|column| column == name) {
                    columns.push(name.to_owned());
                }
            }
            is_ragged |= !table.rows.is_empty() && columns.len() > known || row.names().count() < columns.len();
            table.push(&row)?;
        }
        if is_ragged {
            table.complete(&columns)?;
        }
        Ok(table)
    }

    /// Adds a row.
    pub fn push(&mut self, row: &Row) -> Result<()> {
        self.push_text(row.to_text()?.into())
    }

    /// Adds a row that is a text already.
    pub fn push_text(&mut self, text: Arc<str>) -> Result<()> {
        if self.rows.len() >= MOST_ROWS {
            return Err(Error::new(ErrorCode::TooLarge, format!("a data set has more than {MOST_ROWS} rows"))
                .hint("read it with `IterableDataset`"));
        }
        self.reservation.grow(text.len() as u64 + ROW_OVERHEAD)?;
        self.rows.push(text);
        Ok(())
    }

    /// Adds the rows of another table of the same room.
    pub fn append(&mut self, other: Self) {
        self.rows.extend(other.rows);
        self.reservation.join(other.reservation);
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows.
    #[must_use]
    pub fn rows(&self) -> &[Arc<str>] {
        &self.rows
    }

    /// The text of a row.
    #[must_use]
    pub fn text(&self, index: usize) -> Option<&Arc<str>> {
        self.rows.get(index)
    }

    /// The room its rows take.
    #[must_use]
    pub fn room(&self) -> &Arc<Room> {
        self.reservation.room()
    }

    /// The rows with these indexes, in this order.
    pub fn select(&self, indexes: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut table = Self::empty(self.room());
        for index in indexes {
            let row = self.rows.get(index).ok_or_else(|| out_of_range(index as i64, self.len()))?;
            table.push_text(Arc::clone(row))?;
        }
        Ok(table)
    }

    /// Gives every row every column.
    fn complete(&mut self, columns: &[String]) -> Result<()> {
        let mut table = Self::empty(self.room());
        for text in &self.rows {
            let row = Row::parse(text)?;
            let mut completed = Row::default();
            for column in columns {
                match row.get(column) {
                    Some(value) => completed.set_raw(column.clone(), value.to_owned()),
                    None => completed.set(column, &())?,
                }
            }
            table.push(&completed)?;
        }
        *self = table;
        Ok(())
    }

    /// The columns of its rows in the order in which they first appear.
    pub fn columns(&self) -> Result<Vec<String>> {
        let mut columns: Vec<String> = Vec::new();
        for text in &self.rows {
            for name in Row::parse(text)?.names() {
                if !columns.iter().any(|column| column == name) {
                    columns.push(name.to_owned());
                }
            }
        }
        Ok(columns)
    }

    /// The same rows, each with every column.
    pub fn completed(mut self) -> Result<Self> {
        let columns = self.columns()?;
        self.complete(&columns)?;
        Ok(self)
    }
}

/// What is answered for an index that leads nowhere.
pub(crate) fn out_of_range(index: i64, length: usize) -> Error {
    Error::invalid(format!("there is no row {index}: the data set has {length} rows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[&str]) -> Vec<Result<Row>> {
        texts.iter().map(|text| Row::parse(text)).collect()
    }

    #[test]
    fn columns_that_some_rows_lack_are_null_there() {
        let room = Room::new(1 << 20);
        let table = Table::collect(&room, rows(&[r#"{"a":1}"#, r#"{"b":2,"a":3}"#, r#"{"b":4}"#]).into_iter()).unwrap();
        let texts: Vec<&str> = table.rows().iter().map(|row| &**row).collect();
        assert_eq!(texts, [r#"{"a":1,"b":null}"#, r#"{"a":3,"b":2}"#, r#"{"a":null,"b":4}"#]);
        assert_eq!(table.columns().unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_table_larger_than_its_room_is_refused_and_takes_nothing() {
        let room = Room::new(60);
        let error = Table::collect(&room, rows(&[r#"{"a":1}"#, r#"{"a":2}"#]).into_iter()).unwrap_err();
        assert_eq!(error.code, ErrorCode::TooLarge);
        assert_eq!(room.used(), 0);
    }

    #[test]
    fn a_selection_repeats_and_refuses_what_is_not_there() {
        let room = Room::new(1 << 20);
        let table = Table::collect(&room, rows(&[r#"{"a":1}"#, r#"{"a":2}"#]).into_iter()).unwrap();
        assert_eq!(table.select([1, 1, 0]).unwrap().len(), 3);
        assert_eq!(table.select([2]).unwrap_err().message, "there is no row 2: the data set has 2 rows");
    }
}
