//! Data sets that are read one row after another.

use std::fmt;

use twinkle_core::error::{Error, Result};

use super::mix::Mix;
use super::operation::Operation;
use super::packing::{Packer, STANDARD_LENGTH, join, length_of};
use super::{place_of, unmixed};
use crate::data::{DataSlice, Row, Rows, Saver, Source};
use crate::encode::{Template, Truncation};

/// How the rows of a stream are put together into long sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packs {
    /// Rows that are put together at a time.
    pub interval: usize,
    /// Whether the stream begins again at its end, for ever.
    pub cyclic: bool,
}

/// A data set that is read one row after another, from the beginning as often as one likes.
pub struct Streamed {
    packs: Option<Packs>,
    is_packed: bool,
    parts: Vec<Part>,
    mix: Option<Mix>,
    operations: Vec<Operation>,
    template: Option<Template>,
    saver: Option<Saver>,
    reading: Option<Rows>,
}

#[derive(Clone)]
struct Part {
    key: String,
    source: Source,
    slice: Option<DataSlice>,
    operations: Vec<Operation>,
}

impl Streamed {
    /// A data set without rows.
    #[must_use]
    pub const fn new(packs: Option<Packs>) -> Self {
        Self {
            packs,
            is_packed: false,
            parts: Vec::new(),
            mix: None,
            operations: Vec::new(),
            template: None,
            saver: None,
            reading: None,
        }
    }

    /// Adds a part; one of the same key is replaced.
    pub fn add(&mut self, key: String, source: Source, slice: Option<DataSlice>) -> Result<()> {
        if slice.as_ref().is_some_and(|slice| slice.of_stream().is_none()) {
            return Err(Error::invalid("a stream cannot follow this `data_slice`")
                .hint("give a range that goes forward, or use `Dataset`"));
        }
        let part = Part { key, source, slice, operations: Vec::new() };
        match self.parts.iter_mut().find(|known| known.key == part.key) {
            Some(known) => *known = part,
            None => self.parts.push(part),
        }
        self.mix = None;
        Ok(())
    }

    /// Sets how conversations become tokens.
    pub fn set_template(&mut self, template: Template) -> Result<()> {
        if self.packs.is_some() && template.spec().truncation == Truncation::Split {
            return Err(Error::invalid("a packed stream cannot split rows that are too long")
                .hint("use another `truncation_strategy`"));
        }
        self.template = Some(template);
        Ok(())
    }

    /// Does something to every row on its way: of the part that `key` names, of the only one, or of all after mixing.
    pub fn map(&mut self, operation: Operation, key: Option<&str>) -> Result<()> {
        if self.mix.is_some() {
            self.operations.push(operation);
            return Ok(());
        }
        let keys: Vec<&str> = self.parts.iter().map(|part| part.key.as_str()).collect();
        let place = place_of(&keys, key)?;
        self.parts.iter_mut().skip(place).take(1).for_each(|part| part.operations.push(operation.clone()));
        Ok(())
    }

    /// Makes several parts one.
    pub fn mix(&mut self, mix: Mix) {
        if self.parts.len() > 1 {
            self.mix = Some(mix);
        }
    }

    /// Turns conversations into tokens on their way.
    pub fn encode(&mut self, add_generation_prompt: bool, remove_columns: Vec<String>) -> Result<()> {
        let template = self.template_to_encode()?;
        let remove_columns = remove_columns.into();
        self.operations.push(Operation::Encode { template, add_generation_prompt, remove_columns });
        Ok(())
    }

    /// Passes over the rows that cannot be encoded.
    pub fn check(&mut self) -> Result<()> {
        self.operations.push(Operation::Check(self.template_to_encode()?));
        Ok(())
    }

    /// Says that rows are to be packed from now on.
    pub fn pack(&mut self) -> Result<()> {
        self.template_to_encode()?;
        self.is_packed = true;
        Ok(())
    }

    /// The rows from the first. Blocking, as is every step.
    pub fn rows(&self) -> Result<Rows> {
        let Some(packs) = self.packs else { return self.unpacked() };
        let template = self.template_to_encode()?;
        if !self.is_packed {
            return Err(Error::invalid("the data set is not packed").hint("call `pack_dataset` first"));
        }
        let most = template.spec().max_length.unwrap_or(STANDARD_LENGTH);
        let rows: Rows = if packs.cyclic { self.over_and_over()? } else { self.unpacked()? };
        let encode = Operation::Encode { template, add_generation_prompt: false, remove_columns: [].into() };
        Ok(packed(all_of(rows, encode), packs.interval, most))
    }

    /// Begins to read from the first row.
    pub fn begin(&mut self) -> Result<()> {
        self.reading = Some(self.rows()?);
        Ok(())
    }

