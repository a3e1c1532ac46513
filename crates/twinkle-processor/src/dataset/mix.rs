//! Several data sets as one.

use twinkle_core::error::Result;

use crate::data::{Rows, Table};

/// How several data sets become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// A row of each in turn, until one of them ends.
    Interleave,
    /// One after the other.
    Concatenate,
}

impl Mix {
    /// The tables as one; columns that some rows lack are null there.
    pub(super) fn tables(self, tables: &[&Table]) -> Result<Option<Table>> {
        let Some(first) = tables.first() else { return Ok(None) };
        let mut mixed = Table::empty(first.room());
        let shortest = tables.iter().map(|table| table.len()).min().unwrap_or(0);
        match self {
            Self::Concatenate => {
                for row in tables.iter().flat_map(|table| table.rows()) {
                    mixed.push_text(row.clone())?;
                }
            }
            Self::Interleave => {
                for index in 0..shortest {
                    for row in tables.iter().filter_map(|table| table.text(index)) {
                        mixed.push_text(row.clone())?;
                    }
                }
            }
        }
        mixed.completed().map(Some)
    }

    /// The streams as one.
    pub(super) fn streams(self, mut streams: Vec<Rows>) -> Rows {
        match self {
            Self::Concatenate => Box::new(streams.into_iter().flatten()),
            Self::Interleave => {
                let mut round = Vec::new().into_iter();
                Box::new(std::iter::from_fn(move || {
                    if let Some(row) = round.next() {
                        return Some(row);
                    }
                    // A round is given whole or not at all.
                    let next: Option<Vec<_>> = streams.iter_mut().map(Iterator::next).collect();
                    round = next?.into_iter();
                    round.next()
                }))
            }
        }
    }

    /// Which row of which table the row `index` of a lazy data set is, and how many rows there are: in turns until the
    /// longest ends, with shorter ones from their beginning again.
    pub(super) fn resolve(self, lengths: &[usize], index: usize) -> Option<(usize, usize)> {
        match self {
            Self::Interleave => {
                let part = index.checked_rem(lengths.len())?;
                let length = *lengths.get(part)?;
                Some((part, (index / lengths.len()).checked_rem(length)?))
            }
            Self::Concatenate => {
                let mut left = index;
                for (part, length) in lengths.iter().enumerate() {
                    if left < *length {
                        return Some((part, left));
                    }
                    left -= length;
                }
                None
            }
        }
    }

    /// How many rows [`Mix::resolve`] knows.
    pub(super) fn length(self, lengths: &[usize]) -> usize {
        match self {
            Self::Interleave if lengths.contains(&0) => 0,
            Self::Interleave => lengths.iter().max().map_or(0, |longest| longest * lengths.len()),
            Self::Concatenate => lengths.iter().sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Room, Row};

    fn rows(letter: char, count: usize) -> impl Iterator<Item = Result<Row>> + Send {
        (0..count).map(move |number| Row::parse(&format!("{{\"{letter}\":{number}}}")))
    }

    fn texts(table: &Table) -> Vec<&str> {
        table.rows().iter().map(|row| &**row).collect()
    }

    #[test]
    fn tables_take_turns_until_the_shortest_ends_or_follow_one_another() {
        let room = Room::new(1 << 20);
        let one = Table::collect(&room, rows('a', 3)).unwrap();
        let other = Table::collect(&room, rows('b', 1)).unwrap();
        let mixed = Mix::Interleave.tables(&[&one, &other]).unwrap().unwrap();
        assert_eq!(texts(&mixed), [r#"{"a":0,"b":null}"#, r#"{"a":null,"b":0}"#]);
        assert_eq!(Mix::Concatenate.tables(&[&one, &other]).unwrap().unwrap().len(), 4);
        assert!(Mix::Concatenate.tables(&[]).unwrap().is_none());
    }

    #[test]
    fn streams_mix_as_tables_do() {
        let streams = || -> Vec<Rows> { vec![Box::new(rows('a', 3)), Box::new(rows('b', 2))] };
        let names = |rows: Rows| rows.map(|row| row.unwrap().to_text().unwrap()).collect::<Vec<_>>();
        assert_eq!(names(Mix::Interleave.streams(streams())), [r#"{"a":0}"#, r#"{"b":0}"#, r#"{"a":1}"#, r#"{"b":1}"#]);
        assert_eq!(names(Mix::Concatenate.streams(streams())).len(), 5);
    }

    #[test]
    fn a_lazy_mix_finds_its_rows_and_repeats_the_shorter() {
        let found = |mix: Mix, lengths: &[usize]| -> Vec<_> {
            (0..mix.length(lengths)).map(|index| mix.resolve(lengths, index).unwrap()).collect()
        };
        assert_eq!(found(Mix::Interleave, &[1, 2]), [(0, 0), (1, 0), (0, 0), (1, 1)]);
        assert_eq!(found(Mix::Concatenate, &[1, 2]), [(0, 0), (1, 0), (1, 1)]);
        assert_eq!(found(Mix::Interleave, &[1, 0]), []);
        assert_eq!(Mix::Concatenate.resolve(&[1, 2], 3), None);
    }
}
