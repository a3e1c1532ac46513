//! Rows as Parquet: lists and objects are taken apart into columns of plain values.
//!
//! The levels are those of Melnik et al., "Dremel: Interactive Analysis of Web-Scale Datasets" (2010): a value's
//! definition level says how much of its path is there, its repetition level which list began anew.

use std::fs::File;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{Type, TypePtr};
use serde_json::Value;
use twinkle_core::error::{Error, Result};

use super::shape::Shape;
use crate::data::row::Row;

/// Rows of one group.
const GROUP: usize = 10_000;

/// Writes all rows. `rows` is called twice.
pub(super) fn write<I>(file: &File, rows: impl Fn() -> Result<I>) -> Result<()>
where
    I: Iterator<Item = Result<Row>>,
{
    let mut shape = Shape::Nothing;
    for row in rows()? {
        shape = shape.and(Shape::of(&object(&row?)?));
    }
    let Shape::Object(columns) = shape else {
        return Err(Error::invalid("there is no column to save").hint("save as `jsonl`"));
    };
    let schema = schema(&columns).map_err(|error| failed(&error))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(|error| failed(&error))?;
    let mut rows = rows()?;
    loop {
        let mut leaves: Vec<Leaf> = columns.iter().flat_map(|(_, shape)| leaves_of(shape)).collect();
        let mut count = 0;
        for row in rows.by_ref().take(GROUP) {
            let row = object(&row?)?;
            let mut left = leaves.as_mut_slice();
            for (name, shape) in &columns {
                let (own, rest) = left.split_at_mut(shape.leaves());
                shred(shape, row.get(name).unwrap_or(&Value::Null), Level::default(), own);
                left = rest;
            }
            count += 1;
        }
        if count == 0 {
            break;
        }
        let mut group = writer.next_row_group().map_err(|error| failed(&error))?;
        for leaf in &leaves {
            leaf.write(&mut group).map_err(|error| failed(&error))?;
        }
        group.close().map_err(|error| failed(&error))?;
    }
    writer.close().map_err(|error| failed(&error))?;
    Ok(())
}

fn object(row: &Row) -> Result<Value> {
    serde_json::to_value(row).map_err(|error| Error::internal(format!("a row cannot be written: {error}")))
}

fn failed(error: &ParquetError) -> Error {
    Error::internal(format!("the rows cannot be written as Parquet: {error}"))
}

fn schema(columns: &[(String, Shape)]) -> Result<TypePtr, ParquetError> {
    let fields = columns.iter().map(|(name, shape)| field(name, shape)).collect::<Result<Vec<_>, _>>()?;
    Type::group_type_builder("schema").with_fields(fields).build().map(Arc::new)
}

fn field(name: &str, shape: &Shape) -> Result<TypePtr, ParquetError> {
    let plain = |physical| Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
    let group = |fields| Type::group_type_builder(name).with_repetition(Repetition::OPTIONAL).with_fields(fields);
    let built = match shape {
        Shape::Truth => plain(Physical::BOOLEAN).build(),
        Shape::Integer => plain(Physical::INT64).build(),
        Shape::Number => plain(Physical::DOUBLE).build(),
        Shape::Nothing | Shape::Text => plain(Physical::BYTE_ARRAY)
            .with_converted_type(ConvertedType::UTF8)
            .with_logical_type(Some(LogicalType::String))
            .build(),
        Shape::Object(fields) => {
            group(fields.iter().map(|(name, shape)| field(name, shape)).collect::<Result<_, _>>()?).build()
        }
        Shape::List(element) => {
            let repeated = Type::group_type_builder("list")
                .with_repetition(Repetition::REPEATED)
                .with_fields(vec![field("element", element)?])
                .build()?;
            group(vec![Arc::new(repeated)])
                .with_converted_type(ConvertedType::LIST)
                .with_logical_type(Some(LogicalType::List))
                .build()
        }
    };
    built.map(Arc::new)
}