    /// The next row; `None` at the end, again and again. It is also saved if a saver was begun. Blocking.
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        let Some(rows) = &mut self.reading else {
            return Err(Error::invalid("nothing is being read").hint("call `__iter__` first"));
        };
        let row = rows.next().transpose()?;
        if row.is_none() {
            self.reading = Some(Box::new(std::iter::empty()));
        }
        if let Some(row) = &row {
            self.taken(row)?;
        }
        Ok(row)
    }

    /// Notes that a row was taken: it is saved if a saver was begun.
    pub fn taken(&mut self, row: &Row) -> Result<()> {
        self.saver.as_mut().map_or(Ok(()), |saver| saver.write(&row.to_text()?))
    }

    /// Begins to save rows as they are taken; [`Streamed::finish_saving`] ends it.
    pub fn save_while_taken(&mut self, saver: Saver) {
        self.saver = Some(saver);
    }

    /// Completes the file that was begun, if one was.
    pub fn finish_saving(&mut self) -> Result<()> {
        self.saver.take().map_or(Ok(()), Saver::finish)
    }

    /// Saves all rows now. Blocking.
    pub fn save(&self, mut saver: Saver) -> Result<()> {
        for row in self.unpacked()? {
            saver.write(&row?.to_text()?)?;
        }
        saver.finish()
    }

    fn template_to_encode(&self) -> Result<Template> {
        self.template.clone().ok_or_else(|| {
            Error::invalid("the data set has no template").hint("call `set_template` with a `model_id` first")
        })
    }

    fn unpacked(&self) -> Result<Rows> {
        let mut streams: Vec<Rows> = self.parts.iter().map(Part::rows).collect();
        let rows = match (self.mix, streams.len()) {
            (_, 0) => return Err(Error::invalid("the data set is empty").hint("add one with `add_dataset`")),
            (Some(mix), _) => mix.streams(streams),
            (None, 1) => streams.remove(0),
            (None, several) => return Err(unmixed(several)),
        };
        Ok(self.operations.iter().fold(rows, |rows, operation| all_of(rows, operation.clone())))
    }

    /// The rows again and again; nothing where there are none.
    fn over_and_over(&self) -> Result<Rows> {
        let again =
            Self { parts: self.parts.clone(), operations: self.operations.clone(), mix: self.mix, ..Self::new(None) };
        let mut rows = self.unpacked()?;
        let mut since_beginning = 0_usize;
        Ok(Box::new(std::iter::from_fn(move || {
            loop {
                if let Some(row) = rows.next() {
                    since_beginning += 1;
                    return Some(row);
                }
                if std::mem::take(&mut since_beginning) == 0 {
                    return None;
                }
                match again.unpacked() {
                    Ok(from_first) => rows = from_first,
                    Err(error) => return Some(Err(error)),
                }
            }
        })))
    }
}

impl Part {
    fn rows(&self) -> Rows {
        let rows = self.source.rows();
        let sliced: Rows = match self.slice.as_ref().and_then(DataSlice::of_stream) {
            Some((first, end, stride)) => Box::new(rows.take(end).skip(first).step_by(stride.max(1))),
            None => rows,
        };
        self.operations.iter().fold(sliced, |rows, operation| all_of(rows, operation.clone()))
    }
}

/// All that comes of rows by an operation. An error of one row does not end the others.
fn all_of(rows: Rows, operation: Operation) -> Rows {
    Box::new(rows.flat_map(move |row| match row.and_then(|row| operation.apply(row)) {
        Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
        Err(error) => vec![Err(error)],
    }))
}

/// Rows put together, `interval` of them at a time. After an error nothing more comes.
fn packed(rows: Rows, interval: usize, most: usize) -> Rows {
    let mut rows = rows.fuse();
    let mut packer = Packer::new(most);
    let mut ready = Vec::new().into_iter();
    let mut is_over = false;
    Box::new(std::iter::from_fn(move || {
        loop {
            if let Some(pack) = ready.next() {
                let pack: Vec<(Row, usize)> = pack;
                let pack: Vec<Row> = pack.into_iter().map(|(row, _)| row).collect();
                return Some(join(&pack));
            }
            if is_over {
                return None;
            }
            let taken = rows
                .by_ref()
                .take(interval.max(1))
                .map(|row| row.and_then(|row| length_of(&row).map(|length| (row, length))));
            match taken.collect::<Result<Vec<_>>>() {
                Ok(items) => {
                    is_over = items.len() < interval.max(1);
                    ready = packer.round(items, is_over).into_iter();
                }
                Err(error) => {
                    is_over = true;
                    return Some(Err(error));
                }
            }
        }
    }))
}

impl fmt::Debug for Streamed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Streamed")
            .field("packs", &self.packs)
            .field("parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}
