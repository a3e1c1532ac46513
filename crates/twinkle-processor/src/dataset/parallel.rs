//! Doing something to all rows of a table with several threads.

use std::sync::Arc;
use std::thread;

use tokio::sync::{Semaphore, SemaphorePermit};
use twinkle_core::error::{Error, Result};

use super::operation::Operation;
use crate::data::{Row, Table};

/// Rows that one thread takes at a time, at least.
const FEWEST: usize = 16;

/// The rows that come of all rows of a table, in order. Blocking.
///
/// An error names the row and leaves the table as it was.
pub(super) fn apply(table: &Table, operation: &Operation, workers: &Semaphore) -> Result<Table> {
    let helpers = helpers(workers, table.len() / FEWEST);
    let share = table.len().div_ceil(helpers.len() + 1).max(FEWEST);
    let parts: Vec<(usize, &[Arc<str>])> =
        table.rows().chunks(share).enumerate().map(|(number, rows)| (number * share, rows)).collect();
    let work = |(first, rows): (usize, &[Arc<str>])| {
        let mut made = Table::empty(table.room());
        for (offset, text) in rows.iter().enumerate() {
            let of_row =
                |error: Error| Error { message: format!("row {}: {}", first + offset, error.message), ..error };
            for row in Row::parse(text).and_then(|row| operation.apply(row)).map_err(of_row)? {
                made.push(&row)?;
            }
        }
        Ok(made)
    };
    let made: Vec<Result<Table>> = match parts.as_slice() {
        [only] => vec![work(*only)],
        several => thread::scope(|scope| {
            let threads: Vec<_> = several.iter().map(|part| scope.spawn(|| work(*part))).collect();
            let broken = |_| Err(Error::internal("a thread that worked on rows failed"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(broken)).collect()
        }),
    };
    let mut whole = Table::empty(table.room());
    for part in made {
        whole.append(part?);
    }
    Ok(whole)
}

/// Threads beside the caller's: at most `most`, and one is left for others.
fn helpers(workers: &Semaphore, most: usize) -> Vec<SemaphorePermit<'_>> {
    let mut helpers = Vec::new();
    while helpers.len() < most && workers.available_permits() > 1 {
        match workers.try_acquire() {
            Ok(helper) => helpers.push(helper),
            Err(_) => break,
        }
    }
    helpers
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::data::Room;
    use crate::preprocess::{filter, preprocessor};

    fn numbers(count: usize) -> Table {
        let rows = (0..count).map(|number| Row::parse(&json!({"n": number, "output": "x"}).to_string()));
        Table::collect(&Room::new(1 << 20), rows).unwrap()
    }

    #[test]
    fn rows_stay_in_order_whatever_the_number_of_threads() {
        let table = numbers(100);
        let operation = Operation::Map(preprocessor("AlpacaProcessor", Map::new()).unwrap().into(), Arc::from([]));
        let alone = apply(&table, &operation, &Semaphore::new(0)).unwrap();
        let shared = apply(&table, &operation, &Semaphore::new(3)).unwrap();
        assert_eq!(alone.rows(), shared.rows());
        assert_eq!(alone.len(), 100);
        assert!(alone.rows()[99].starts_with(r#"{"n":99,"#));
    }

    #[test]
    fn an_error_names_the_row() {
        let operation = Operation::Map(preprocessor("GSM8KProcessor", Map::new()).unwrap().into(), Arc::from([]));
        let error = apply(&numbers(40), &operation, &Semaphore::new(2)).unwrap_err();
        assert_eq!(error.message, "row 0: a row has no value in the column `question`");
    }

    #[test]
    fn a_filter_drops_rows() {
        let init_args = json!({"columns": ["missing"]}).as_object().cloned().unwrap();
        let operation = Operation::Filter(filter("NotEmptyFilter", init_args).unwrap().into());
        assert!(apply(&numbers(3), &operation, &Semaphore::new(0)).unwrap().is_empty());
    }
}
