//! Rows out of Parquet, read one by one.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parquet::errors::ParquetError;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::Field;
use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result};

use super::row::{Row, raw};

/// The rows of a file.
///
/// Times become texts as ISO 8601 has them, decimals texts with all their digits, and bytes base64.
pub(super) fn rows(file: File) -> Result<impl Iterator<Item = Result<Row>> + Send> {
    let mut rows = guarded(|| SerializedFileReader::new(file).map(IntoIterator::into_iter))?;
    Ok(std::iter::from_fn(move || {
        guarded(|| rows.next().transpose()).and_then(|row| row.as_ref().map(row_of).transpose()).transpose()
    }))
}

/// Reads something of a file that may be damaged: the library panics about some of that.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::invalid(format!("it cannot be read as Parquet: {error}"))),
        Err(_) => Err(Error::invalid("it is damaged, or made of Parquet that is not understood")),
    }
}

fn row_of(fields: &parquet::record::Row) -> Result<Row> {
    let mut row = Row::default();
    for (name, field) in fields.get_column_iter() {
        row.set_raw(name.clone(), raw(&value(field))?);
    }
    Ok(row)
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float16(value) => Value::from(f64::from(*value)),
        Field::Float(value) => Value::from(f64::from(*value)),
        Field::Double(value) => Value::from(*value),
        Field::Decimal(_) => Value::from(field.to_string()),
        Field::Str(value) => Value::from(value.as_str()),
        Field::Bytes(bytes) => Value::from(STANDARD.encode(bytes.data())),
        Field::Date(days) => time(i128::from(*days) * 86_400_000_000_000, "%Y-%m-%d"),
        Field::TimeMillis(time_of_day) => time(i128::from(*time_of_day) * 1_000_000, "%H:%M:%S%.f"),
        Field::TimeMicros(time_of_day) => time(i128::from(*time_of_day) * 1_000, "%H:%M:%S%.f"),
        Field::TimestampMillis(since) => time(i128::from(*since) * 1_000_000, "%Y-%m-%dT%H:%M:%S%.f"),
        Field::TimestampMicros(since) => time(i128::from(*since) * 1_000, "%Y-%m-%dT%H:%M:%S%.f"),
        Field::Group(row) => {
            let columns = row.get_column_iter().map(|(name, field)| (name.clone(), value(field)));
            Value::Object(columns.collect::<Map<_, _>>())
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let entry = |(key, field): &(Field, Field)| match value(key) {
                Value::String(key) => (key, value(field)),
                key => (key.to_string(), value(field)),
            };
            Value::Object(map.entries().iter().map(entry).collect::<Map<_, _>>())
        }
    }
}

/// Nanoseconds since 1970 as text; null where no calendar goes.
fn time(nanoseconds: i128, format: &str) -> Value {
    jiff::Timestamp::from_nanosecond(nanoseconds)
        .map_or(Value::Null, |time| Value::from(time.strftime(format).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_without_a_form_in_json_become_texts() {
        assert_eq!(value(&Field::Date(19_000)), Value::from("2022-01-08"));
        assert_eq!(value(&Field::TimestampMillis(1_641_600_000_250)), Value::from("2022-01-08T00:00:00.25"));
        assert_eq!(value(&Field::TimeMicros(1_500_000)), Value::from("00:00:01.5"));
        assert_eq!(value(&Field::Bytes(vec![1_u8, 255].into())), Value::from("Af8="));
        assert_eq!(value(&Field::TimestampMicros(i64::MAX)), Value::Null);
        assert_eq!(value(&Field::Float(f32::NAN)), Value::Null);
    }

    #[test]
    fn a_file_that_is_no_parquet_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        std::fs::write(&path, b"PAR1 nonsense PAR1").unwrap();
        let error = rows(File::open(&path).unwrap()).err().unwrap();
        assert!(error.message.starts_with("it "), "{error}");
    }
}
