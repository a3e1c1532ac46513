//! Statements that run alike on `SQLite` and on `PostgreSQL`.
//!
//! One text serves both: `$1` placeholders, row values and `ON CONFLICT`, truth as 0 and 1, and no function that only
//! one of them has. A column holds text, an integer or bytes. Each driver keeps its own prepared statements.

use std::borrow::Cow;

use futures::future::BoxFuture;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Executor as _, Postgres, Row as _, Sqlite, TypeInfo as _, ValueRef as _};

use super::connection::{Connection, Readers};
use super::failure::Failure;

/// A statement and the values of its placeholders.
pub(super) struct Query<'q> {
    text: &'static str,
    values: Vec<Value<'q>>,
}

/// What a placeholder stands for.
pub(super) enum Value<'q> {
    Text(Option<Cow<'q, str>>),
    Integer(Option<i64>),
    Bytes(Option<Cow<'q, [u8]>>),
}

/// Where a statement that only reads can run.
pub(super) enum Target<'c> {
    /// Inside the writing connection's transaction.
    Connection(&'c mut Connection),
    /// Beside it.
    Readers(&'c Readers),
}

/// A row of either database.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What a column can be read as.
pub(super) trait Column: Sized {
    fn from_sqlite(row: &SqliteRow, column: &str) -> sqlx::Result<Self>;
    fn from_postgres(row: &PgRow, column: &str) -> sqlx::Result<Self>;
}

/// A statement; [`Query::bind`] gives its placeholders their values, in order.
pub(super) fn query<'q>(text: &'static str) -> Query<'q> {
    Query { text, values: Vec::new() }
}

/// The statement for one driver.
macro_rules! prepared {
    ($database:ty, $query:expr) => {{
        let mut statement = sqlx::query::<$database>($query.text);
        for value in $query.values {
            statement = match value {
                Value::Text(text) => statement.bind(text.map(Cow::into_owned)),
                Value::Integer(integer) => statement.bind(integer),
                Value::Bytes(bytes) => statement.bind(bytes.map(Cow::into_owned)),
            };
        }
        statement
    }};
}

/// The rows of a statement. Its future is boxed where the lifetimes are known, or callers could not be.
macro_rules! rows {
    ($kind:ident, $executor:expr, $statement:expr) => {{
        let (executor, statement) = ($executor, $statement);
        Box::pin(async move { Ok(executor.fetch_all(statement).await?.into_iter().map(Row::$kind).collect()) })
    }};
}

/// The first row of a statement.
macro_rules! row {
    ($kind:ident, $executor:expr, $statement:expr) => {{
        let (executor, statement) = ($executor, $statement);
        Box::pin(async move { Ok(executor.fetch_optional(statement).await?.map(Row::$kind)) })
    }};
}

impl<'q> Query<'q> {
    /// Gives the next placeholder its value.
    pub(super) fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it and returns how many rows it changed.
    pub(super) fn execute(self, connection: &mut Connection) -> BoxFuture<'_, Result<u64, Failure>> {
        match connection {
            Connection::Sqlite(connection) => {
                let statement = prepared!(Sqlite, self);
                Box::pin(async move { Ok(connection.execute(statement).await?.rows_affected()) })
            }
            Connection::Postgres(connection) => {
                let statement = prepared!(Postgres, self);
                Box::pin(async move { Ok(connection.execute(statement).await?.rows_affected()) })
            }
        }
    }

    /// The rows it answers with.
    pub(super) fn fetch_all<'c>(self, target: impl Into<Target<'c>>) -> BoxFuture<'c, Result<Vec<Row>, Failure>> {
        match target.into() {
            Target::Connection(Connection::Sqlite(connection)) => rows!(Sqlite, connection, prepared!(Sqlite, self)),
            Target::Connection(Connection::Postgres(connection)) => {
                rows!(Postgres, connection, prepared!(Postgres, self))
            }
            Target::Readers(Readers::Sqlite(pool)) => rows!(Sqlite, pool, prepared!(Sqlite, self)),
            Target::Readers(Readers::Postgres(pool)) => rows!(Postgres, pool, prepared!(Postgres, self)),
        }
    }

    /// Its first row, if it answers with one.
    pub(super) fn fetch_optional<'c>(
        self,
        target: impl Into<Target<'c>>,
    ) -> BoxFuture<'c, Result<Option<Row>, Failure>> {
        match target.into() {
            Target::Connection(Connection::Sqlite(connection)) => row!(Sqlite, connection, prepared!(Sqlite, self)),
            Target::Connection(Connection::Postgres(connection)) => {
                row!(Postgres, connection, prepared!(Postgres, self))
            }
            Target::Readers(Readers::Sqlite(pool)) => row!(Sqlite, pool, prepared!(Sqlite, self)),
            Target::Readers(Readers::Postgres(pool)) => row!(Postgres, pool, prepared!(Postgres, self)),
        }
    }

    /// The value of that column in every row.
    pub(super) fn fetch_column<'c, T: Column + Send + 'c>(
        self,
        column: &'static str,
        target: impl Into<Target<'c>>,
    ) -> BoxFuture<'c, Result<Vec<T>, Failure>> {
        let rows = self.fetch_all(target);
        Box::pin(async move { rows.await?.iter().map(|row| row.get(column)).collect() })
    }

    /// The value of that column in the first row.
    pub(super) fn fetch_optional_value<'c, T: Column + Send + 'c>(
        self,
        column: &'static str,
        target: impl Into<Target<'c>>,
    ) -> BoxFuture<'c, Result<Option<T>, Failure>> {
        let row = self.fetch_optional(target);
        Box::pin(async move { row.await?.map(|row| row.get(column)).transpose() })
    }

    /// The value of that column in the only row of a statement that always has one.
    pub(super) fn fetch_value<'c, T: Column + Send + 'c>(
        self,
        column: &'static str,
        target: impl Into<Target<'c>>,
    ) -> BoxFuture<'c, Result<T, Failure>> {
        let value = self.fetch_optional_value(column, target);
        Box::pin(async move { value.await?.ok_or(Failure::Database(sqlx::Error::RowNotFound)) })
    }
}

