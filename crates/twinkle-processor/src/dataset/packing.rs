//! Short sequences put together into long ones: best-fit decreasing, as in Ding et al., "Fewer Truncations Improve
//! Language Modeling" (2024).

use serde_json::Value;
use serde_json::value::RawValue;
use twinkle_core::error::{Error, Result};

use crate::data::{Row, raw};

/// Sequences that are put together at a time.
pub(super) const BATCH: usize = 1000;
/// The length of a pack where the template has none.
pub(super) const STANDARD_LENGTH: usize = 2048;

/// Columns that are joined along their last axis, however many they have.
const BY_LAST_AXIS: &[&str] = &["position_ids", "mm_token_type_ids"];

/// Puts items into packs of at most `most`, each into the fullest one that has room, the longest first. An item that is
/// longer than a pack has one of its own.
pub(super) fn pack<T>(items: Vec<(T, usize)>, most: usize) -> Vec<Vec<(T, usize)>> {
    let mut packs: Vec<(usize, Vec<(T, usize)>)> = Vec::new();
    let mut items = items;
    // Stable: of equally long items the first comes first.
    items.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    for (item, length) in items {
        let mut fullest: Option<&mut (usize, Vec<(T, usize)>)> = None;
        for pack in packs.iter_mut().filter(|(filled, _)| filled + length <= most) {
            if fullest.as_ref().is_none_or(|(filled, _)| pack.0 > *filled) {
                fullest = Some(pack);
            }
        }
        match fullest {
            Some((filled, pack)) => {
                *filled += length;
                pack.push((item, length));
            }
            None => packs.push((length, vec![(item, length)])),
        }
    }
    packs.into_iter().map(|(_, pack)| pack).collect()
}

/// Packs made of items that come bit by bit: the last pack of each round waits for the next.
pub(super) struct Packer<T> {
    waiting: Vec<(T, usize)>,
    most: usize,
}

impl<T> Packer<T> {
    pub(super) const fn new(most: usize) -> Self {
        Self { waiting: Vec::new(), most }
    }

    /// Takes items; answers the packs that are complete, at the end all.
    pub(super) fn round(&mut self, items: impl IntoIterator<Item = (T, usize)>, is_last: bool) -> Vec<Vec<(T, usize)>> {
        let mut all = std::mem::take(&mut self.waiting);
        all.extend(items);
        let mut packs = pack(all, self.most);
        if !is_last && let Some(last) = packs.pop() {
            self.waiting = last;
        }
        packs
    }
}

/// How long a row's sequence is.
pub(super) fn length_of(row: &Row) -> Result<usize> {
    if let Some(length) = row.get("length").and_then(|length| serde_json::from_str::<Vec<usize>>(length.get()).ok()) {
        return Ok(length.iter().sum());
    }
    match row.read::<usize>("length") {
        Ok(Some(length)) => Ok(length),
        _ => row
            .read::<Vec<i64>>("input_ids")?
            .map(|tokens| tokens.len())
            .ok_or_else(|| Error::invalid("a row has no `input_ids`").hint("encode the data set before packing it")),
    }
}

/// Rows as one: lists of numbers one after another, other values as a list of the rows' values.
pub(super) fn join(rows: &[Row]) -> Result<Row> {
    let mut joined = Row::default();
    let Some(first) = rows.first() else { return Ok(joined) };
    for name in first.names() {
        let values: Vec<&RawValue> = rows.iter().filter_map(|row| row.get(name)).collect();
        let value = if BY_LAST_AXIS.contains(&name) && values.iter().any(|value| value.get().starts_with("[[")) {
            raw(&by_last_axis(&values)?)?
        } else if values.first().is_some_and(|value| is_list_of_numbers(value.get())) {
            one_after_another(&values)?
        } else {
            raw(&values)?
        };
        joined.set_raw(name.to_owned(), value);
    }
    Ok(joined)
}

fn is_list_of_numbers(text: &str) -> bool {
    let inside = text.trim_start().strip_prefix('[').map(str::trim_start).and_then(|inside| inside.chars().next());
    inside.is_some_and(|first| first.is_ascii_digit() || "-tf".contains(first))
}

