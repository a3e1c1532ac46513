//! Data sets: what they are made of and which functions they have.

use std::sync::Arc;

use serde_json::Value;
use twinkle_core::error::{Error, Result, suggestion};
use twinkle_core::ids::TenantId;

use super::calls::no_function;
use super::hands::Hands;
use super::registry::Registry;
use super::{Answered, Arguments, Object, Work};
use crate::data::{DatasetMeta, Format, Saver, Source, Table};
use crate::dataset::{Dataset, Indexed, Kind, Mix, Operation, Packs, Streamed};
use crate::preprocess::{filter, preprocessor};

const CLASSES: &[&str] = &["Dataset", "LazyDataset", "IterableDataset", "PackingDataset", "IterablePackingDataset"];

/// Arguments of Python's `datasets` that change nothing here: how work is spread, and caches that do not exist.
const OF_PYTHON: &[&str] = &[
    "num_proc",
    "load_from_cache_file",
    "keep_in_memory",
    "batched",
    "batch_size",
    "writer_batch_size",
    "desc",
    "download_mode",
    "trust_remote_code",
    "timeout",
    "packing_num_proc",
];

const OF_DATASET: &[&str] = &[
    "set_template",
    "encode",
    "check",
    "cast_column",
    "map",
    "filter",
    "add_dataset",
    "mix_dataset",
    "save_as",
    "flush_save",
    "pack_dataset",
    "__getitem__",
    "__len__",
    "__iter__",
    "__next__",
];

/// Makes a data set.
pub(super) async fn dataset(
    registry: &Registry,
    hands: &Hands,
    tenant: &TenantId,
    class: &str,
    mut given: Arguments,
) -> Result<Object> {
    let class = crate::preprocess::class_of(class, "data sets", CLASSES)?;
    let packs = match class {
        "IterablePackingDataset" => Some(Packs {
            interval: given.integer("packing_interval", 1..=100_000)?.unwrap_or(128) as usize,
            cyclic: given.flag("cyclic")?.unwrap_or(false),
        }),
        _ => None,
    };
    let is_stream = class.starts_with("Iterable");
    if given.flag("streaming")?.is_some_and(|streaming| streaming != is_stream) {
        return Err(Error::invalid(format!("`streaming` does not go with `{class}`"))
            .hint("`IterableDataset` streams, and the others keep their rows in memory"));
    }
    let part = part(hands, tenant, &mut given, false).await?;
    given.finish()?;
    let mut dataset = match class {
        "IterableDataset" | "IterablePackingDataset" => Dataset::Streamed(Box::new(Streamed::new(packs))),
        _ => {
            let kind = match class {
                "LazyDataset" => Kind::Lazy,
                "PackingDataset" => Kind::Packing,
                _ => Kind::Eager,
            };
            Dataset::Indexed(Box::new(Indexed::new(kind, registry.room(tenant), Arc::clone(&hands.workers))))
        }
    };
    let Some(part) = part else { return Ok(Object::Dataset(dataset)) };
    let worker = hands.worker(true).await?;
    let read = tokio::task::spawn_blocking(move || {
        part.add_to(&mut dataset)?;
        drop(worker);
        Ok(dataset)
    });
    let dataset: Result<Dataset> =
        read.await.map_err(|error| Error::internal(format!("reading rows was interrupted: {error}")))?;
    dataset.map(Object::Dataset)
}

/// Rows that become a part of a data set.
struct Part {
    meta: DatasetMeta,
    source: Source,
}

impl Part {
    /// Reads the rows, or notes where a stream finds them. Blocking.
    fn add_to(self, dataset: &mut Dataset) -> Result<()> {
        let key = self.meta.key();
        match dataset {
            Dataset::Streamed(dataset) => dataset.add(key, self.source, self.meta.slice),
            Dataset::Indexed(dataset) => {
                let table = Table::collect(dataset.room(), self.source.rows())?;
                dataset.add(
                    key,
                    match &self.meta.slice {
                        Some(slice) => slice.of_table(&table)?,
                        None => table,
                    },
                );
                Ok(())
            }
        }
    }
}

/// The part that `dataset_meta` describes.
async fn part(hands: &Hands, tenant: &TenantId, given: &mut Arguments, needed: bool) -> Result<Option<Part>> {
    let meta = meta(given)?;
    let revision = given.text("revision")?;
    given.without_effect(OF_PYTHON);
    let Some(meta) = meta else {
        return if needed { Err(Error::invalid("`add_dataset` needs the argument `dataset_meta`")) } else { Ok(None) };
    };
    let source = hands.places.source(tenant, &meta, revision.as_deref()).await?;
    Ok(Some(Part { meta, source }))
}

