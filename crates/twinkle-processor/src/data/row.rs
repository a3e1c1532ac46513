//! A row: named values in their order, each as the JSON text it was written in.

use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use twinkle_core::error::{Error, Result};

/// One named value of a row.
pub type Column = (String, Box<RawValue>);

/// A row: named values in their order, each as the JSON text it was written in.
///
/// Values that nobody looks at are neither parsed nor changed, so numbers keep all their digits and objects the order
/// of their keys.
#[derive(Clone, Debug, Default)]
pub struct Row {
    columns: Vec<Column>,
}

impl Row {
    /// Reads an object.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| Error::invalid(format!("a row is not a JSON object: {error}")))
    }

    /// The row as one line of JSON.
    pub fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::internal(format!("a row cannot be written: {error}")))
    }

    /// The columns, in order.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.columns.iter().map(|(name, value)| (name.as_str(), &**value))
    }

    /// The names of the columns, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    /// The text of a column.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.columns.iter().find(|(column, _)| column == name).map(|(_, value)| &**value)
    }

    /// A column as a value; `None` when it is not there or null.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        serde_json::from_str(value.get())
            .map_err(|error| Error::invalid(format!("the column `{name}` has another form: {error}")))
    }

    /// A column as a value; an error that lists the columns when it is not there or null.
    pub fn need<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.read(name)?.ok_or_else(|| {
            let names: Vec<String> = self.names().map(|name| format!("`{name}`")).collect();
            Error::invalid(format!("a row has no value in the column `{name}`"))
                .hint(format!("its columns are {}", names.join(", ")))
        })
    }

    /// Sets a column to a value; a new one comes last.
    pub fn set(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        self.set_raw(name.to_owned(), raw(value)?);
        Ok(())
    }

    /// Sets a column to a text of JSON; a new one comes last.
    pub fn set_raw(&mut self, name: String, value: Box<RawValue>) {
        match self.columns.iter_mut().find(|(column, _)| *column == name) {
            Some((_, present)) => *present = value,
            None => self.columns.push((name, value)),
        }
    }

    /// Takes these columns over; new ones come last.
    pub fn merge(&mut self, columns: impl IntoIterator<Item = Column>) {
        for (name, value) in columns {
            self.set_raw(name, value);
        }
    }

    /// The columns themselves.
    #[must_use]
    pub fn into_columns(self) -> Vec<Column> {
        self.columns
    }

    /// Drops a column; says whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.columns.len();
        self.columns.retain(|(column, _)| column != name);
        self.columns.len() < before
    }
}

/// A value as text of JSON.
pub(crate) fn raw(value: &impl Serialize) -> Result<Box<RawValue>> {
    to_raw_value(value).map_err(|error| Error::internal(format!("a value cannot be written: {error}")))
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for (name, value) in &self.columns {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Columns;

        impl<'de> Visitor<'de> for Columns {
            type Value = Row;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object with a value per column")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
                let mut row = Row::default();
                while let Some((name, value)) = map.next_entry()? {
                    row.set_raw(name, value);
                }
                Ok(row)
            }
        }

        deserializer.deserialize_map(Columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_touches_keeps_its_text_and_its_place() {
        let mut row = Row::parse(r#"{"z": 0.10, "a": {"y":1,  "b":2}, "m": null}"#).unwrap();
        row.set("a2", &[1, 2]).unwrap();
        row.set("z", &"new").unwrap();
        assert_eq!(row.to_text().unwrap(), r#"{"z":"new","a":{"y":1,  "b":2},"m":null,"a2":[1,2]}"#);
        assert!(row.remove("a") && !row.remove("a"));
        assert_eq!(row.names().collect::<Vec<_>>(), ["z", "m", "a2"]);
    }

    #[test]
    fn a_missing_column_and_a_null_are_told_with_the_columns_that_are_there() {
        let row = Row::parse(r#"{"query": "a", "response": null}"#).unwrap();
        assert_eq!(row.need::<String>("query").unwrap(), "a");
        assert_eq!(row.read::<String>("response").unwrap(), None);
        let error = row.need::<String>("response").unwrap_err().to_string();
        assert_eq!(error, "a row has no value in the column `response` (hint: its columns are `query`, `response`)");
        assert!(row.read::<u64>("query").unwrap_err().message.starts_with("the column `query` has another form"));
        assert!(Row::parse("[1]").is_err());
    }
}
