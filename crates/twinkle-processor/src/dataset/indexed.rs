//! Data sets with their rows in memory.

use std::sync::Arc;

use tokio::sync::Semaphore;
use twinkle_core::error::{Error, Result};

use super::mix::Mix;
use super::operation::Operation;
use super::packing::{BATCH, Packer, STANDARD_LENGTH, join, length_of};
use super::{parallel, place_of, unmixed};
use crate::data::{Room, Row, Saver, Table};
use crate::encode::{Template, Truncation};

/// Which kind of data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Dataset`: what is done to rows is done at once.
    Eager,
    /// `LazyDataset`: it is done each time a row is taken.
    Lazy,
    /// `PackingDataset`: eager, and rows are taken several at a time, as long sequences.
    Packing,
}

/// A data set with its rows in memory.
#[derive(Debug)]
pub struct Indexed {
    kind: Kind,
    parts: Vec<Part>,
    mix: Option<Mix>,
    /// The rows of an eager data set after it was mixed.
    mixed: Option<Table>,
    /// What is done to the rows of a lazy one behind what its parts do.
    operations: Vec<Operation>,
    template: Option<Template>,
    /// The rows of each pack.
    packs: Option<Vec<Vec<usize>>>,
    saver: Option<Saver>,
    room: Arc<Room>,
    /// Threads that may help, if nobody else needs them.
    workers: Arc<Semaphore>,
}

#[derive(Debug)]
struct Part {
    key: String,
    table: Table,
    operations: Vec<Operation>,
}

impl Indexed {
    /// A data set without rows, which may use those of these threads that nobody else needs.
    #[must_use]
    pub fn new(kind: Kind, room: Arc<Room>, workers: Arc<Semaphore>) -> Self {
        Self {
            kind,
            parts: Vec::new(),
            mix: None,
            mixed: None,
            operations: Vec::new(),
            template: None,
            packs: None,
            saver: None,
            room,
            workers,
        }
    }

    /// The room its rows take.
    #[must_use]
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Adds a part; one of the same key is replaced.
    pub fn add(&mut self, key: String, table: Table) {
        let part = Part { key, table, operations: Vec::new() };
        match self.parts.iter_mut().find(|known| known.key == part.key) {
            Some(known) => *known = part,
            None => self.parts.push(part),
        }
        (self.mix, self.mixed, self.packs) = (None, None, None);
    }

    /// Sets how conversations become tokens.
    pub fn set_template(&mut self, template: Template) {
        self.template = Some(template);
    }

    /// Makes columns of every row: of the part that `key` names, of the only one, or of all after mixing.
    pub fn map(&mut self, operation: Operation, key: Option<&str>) -> Result<()> {
        if self.kind != Kind::Lazy {
            return self.change(&operation, key);
        }
        if self.mix.is_some() {
            self.operations.push(operation);
        } else if key.is_none() && self.parts.len() > 1 {
            self.parts.iter_mut().for_each(|part| part.operations.push(operation.clone()));
        } else {
            self.part(key)?.operations.push(operation);
        }
        Ok(())
    }

    /// Drops rows, at once in every kind: which rows there are must be known.
    pub fn filter(&mut self, filter: &Operation, key: Option<&str>) -> Result<()> {
        if self.kind != Kind::Lazy {
            return self.change(filter, key);
        }
        let chosen = if self.mix.is_some() { None } else { Some(place_of(&self.keys(), key)?) };
        let mut kept = Vec::new();
        for (number, part) in self.parts.iter().enumerate() {
            let mut rows = Table::empty(&self.room);
            for (index, text) in part.table.rows().iter().enumerate() {
                let is_kept = chosen.is_some_and(|chosen| chosen != number)
                    || match self.worked(part, text).map_err(|error| of_row(index, error))? {
                        Some(row) => !filter.apply(row).map_err(|error| of_row(index, error))?.is_empty(),
                        None => false,
                    };
                if is_kept {
                    rows.push_text(Arc::clone(text))?;
                }
            }
            kept.push(rows);
        }
        self.parts.iter_mut().zip(kept).for_each(|(part, rows)| part.table = rows);
        Ok(())
    }