fn meta(given: &mut Arguments) -> Result<Option<DatasetMeta>> {
    given.object("dataset_meta")?.map(DatasetMeta::read).transpose()
}

/// Reads a call of a data set.
pub(super) async fn of_dataset(
    hands: &Hands,
    tenant: &TenantId,
    is_stream: bool,
    function: &str,
    mut given: Arguments,
) -> Result<Work> {
    let work = match function {
        "set_template" => {
            let class = template_class(&mut given)?;
            let template = hands.template(&class, &given.rest())?;
            on_dataset(move |dataset| match dataset {
                Dataset::Indexed(dataset) => {
                    dataset.set_template(template);
                    Answered::nothing()
                }
                Dataset::Streamed(dataset) => dataset.set_template(template).and_then(|()| Answered::nothing()),
            })
        }
        "add_dataset" => {
            given.without_effect(&["streaming"]);
            let part = part(hands, tenant, &mut given, true).await?;
            on_dataset(move |dataset| {
                part.map_or(Ok(()), |part| part.add_to(dataset))?;
                Answered::nothing()
            })
        }
        "save_as" => save_as(hands, tenant, &mut given)?,
        _ => at_once(is_stream, function, &mut given)?,
    };
    given.finish()?;
    Ok(work)
}

fn template_class(given: &mut Arguments) -> Result<String> {
    let class = given.text("template_func")?;
    match class.or(given.text("template_cls")?) {
        Some(class) => Ok(class),
        None => Err(Error::invalid("`set_template` needs the argument `template_func`").hint("name `Template`")),
    }
}

fn save_as(hands: &Hands, tenant: &TenantId, given: &mut Arguments) -> Result<Work> {
    let path = given.need_text("output_path")?;
    let format = Format::to_save(given.text("format")?.as_deref(), &path)?;
    let target = hands.places.target(tenant, &path)?;
    given.without_effect(OF_PYTHON);
    let while_taken = match given.text("mode")?.as_deref() {
        None | Some("immediate") => false,
        Some("training") => true,
        Some(other) => {
            return Err(Error::invalid(format!("`mode` is `{other}`")).hint(suggestion(
                other,
                "modes",
                &["immediate", "training"],
            )));
        }
    };
    Ok(on_dataset(move |dataset| {
        let saver = Saver::create(&target, format)?;
        match (dataset, while_taken) {
            (Dataset::Indexed(dataset), true) => dataset.save_while_taken(saver),
            (Dataset::Streamed(dataset), true) => dataset.save_while_taken(saver),
            (Dataset::Indexed(dataset), false) => dataset.save(saver)?,
            (Dataset::Streamed(dataset), false) => dataset.save(saver)?,
        }
        Answered::nothing()
    }))
}

/// Calls that need nothing from elsewhere.
fn at_once(is_stream: bool, function: &str, given: &mut Arguments) -> Result<Work> {
    Ok(match function {
        "map" | "filter" => of_rows(function, given)?,
        "encode" => {
            let is_prompt = given.flag("add_generation_prompt")?.unwrap_or(false);
            let removed = given.texts("remove_columns")?.unwrap_or_default();
            given.without_effect(OF_PYTHON);
            on_dataset(move |dataset| {
                match dataset {
                    Dataset::Indexed(dataset) => dataset.encode(is_prompt, removed)?,
                    Dataset::Streamed(dataset) => dataset.encode(is_prompt, removed)?,
                }
                Answered::nothing()
            })
        }
        "check" => {
            given.without_effect(OF_PYTHON);
            on_dataset(|dataset| {
                match dataset {
                    Dataset::Indexed(dataset) => dataset.check()?,
                    Dataset::Streamed(dataset) => dataset.check()?,
                }
                Answered::nothing()
            })
        }
        "mix_dataset" => {
            let mix = if given.flag("interleave")?.unwrap_or(true) { Mix::Interleave } else { Mix::Concatenate };
            on_dataset(move |dataset| {
                match dataset {
                    Dataset::Indexed(dataset) => dataset.mix(mix)?,
                    Dataset::Streamed(dataset) => dataset.mix(mix),
                }
                Answered::nothing()
            })
        }
        "cast_column" => cast_column(given)?,
        "pack_dataset" => on_dataset(|dataset| {
            match dataset {
                Dataset::Indexed(dataset) if dataset.kind() == Kind::Packing => dataset.pack()?,
                Dataset::Streamed(dataset) => dataset.pack()?,
                Dataset::Indexed(_) => {
                    return Err(Error::invalid("this data set does not pack").hint("make a `PackingDataset`"));
                }
            }
            Answered::nothing()
        }),
        "flush_save" => on_dataset(|dataset| {
            match dataset {
                Dataset::Indexed(dataset) => dataset.finish_saving()?,
                Dataset::Streamed(dataset) => dataset.finish_saving()?,
            }
            Answered::nothing()
        }),
        "__getitem__" | "__len__" if is_stream => {
            return Err(Error::invalid(format!("a stream has no `{function}`")).hint("call `__iter__` and `__next__`"));
        }
        "__iter__" | "__next__" if !is_stream => {
            return Err(Error::invalid(format!("this data set has no `{function}`"))
                .hint("take rows by their number, or through a `DataLoader`"));
        }
        "__getitem__" => getitem(given)?,
        "__len__" => on_dataset(|dataset| match dataset {
            Dataset::Indexed(dataset) => Answered::value(&dataset.len()?),
            Dataset::Streamed(_) => Answered::nothing(),
        }),
        "__iter__" => on_dataset(|dataset| match dataset {
            Dataset::Streamed(dataset) => dataset.begin().and_then(|()| Answered::value(&"ok")),
            Dataset::Indexed(_) => Answered::nothing(),
        }),
        "__next__" => on_dataset(|dataset| match dataset {
            Dataset::Streamed(dataset) => {
                dataset.next_row()?.map_or(Ok(Answered::Exhausted), |row| Answered::value(&row))
            }
            Dataset::Indexed(_) => Answered::nothing(),
        }),
        _ => return Err(no_function("a data set", function, OF_DATASET)),
    })
}