impl Row {
    /// The value of a column; a type that does not fit is an error, because the database may be anybody's work.
    pub(super) fn get<T: Column>(&self, column: &str) -> Result<T, Failure> {
        Ok(match self {
            Self::Sqlite(row) => T::from_sqlite(row, column)?,
            Self::Postgres(row) => T::from_postgres(row, column)?,
        })
    }
}

// === impl Target ===

impl<'c> From<&'c mut Connection> for Target<'c> {
    fn from(connection: &'c mut Connection) -> Self {
        Self::Connection(connection)
    }
}

impl<'c> From<&'c Readers> for Target<'c> {
    fn from(readers: &'c Readers) -> Self {
        Self::Readers(readers)
    }
}

// === impl Column ===

macro_rules! columns {
    ($($type:ty),+) => {$(
        impl Column for $type {
            fn from_sqlite(row: &SqliteRow, column: &str) -> sqlx::Result<Self> {
                row.try_get(column)
            }

            fn from_postgres(row: &PgRow, column: &str) -> sqlx::Result<Self> {
                row.try_get(column)
            }
        }
    )+};
}
columns!(i64, Option<i64>, String, Option<String>, Vec<u8>, Option<Vec<u8>>);

/// Truth is 0 or 1 in a column, and a type of its own in what `PostgreSQL` computes.
impl Column for bool {
    fn from_sqlite(row: &SqliteRow, column: &str) -> sqlx::Result<Self> {
        Ok(row.try_get::<i64, _>(column)? != 0)
    }

    fn from_postgres(row: &PgRow, column: &str) -> sqlx::Result<Self> {
        if row.try_get_raw(column)?.type_info().name() == "BOOL" {
            return row.try_get(column);
        }
        Ok(row.try_get::<i64, _>(column)? != 0)
    }
}

// === impl Value ===

macro_rules! values {
    ($($from:ty => |$value:ident| $into:expr;)+) => {$(
        impl<'q> From<$from> for Value<'q> {
            fn from($value: $from) -> Self {
                $into
            }
        }
    )+};
}
values! {
    &'q str => |text| Self::Text(Some(Cow::Borrowed(text)));
    &'q String => |text| Self::Text(Some(Cow::Borrowed(text)));
    Option<&'q str> => |text| Self::Text(text.map(Cow::Borrowed));
    String => |text| Self::Text(Some(Cow::Owned(text)));
    i64 => |integer| Self::Integer(Some(integer));
    u32 => |integer| Self::Integer(Some(i64::from(integer)));
    bool => |truth| Self::Integer(Some(i64::from(truth)));
    Option<i64> => |integer| Self::Integer(integer);
    &'q [u8] => |bytes| Self::Bytes(Some(Cow::Borrowed(bytes)));
    Vec<u8> => |bytes| Self::Bytes(Some(Cow::Owned(bytes)));
    Option<Vec<u8>> => |bytes| Self::Bytes(bytes.map(Cow::Owned));
}