    /// Makes several parts one.
    pub fn mix(&mut self, mix: Mix) -> Result<()> {
        if self.parts.len() < 2 {
            return Ok(());
        }
        if self.kind != Kind::Lazy {
            let tables: Vec<&Table> = self.parts.iter().map(|part| &part.table).collect();
            self.mixed = mix.tables(&tables)?;
        }
        (self.mix, self.packs) = (Some(mix), None);
        Ok(())
    }

    /// Turns conversations into tokens.
    pub fn encode(&mut self, add_generation_prompt: bool, remove_columns: Vec<String>) -> Result<()> {
        let template = self.template_to_encode()?;
        if self.kind == Kind::Lazy && template.spec().truncation == Truncation::Split {
            return Err(Error::invalid("a lazy data set cannot split rows that are too long")
                .hint("use another `truncation_strategy`, or `Dataset`"));
        }
        let operation = Operation::Encode { template, add_generation_prompt, remove_columns: remove_columns.into() };
        if self.kind == Kind::Lazy {
            // Encoding again replaces what was to be done before.
            self.operations.retain(|operation| !matches!(operation, Operation::Encode { .. }));
            self.operations.push(operation);
            return Ok(());
        }
        self.change(&operation, None)
    }

    /// Keeps the rows that can be encoded.
    pub fn check(&mut self) -> Result<()> {
        let operation = Operation::Check(self.template_to_encode()?);
        if self.kind == Kind::Lazy {
            self.operations.push(operation);
            return Ok(());
        }
        self.change(&operation, None)
    }

    /// Puts encoded rows together into sequences of about the template's `max_length`.
    pub fn pack(&mut self) -> Result<()> {
        let most = self.template_to_encode()?.spec().max_length.unwrap_or(STANDARD_LENGTH);
        let table = self.rows()?;
        let lengths = table.rows().iter().enumerate().map(|(index, text)| {
            let length = Row::parse(text).and_then(|row| {
                if row.get("input_ids").is_none() {
                    return Err(
                        Error::invalid("a row has no `input_ids`").hint("encode the data set before packing it")
                    );
                }
                length_of(&row)
            });
            length.map(|length| (index, length)).map_err(|error| of_row(index, error))
        });
        let lengths = lengths.collect::<Result<Vec<_>>>()?;
        let mut packer = Packer::new(most);
        let mut packs = Vec::new();
        for chunk in lengths.chunks(BATCH) {
            packs.extend(packer.round(chunk.iter().copied(), false));
        }
        packs.extend(packer.round([], true));
        self.packs = Some(packs.into_iter().map(|pack| pack.into_iter().map(|(index, _)| index).collect()).collect());
        Ok(())
    }