/// `map` and `filter`.
fn of_rows(function: &str, given: &mut Arguments) -> Result<Work> {
    let argument = if function == "map" { "preprocess_func" } else { "filter_func" };
    let name = given.need_text(argument)?;
    let key = meta(given)?.map(|meta| meta.key());
    let init_args = given.object("init_args")?.unwrap_or_default();
    given.without_effect(OF_PYTHON);
    let operation = if function == "map" {
        let removed = given.texts("remove_columns")?.unwrap_or_default();
        Operation::Map(preprocessor(&name, init_args)?.into(), removed.into())
    } else {
        Operation::Filter(filter(&name, init_args)?.into())
    };
    Ok(on_dataset(move |dataset| {
        match (dataset, &operation) {
            (Dataset::Indexed(dataset), Operation::Filter(_)) => dataset.filter(&operation, key.as_deref())?,
            (Dataset::Indexed(dataset), _) => dataset.map(operation, key.as_deref())?,
            (Dataset::Streamed(dataset), _) => dataset.map(operation, key.as_deref())?,
        }
        Answered::nothing()
    }))
}

fn cast_column(given: &mut Arguments) -> Result<Work> {
    let column = given.need_text("column")?;
    if given.flag("decode")?.unwrap_or(true) {
        return Err(Error::unsupported("images are not decoded on this server")
            .hint("`decode=False` keeps them as they are, which they always are here"));
    }
    Ok(on_dataset(move |dataset| match dataset {
        Dataset::Indexed(dataset) if !dataset.has_column(&column)? => {
            Err(Error::invalid(format!("the data set has no column `{column}`")))
        }
        _ => Answered::nothing(),
    }))
}

fn getitem(given: &mut Arguments) -> Result<Work> {
    let index = match given.take("idx") {
        Some(index) => Some(index),
        None => given.take("index"),
    };
    let index = index.as_ref().and_then(Value::as_i64).ok_or_else(|| {
        Error::invalid("`__getitem__` needs the number of a row").hint("slices and names of columns are not taken")
    })?;
    Ok(on_dataset(move |dataset| {
        let Dataset::Indexed(dataset) = dataset else { return Answered::nothing() };
        let length = dataset.len()?;
        let place = if index < 0 { index + length as i64 } else { index };
        let place = usize::try_from(place).map_err(|_| crate::data::out_of_range(index, length))?;
        match dataset.row(place)? {
            Some(row) => serde_json::value::RawValue::from_string(row.to_string())
                .map(Answered::Value)
                .map_err(|error| Error::internal(format!("a row is not JSON: {error}"))),
            None => Answered::nothing(),
        }
    }))
}

fn on_dataset(work: impl FnOnce(&mut Dataset) -> Result<Answered> + Send + 'static) -> Work {
    Box::new(move |object| match object {
        Object::Dataset(dataset) => work(dataset),
        _ => Err(Error::internal("an object became another")),
    })
}