/// How far into lists and optional things a value is.
#[derive(Clone, Copy, Default)]
struct Level {
    definition: i16,
    repetition: i16,
    /// Lists around it.
    lists: i16,
}

/// A column of plain values.
struct Leaf {
    values: Values,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

enum Values {
    Truths(Vec<bool>),
    Integers(Vec<i64>),
    Numbers(Vec<f64>),
    Texts(Vec<ByteArray>),
}

fn leaves_of(shape: &Shape) -> Vec<Leaf> {
    let leaf = |values| vec![Leaf { values, definitions: Vec::new(), repetitions: Vec::new() }];
    match shape {
        Shape::Truth => leaf(Values::Truths(Vec::new())),
        Shape::Integer => leaf(Values::Integers(Vec::new())),
        Shape::Number => leaf(Values::Numbers(Vec::new())),
        Shape::Nothing | Shape::Text => leaf(Values::Texts(Vec::new())),
        Shape::List(element) => leaves_of(element),
        Shape::Object(fields) => fields.iter().flat_map(|(_, shape)| leaves_of(shape)).collect(),
    }
}

/// Puts a value into the columns it takes.
fn shred(shape: &Shape, value: &Value, at: Level, leaves: &mut [Leaf]) {
    match (shape, value) {
        (Shape::List(element), Value::Array(list)) if !list.is_empty() => {
            for (number, value) in list.iter().enumerate() {
                let repetition = if number == 0 { at.repetition } else { at.lists + 1 };
                shred(element, value, Level { definition: at.definition + 2, repetition, lists: at.lists + 1 }, leaves);
            }
        }
        (Shape::List(_), Value::Array(_)) => {
            for leaf in leaves {
                leaf.note(Level { definition: at.definition + 1, ..at });
            }
        }
        (Shape::Object(fields), Value::Object(values)) => {
            let mut left = leaves;
            for (name, shape) in fields {
                let (own, rest) = left.split_at_mut(shape.leaves());
                let value = values.get(name).unwrap_or(&Value::Null);
                shred(shape, value, Level { definition: at.definition + 1, ..at }, own);
                left = rest;
            }
        }
        _ => {
            for leaf in leaves {
                let is_there = leaf.values.push(value);
                leaf.note(Level { definition: at.definition + i16::from(is_there), ..at });
            }
        }
    }
}

impl Values {
    /// Adds a value; says whether there was one.
    fn push(&mut self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => false,
            (Self::Truths(values), value) => value.as_bool().is_some_and(|value| pushed(values, value)),
            (Self::Integers(values), value) => value.as_i64().is_some_and(|value| pushed(values, value)),
            (Self::Numbers(values), value) => value.as_f64().is_some_and(|value| pushed(values, value)),
            (Self::Texts(values), Value::String(text)) => pushed(values, text.as_str().into()),
            (Self::Texts(values), other) => pushed(values, other.to_string().as_str().into()),
        }
    }
}

fn pushed<T>(values: &mut Vec<T>, value: T) -> bool {
    values.push(value);
    true
}

impl Leaf {
    fn note(&mut self, at: Level) {
        self.definitions.push(at.definition);
        self.repetitions.push(at.repetition);
    }

    fn write(&self, group: &mut SerializedRowGroupWriter<'_, &File>) -> Result<(), ParquetError> {
        let Some(mut column) = group.next_column()? else { return Ok(()) };
        let (definitions, repetitions) = (Some(self.definitions.as_slice()), Some(self.repetitions.as_slice()));
        match &self.values {
            Values::Truths(values) => column.typed::<BoolType>().write_batch(values, definitions, repetitions)?,
            Values::Integers(values) => column.typed::<Int64Type>().write_batch(values, definitions, repetitions)?,
            Values::Numbers(values) => column.typed::<DoubleType>().write_batch(values, definitions, repetitions)?,
            Values::Texts(values) => column.typed::<ByteArrayType>().write_batch(values, definitions, repetitions)?,
        };
        column.close()
    }
}