    /// Number of rows, or of packs.
    pub fn len(&self) -> Result<usize> {
        match (self.kind, self.mix) {
            (Kind::Packing, _) => self.packs.as_ref().map(Vec::len).ok_or_else(not_packed),
            (Kind::Lazy, Some(mix)) => Ok(mix.length(&self.lengths())),
            _ if self.parts.is_empty() => Ok(0),
            _ => self.rows().map(Table::len),
        }
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|length| length == 0)
    }

    /// A row as JSON; `None` when what is done to it leaves none. It is also saved if a saver was begun. Blocking.
    pub fn row(&mut self, index: usize) -> Result<Option<Arc<str>>> {
        let length = self.len()?;
        if index >= length {
            return Err(crate::data::out_of_range(index as i64, length));
        }
        if self.kind == Kind::Packing {
            let rows = self.packed(index)?;
            if let Some(saver) = &mut self.saver {
                rows.iter().try_for_each(|row| saver.write(row))?;
            }
            let rows = rows.iter().map(|text| Row::parse(text)).collect::<Result<Vec<_>>>()?;
            return Ok(Some(join(&rows)?.to_text()?.into()));
        }
        let row = self.unpacked(index)?;
        if let (Some(saver), Some(row)) = (&mut self.saver, &row) {
            saver.write(row)?;
        }
        Ok(row)
    }

    /// Begins to save rows as they are taken; [`Indexed::finish_saving`] ends it.
    pub fn save_while_taken(&mut self, saver: Saver) {
        self.saver = Some(saver);
    }

    /// Completes the file that was begun, if one was.
    pub fn finish_saving(&mut self) -> Result<()> {
        self.saver.take().map_or(Ok(()), Saver::finish)
    }

    /// Saves all rows now. Blocking.
    pub fn save(&self, mut saver: Saver) -> Result<()> {
        let length = if self.kind == Kind::Packing { self.rows()?.len() } else { self.len()? };
        for index in 0..length {
            if let Some(row) = self.unpacked(index).map_err(|error| of_row(index, error))? {
                saver.write(&row)?;
            }
        }
        saver.finish()
    }

    /// Whether any row has this column.
    pub fn has_column(&self, column: &str) -> Result<bool> {
        let rows = self.parts.iter().filter_map(|part| part.table.text(0));
        let mut found = rows.map(|row| Row::parse(row).map(|row| row.get(column).is_some()));
        found.try_fold(false, |any, found| Ok(any | found?))
    }

    fn keys(&self) -> Vec<&str> {
        self.parts.iter().map(|part| part.key.as_str()).collect()
    }

    fn part(&mut self, key: Option<&str>) -> Result<&mut Part> {
        let place = place_of(&self.keys(), key)?;
        self.parts.get_mut(place).ok_or_else(|| Error::internal("a part of a data set is gone"))
    }

    fn lengths(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.table.len()).collect()
    }

    /// The rows in memory: mixed, or those of the only part.
    fn rows(&self) -> Result<&Table> {
        match (&self.mixed, self.parts.as_slice()) {
            (Some(mixed), _) => Ok(mixed),
            (None, [only]) => Ok(&only.table),
            (None, []) => Err(Error::invalid("the data set is empty").hint("add one with `add_dataset`")),
            (None, several) => Err(unmixed(several.len())),
        }
    }

    /// Does something to all rows now; after an error they are as before.
    fn change(&mut self, operation: &Operation, key: Option<&str>) -> Result<()> {
        let workers = Arc::clone(&self.workers);
        let table = match (&mut self.mixed, self.parts.len()) {
            (Some(mixed), _) => mixed,
            (None, several) if several > 1 && key.is_none() => {
                return Err(match operation {
                    Operation::Map(..) | Operation::Filter(_) => {
                        place_of(&self.keys(), None).err().unwrap_or_else(|| unmixed(several))
                    }
                    _ => unmixed(several),
                });
            }
            _ => &mut self.part(key)?.table,
        };
        *table = parallel::apply(table, operation, &workers)?;
        self.packs = None;
        Ok(())
    }

    fn template_to_encode(&self) -> Result<Template> {
        self.template.clone().ok_or_else(|| {
            Error::invalid("the data set has no template").hint("call `set_template` with a `model_id` first")
        })
    }

    fn packed(&self, index: usize) -> Result<Vec<Arc<str>>> {
        let pack = self.packs.as_ref().ok_or_else(not_packed)?.get(index);
        let table = self.rows()?;
        Ok(pack.into_iter().flatten().filter_map(|row| table.text(*row).cloned()).collect())
    }

    fn unpacked(&self, index: usize) -> Result<Option<Arc<str>>> {
        if self.kind != Kind::Lazy {
            return Ok(self.rows()?.text(index).cloned());
        }
        let (place, local) = match self.mix {
            Some(mix) => mix.resolve(&self.lengths(), index).unwrap_or_default(),
            None if self.parts.len() > 1 => return Err(unmixed(self.parts.len())),
            None => (0, index),
        };
        let Some(part) = self.parts.get(place) else { return Ok(None) };
        let Some(text) = part.table.text(local) else { return Ok(None) };
        if part.operations.is_empty() && self.operations.is_empty() {
            return Ok(Some(Arc::clone(text)));
        }
        self.worked(part, text)?.map(|row| row.to_text().map(Arc::from)).transpose()
    }

    /// A row of a lazy data set after all that is to be done to it.
    fn worked(&self, part: &Part, text: &str) -> Result<Option<Row>> {
        let mut row = Row::parse(text)?;
        for operation in part.operations.iter().chain(&self.operations) {
            match operation.apply(row)?.into_iter().next() {
                Some(next) => row = next,
                None => return Ok(None),
            }
        }
        Ok(Some(row))
    }
}

fn of_row(index: usize, error: Error) -> Error {
    Error { message: format!("row {index}: {}", error.message), ..error }
}

fn not_packed() -> Error {
    Error::invalid("the data set is not packed").hint("call `pack_dataset` after `encode`")
}
