//! Rows out of comma-separated values.

use std::io::Read;

use csv::{Reader, ReaderBuilder, StringRecord};
use serde_json::Value;
use serde_json::value::RawValue;
use twinkle_core::error::{Error, Result};

use super::row::{Row, raw};

/// What all values of a column are. Texts are kept as they are, also empty ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nothing,
    Truth,
    Integer,
    Number,
    Text,
}

impl Kind {
    fn of(text: &str) -> Self {
        let text = text.trim();
        if matches!(text, "True" | "TRUE" | "true" | "False" | "FALSE" | "false") {
            Self::Truth
        } else if integer(text).is_some() {
            Self::Integer
        } else if text.bytes().next().is_some_and(|first| first.is_ascii_digit() || b"+-.".contains(&first))
            && text.parse().is_ok_and(f64::is_finite)
        {
            Self::Number
        } else {
            Self::Text
        }
    }

    /// What both a column's values so far and another one are.
    const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, kind) | (kind, Self::Nothing) => kind,
            (Self::Truth, Self::Truth) => Self::Truth,
            (Self::Integer, Self::Integer) => Self::Integer,
            (Self::Integer | Self::Number, Self::Integer | Self::Number) => Self::Number,
            _ => Self::Text,
        }
    }

    fn value(self, text: &str) -> Result<Box<RawValue>> {
        let trimmed = text.trim();
        raw(&match self {
            Self::Truth => Value::from(trimmed.eq_ignore_ascii_case("true")),
            Self::Integer => integer(trimmed).map_or(Value::Null, Value::from),
            Self::Number => trimmed.parse::<f64>().map_or(Value::Null, Value::from),
            Self::Nothing | Self::Text => Value::from(text),
        })
    }
}

fn integer(text: &str) -> Option<i64> {
    text.strip_prefix('+').unwrap_or(text).parse().ok()
}

/// The rows of a table whose columns have these kinds.
pub(super) struct Records<R> {
    reader: Reader<R>,
    names: Vec<String>,
    kinds: Vec<Kind>,
    record: StringRecord,
    number: u64,
}

/// Opens a table: `open` is called twice, because types are found by looking at all values first.
pub(super) fn records<R: Read>(delimiter: u8, open: impl Fn() -> Result<R>) -> Result<Records<R>> {
    let reader = |source| ReaderBuilder::new().delimiter(delimiter).from_reader(source);
    let mut look = reader(open()?);
    let headers = look.headers().map_err(|error| unreadable(&error))?;
    let names: Vec<String> =
        headers.iter().map(|name| name.strip_prefix('\u{feff}').unwrap_or(name).to_owned()).collect();
    let mut kinds = vec![Kind::Nothing; names.len()];
    let mut record = StringRecord::new();
    while look.read_record(&mut record).map_err(|error| unreadable(&error))? {
        for (kind, value) in kinds.iter_mut().zip(&record) {
            *kind = kind.and(Kind::of(value));
        }
    }
    Ok(Records { reader: reader(open()?), names, kinds, record, number: 0 })
}

impl<R: Read> Iterator for Records<R> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.number += 1;
        match self.reader.read_record(&mut self.record) {
            Ok(false) => None,
            Ok(true) => Some(self.row()),
            Err(error) => Some(Err(unreadable(&error))),
        }
    }
}

impl<R> Records<R> {
    fn row(&self) -> Result<Row> {
        let mut row = Row::default();
        for ((name, kind), value) in self.names.iter().zip(&self.kinds).zip(&self.record) {
            row.set_raw(name.clone(), kind.value(value)?);
        }
        Ok(row)
    }
}

fn unreadable(error: &csv::Error) -> Error {
    Error::invalid(format!("it is not a table of comma-separated values: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(delimiter: u8, text: &'static str) -> Result<Vec<String>> {
        records(delimiter, || Ok(text.as_bytes()))?.map(|row| row?.to_text()).collect()
    }

    #[test]
    fn a_column_is_what_all_its_values_are() {
        let text = "i,f,b,t,e\n1,1,True,1,\n-7,.5,false,x,\n";
        assert_eq!(
            rows(b',', text).unwrap(),
            [r#"{"i":1,"f":1.0,"b":true,"t":"1","e":""}"#, r#"{"i":-7,"f":0.5,"b":false,"t":"x","e":""}"#]
        );
    }

    #[test]
    fn quotes_line_breaks_and_other_separators_are_understood() {
        assert_eq!(
            rows(b'\t', "\u{feff}q\ta\n\"two\nlines\"\t\"say \"\"hi\"\"\"\n").unwrap(),
            [r#"{"q":"two\nlines","a":"say \"hi\""}"#]
        );
        assert_eq!(rows(b',', "a,b\n").unwrap(), [""; 0]);
        assert!(rows(b',', "a,b\n1,2,3\n").unwrap_err().message.contains("not a table"));
        assert_eq!(rows(b',', "a\ninf\nnan\n").unwrap(), [r#"{"a":"inf"}"#, r#"{"a":"nan"}"#]);
    }
}
