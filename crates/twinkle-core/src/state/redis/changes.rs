//! Which rows of the working copy a transaction changed.
//!
//! Every table has a temporary companion that holds the keys of changed rows; temporary triggers fill it. The tables
//! are read from the working copy itself, so a new one needs nothing here.

use std::fmt::Write as _;

use serde_json::json;
use sqlx::{AssertSqlSafe, Row as _};

use super::super::connection::Connection;
use super::super::failure::Failure;
use super::rows::{self, Cell, Cells};
use super::sqlite;
use crate::error::{Error, Result};

/// Rows that are read at once when everything is written again.
const PAGE: usize = 500;

/// The tables of the working copy.
pub(super) struct Tables {
    pub(super) all: Vec<Table>,
    /// The version of the schema.
    pub(super) version: i64,
}

/// A table with its columns and those of its key.
pub(super) struct Table {
    pub(super) name: String,
    columns: Vec<String>,
    key: Vec<String>,
}

/// What became of a row.
pub(super) struct Change {
    /// Where its table stands among all.
    pub(super) table: usize,
    /// Its key, readable.
    pub(super) field: String,
    /// Its bytes; `None` when it is gone.
    pub(super) row: Option<Vec<u8>>,
}

impl Tables {
    /// Reads them from the working copy.
    pub(super) async fn of(connection: &mut Connection) -> Result<Self, Failure> {
        let connection = sqlite(connection)?;
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
             AND name NOT LIKE '\\_%' ESCAPE '\\' ORDER BY name",
        )
        .fetch_all(&mut *connection)
        .await?;
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            let columns = sqlx::query("SELECT name, pk FROM pragma_table_info($1) ORDER BY cid")
                .bind(&name)
                .fetch_all(&mut *connection)
                .await?;
            let mut table = Table { name, columns: Vec::new(), key: Vec::new() };
            let mut key = Vec::new();
            for column in &columns {
                let (column, place): (String, i64) = (column.try_get("name")?, column.try_get("pk")?);
                if place > 0 {
                    key.push((place, column.clone()));
                }
                table.columns.push(column);
            }
            key.sort();
            table.key = key.into_iter().map(|(_, column)| column).collect();
            all.push(table);
        }
        let version = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations").fetch_one(connection).await?;
        Ok(Self { all, version })
    }

    /// Begins to note changes.
    pub(super) async fn watch(&self, connection: &mut Connection) -> Result<(), Failure> {
        let connection = sqlite(connection)?;
        for table in &self.all {
            sqlx::raw_sql(AssertSqlSafe(table.triggers())).execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// The rows that the open transaction changed, and nothing about them afterwards.
    pub(super) async fn changed(&self, connection: &mut Connection) -> Result<Vec<Change>, Failure> {
        let connection = sqlite(connection)?;
        let mut changes = Vec::new();
        for (index, table) in self.all.iter().enumerate() {
            let found = sqlx::query(AssertSqlSafe(table.changed_rows())).fetch_all(&mut *connection).await?;
            if found.is_empty() {
                continue;
            }
            for row in &found {
                let mut key = Vec::with_capacity(table.key.len());
                for place in 0..table.key.len() {
                    key.push(rows::cell(row, place)?);
                }
                let exists = rows::cell(row, table.key.len())? != Cell::Null;
                let row = if exists { Some(rows::encode(&rows::read(row, table.key.len() + 1)?)?) } else { None };
                changes.push(Change { table: index, field: field(&key), row });
            }
            let forget = format!("DELETE FROM temp.changed_{}", table.name);
            sqlx::query(AssertSqlSafe(forget)).execute(&mut *connection).await?;
        }
        Ok(changes)
    }
}

impl Table {
    /// Puts a row that came from Redis into the working copy.
    pub(super) async fn insert(&self, connection: &mut Connection, row: &[u8]) -> Result<()> {
        let cells = rows::decode(row)?;
        if let Some(unknown) = cells.keys().find(|column| !self.columns.contains(column)) {
            let text = format!("column `{unknown}` of `{}` is unknown: a newer version wrote it", self.name);
            return Err(Error::invalid(text).hint("start that version, or use another `persistence.key_prefix`"));
        }
        self.insert_cells(connection, cells).await.map_err(Error::from)
    }

    /// A page of all rows with their keys.
    pub(super) async fn rows(
        &self,
        connection: &mut Connection,
        page: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let key = self.key.join(", ");
        let statement =
            format!("SELECT {key}, * FROM {} ORDER BY {key} LIMIT {PAGE} OFFSET {}", self.name, page * PAGE);
        let found = sqlx::query(AssertSqlSafe(statement)).fetch_all(sqlite(connection)?).await?;
        let mut all = Vec::with_capacity(found.len());
        for row in &found {
            let mut key = Vec::with_capacity(self.key.len());
            for place in 0..self.key.len() {
                key.push(rows::cell(row, place)?);
            }
            all.push((field(&key), rows::encode(&rows::read(row, self.key.len())?)?));
        }
        Ok(all)
    }

    async fn insert_cells(&self, connection: &mut Connection, cells: Cells) -> Result<(), Failure> {
        let columns = cells.keys().cloned().collect::<Vec<_>>().join(", ");
        let places = (1..=cells.len()).map(|place| format!("${place}")).collect::<Vec<_>>().join(", ");
        let statement = format!("INSERT OR REPLACE INTO {} ({columns}) VALUES ({places})", self.name);
        let mut statement = sqlx::query(AssertSqlSafe(statement));
        for cell in cells.into_values() {
            statement = match cell {
                Cell::Null => statement.bind(None::<i64>),
                Cell::Integer(integer) => statement.bind(integer),
                Cell::Text(text) => statement.bind(text),
                Cell::Bytes(bytes) => statement.bind(bytes),
            };
        }
        statement.execute(sqlite(connection)?).await?;
        Ok(())
    }

    fn triggers(&self) -> String {
        let (name, columns) = (&self.name, self.key.join(", "));
        let of = |row: &str| self.key.iter().map(|column| format!("{row}.{column}")).collect::<Vec<_>>().join(", ");
        let mut text = format!("CREATE TEMP TABLE changed_{name} ({columns});");
        for (event, rows) in [("INSERT", &["NEW"][..]), ("DELETE", &["OLD"]), ("UPDATE", &["OLD", "NEW"])] {
            let _ = write!(text, "CREATE TEMP TRIGGER {name}_{event} AFTER {event} ON main.{name} BEGIN ");
            for row in rows {
                let _ = write!(text, "INSERT INTO changed_{name} VALUES ({}); ", of(row));
            }
            text.push_str("END;");
        }
        text
    }

    /// The keys of changed rows, whether each row exists, and the row.
    fn changed_rows(&self) -> String {
        let (name, columns) = (&self.name, self.key.join(", "));
        let keys = self.key.iter().map(|column| format!("c.{column}")).collect::<Vec<_>>().join(", ");
        let same = self.key.iter().map(|column| format!("t.{column} = c.{column}")).collect::<Vec<_>>().join(" AND ");
        let first = self.key.first().map_or("rowid", String::as_str);
        format!(
            "SELECT {keys}, t.{first}, t.* FROM (SELECT DISTINCT {columns} FROM temp.changed_{name}) c
             LEFT JOIN main.{name} t ON {same}"
        )
    }
}

/// A key as the field of a hash.
fn field(key: &[Cell]) -> String {
    let parts: Vec<_> = key
        .iter()
        .map(|cell| match cell {
            Cell::Null => json!(null),
            Cell::Integer(integer) => json!(integer),
            Cell::Text(text) => json!(text),
            Cell::Bytes(bytes) => json!(hex::encode(bytes)),
        })
        .collect();
    json!(parts).to_string()
}
