//! Lists of whole numbers as numpy and torch write them.
//!
//! A client turns arrays into lists with `tolist()`: a batch of one is a list in a list, booleans stay booleans, an array
//! of floats writes `1.0`, and an array of one number may come as the bare number.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

/// Reads a list of whole numbers; a list that holds one list stands for that list.
pub(super) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i64>, D::Error> {
    match deserializer.deserialize_any(Rows)? {
        Rectangle::Row(row) => Ok(row),
        Rectangle::Rows(rows) => {
            Err(D::Error::custom(format!("{} rows where one list of numbers is expected", rows.len())))
        }
    }
}

/// Reads a list of whole numbers, or `None` for null.
pub(super) fn whole_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<i64>>, D::Error> {
    Ok(Option::<Whole>::deserialize(deserializer)?.map(|Whole(row)| row))
}

/// A list of whole numbers.
pub(super) struct Whole(pub(super) Vec<i64>);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        whole(deserializer).map(Self)
    }
}

/// One row of numbers, or several.
pub(super) enum Rectangle {
    /// A list of numbers, or of one such list.
    Row(Vec<i64>),
    /// A list of two or more lists.
    Rows(Vec<Vec<i64>>),
}

impl<'de> Deserialize<'de> for Rectangle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Rows)
    }
}

/// A number, or a row of them.
enum Item {
    Number(i64),
    Row(Vec<i64>),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

/// A number that is a row in itself.
struct Number(i64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Item::deserialize(deserializer)? {
            Item::Number(number) => Ok(Self(number)),
            Item::Row(_) => Err(D::Error::custom("lists in lists in lists where a list of numbers is expected")),
        }
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a whole number")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Item, E> {
        Ok(Item::Number(i64::from(value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Item, E> {
        Ok(Item::Number(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Item, E> {
        let number = i64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))?;
        Ok(Item::Number(number))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Item, E> {
        // Beyond 2^53 a float does not say which whole number it is.
        if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 {
            return Ok(Item::Number(value as i64));
        }
        Err(E::invalid_value(Unexpected::Float(value), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
        let mut row = Vec::new();
        while let Some(Number(number)) = list.next_element()? {
            row.push(number);
        }
        Ok(Item::Row(row))
    }
}

struct Rows;

impl<'de> Visitor<'de> for Rows {
    type Value = Rectangle;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of whole numbers")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Rectangle, E> {
        Ok(Rectangle::Row(vec![i64::from(value)]))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Rectangle, E> {
        Ok(Rectangle::Row(vec![value]))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Rectangle, E> {
        let number = i64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))?;
        Ok(Rectangle::Row(vec![number]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Rectangle, A::Error> {
        let mut numbers = Vec::new();
        let mut rows = Vec::new();
        while let Some(item) = list.next_element()? {
            match item {
                Item::Number(number) => numbers.push(number),
                Item::Row(row) => rows.push(row),
            }
        }
        if rows.is_empty() {
            return Ok(Rectangle::Row(numbers));
        }
        if !numbers.is_empty() {
            return Err(A::Error::custom("numbers and lists are mixed in one list"));
        }
        match rows.len() {
            1 => Ok(Rectangle::Row(rows.remove(0))),
            _ => Ok(Rectangle::Rows(rows)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<i64>, String> {
        serde_json::from_str::<Whole>(text).map(|Whole(row)| row).map_err(|error| error.to_string())
    }

    #[test]
    fn what_tolist_writes_is_a_list_of_numbers() {
        assert_eq!(read("[1, -100, 3]").unwrap(), [1, -100, 3]);
        assert_eq!(read("[[1, 2]]").unwrap(), [1, 2]);
        assert_eq!(read("[true, false, 2.0]").unwrap(), [1, 0, 2]);
        assert_eq!(read("7").unwrap(), [7]);
        assert_eq!(read("[]").unwrap(), [0; 0]);
    }

    #[test]
    fn what_is_no_such_list_says_why() {
        assert!(read("[1.5]").unwrap_err().contains("floating point `1.5`, expected a whole number"));
        assert!(read("[[1], [2]]").unwrap_err().contains("2 rows where one list"));
        assert!(read("[1, [2]]").unwrap_err().contains("mixed"));
        assert!(read("[[[1]]]").unwrap_err().contains("lists in lists in lists"));
        assert!(read("\"1\"").unwrap_err().contains("expected a list of whole numbers"));
        assert!(read("[null]").unwrap_err().contains("null"));
    }
}