/// The elements of lists as one list, without looking at them.
fn one_after_another(lists: &[&RawValue]) -> Result<Box<RawValue>> {
    let mut text = String::from("[");
    for list in lists {
        let inside = list.get().trim().strip_prefix('[').and_then(|inside| inside.strip_suffix(']'));
        let inside =
            inside.ok_or_else(|| Error::invalid("a column has a list in some rows and none in others"))?.trim();
        if !inside.is_empty() {
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(inside);
        }
    }
    text.push(']');
    RawValue::from_string(text).map_err(|error| Error::internal(format!("lists cannot be joined: {error}")))
}

/// Lists of the same number of rows, row by row.
fn by_last_axis(values: &[&RawValue]) -> Result<Vec<Vec<Value>>> {
    let mut joined: Vec<Vec<Value>> = Vec::new();
    for (number, value) in values.iter().enumerate() {
        let rows: Vec<Vec<Value>> = serde_json::from_str(value.get())
            .map_err(|error| Error::invalid(format!("positions have different forms: {error}")))?;
        if number == 0 {
            joined = rows;
        } else if joined.len() == rows.len() {
            joined.iter_mut().zip(rows).for_each(|(joined, row)| joined.extend(row));
        } else {
            return Err(Error::invalid("positions have different numbers of rows"));
        }
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(lengths: &[usize], most: usize) -> Vec<Vec<usize>> {
        let items = lengths.iter().copied().enumerate().collect();
        pack(items, most).into_iter().map(|pack| pack.into_iter().map(|(item, _)| item).collect()).collect()
    }

    #[test]
    fn each_goes_into_the_fullest_pack_with_room_the_longest_first() {
        assert_eq!(packed(&[5, 7, 3, 2, 3], 10), [vec![1, 2], vec![0, 4, 3]]);
        assert_eq!(packed(&[4, 4, 4], 8), [vec![0, 1], vec![2]]);
        assert_eq!(packed(&[12, 1], 10), [vec![0], vec![1]]);
        assert_eq!(packed(&[], 10), [[0; 0]; 0]);
    }

    #[test]
    fn the_last_pack_of_a_round_waits_for_the_next() {
        let mut packer = Packer::new(10);
        let names = |packs: Vec<Vec<(char, usize)>>| -> Vec<String> {
            packs.iter().map(|pack| pack.iter().map(|(name, _)| *name).collect()).collect()
        };
        assert_eq!(names(packer.round([('a', 6), ('b', 6)], false)), ["a"]);
        assert_eq!(names(packer.round([('c', 4)], true)), ["bc"]);
        assert_eq!(names(packer.round([], true)), [""; 0]);
    }

    #[test]
    fn rows_are_joined_value_by_value() {
        let row = |text: &str| Row::parse(text).unwrap();
        let joined = join(&[
            row(r#"{"input_ids":[1,2],"length":2,"position_ids":[0,1],"messages":[{"role":"user"}],"e":[]}"#),
            row(r#"{"input_ids":[ 3 ],"length":1,"position_ids":[0],"messages":[],"e":[1]}"#),
        ]);
        assert_eq!(
            joined.unwrap().to_text().unwrap(),
            r#"{"input_ids":[1,2,3],"length":[2,1],"position_ids":[0,1,0],"messages":[[{"role":"user"}],[]],"e":[[],[1]]}"#
        );
        let images = join(&[row(r#"{"position_ids":[[0,1],[0,0]]}"#), row(r#"{"position_ids":[[0],[9]]}"#)]);
        assert_eq!(images.unwrap().to_text().unwrap(), r#"{"position_ids":[[0,1,0],[0,0,9]]}"#);
    }

    #[test]
    fn a_length_is_told_or_counted() {
        let length = |text: &str| length_of(&Row::parse(text).unwrap());
        assert_eq!(length(r#"{"length":7}"#), Ok(7));
        assert_eq!(length(r#"{"length":[3,4]}"#), Ok(7));
        assert_eq!(length(r#"{"input_ids":[1,2]}"#), Ok(2));
        assert!(length(r#"{"text":"a"}"#).is_err());
    }
}
