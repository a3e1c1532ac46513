//! Loaders: what they are made of and which functions they have.

use tokio::sync::OwnedMutexGuard;
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::TenantId;

use super::calls::no_function;
use super::hands::Hands;
use super::registry::Registry;
use super::{Answered, Arguments, Object, Shared, Work};
use crate::dataset::Dataset;
use crate::loader::{DataLoader, InputProcessor, Settings};

const OF_LOADER: &[&str] = &[
    "__len__",
    "__iter__",
    "__next__",
    "set_processor",
    "skip_consumed_samples",
    "resume_from_checkpoint",
    "get_state",
];

/// Makes a loader of a data set that the tenant has.
pub(super) async fn loader(
    registry: &Registry,
    hands: &Hands,
    tenant: &TenantId,
    class: &str,
    mut given: Arguments,
) -> Result<Object> {
    crate::preprocess::class_of(class, "loaders", &["DataLoader"])?;
    let dataset = registry.find(tenant, &given.need_text("dataset")?)?;
    let settings = Settings::read(&mut given, hands.seed)?;
    given.finish()?;
    if !matches!(&*dataset.lock().await, Object::Dataset(_)) {
        return Err(Error::invalid("the argument `dataset` of `DataLoader` is not a data set"));
    }
    Ok(Object::Loader(Box::new(DataLoader::new(settings)), dataset))
}

/// Reads a call of a loader, and waits for the data set it loads from.
pub(super) async fn of_loader(dataset: Shared, function: &str, mut given: Arguments) -> Result<Work> {
    let work = match function {
        "__len__" => on_loader(dataset.lock_owned().await, |loader, dataset| Answered::value(&loader.len(dataset)?)),
        "__iter__" => on_loader(dataset.lock_owned().await, |loader, dataset| {
            loader.begin(dataset)?;
            Answered::value(&"ok")
        }),
        "__next__" => on_loader(dataset.lock_owned().await, |loader, dataset| {
            Ok(loader.next(dataset)?.map_or(Answered::Exhausted, Answered::Value))
        }),
        "set_processor" => {
            let class = given.text("processor_cls")?.unwrap_or_else(|| "InputProcessor".to_owned());
            crate::preprocess::class_of(&class, "processors", &["InputProcessor"])?;
            let processor = InputProcessor::read(&mut given)?;
            on_loader_alone(move |loader| {
                loader.set_processor(processor);
                Answered::nothing()
            })
        }
        "skip_consumed_samples" | "resume_from_checkpoint" => {
            let consumed = given.integer("consumed_train_samples", 0..=i64::MAX)?.unwrap_or(0) as u64;
            if function == "resume_from_checkpoint" {
                // Whatever else a checkpoint says of a run is not about data.
                let _ = given.rest();
            }
            on_loader_alone(move |loader| {
                loader.resume(consumed);
                Answered::nothing()
            })
        }
        "get_state" => {
            on_loader_alone(|loader| Answered::value(&serde_json::json!({"consumed_train_samples": loader.consumed()})))
        }
        _ => return Err(no_function("a loader", function, OF_LOADER)),
    };
    given.finish()?;
    Ok(work)
}

fn on_loader_alone(work: impl FnOnce(&mut DataLoader) -> Result<Answered> + Send + 'static) -> Work {
    Box::new(move |object| match object {
        Object::Loader(loader, _) => work(loader),
        _ => Err(Error::internal("an object became another")),
    })
}

fn on_loader(
    mut dataset: OwnedMutexGuard<Object>,
    work: impl FnOnce(&mut DataLoader, &mut Dataset) -> Result<Answered> + Send + 'static,
) -> Work {
    Box::new(move |object| match (object, &mut *dataset) {
        (Object::Loader(loader, _), Object::Dataset(dataset)) => work(loader, dataset),
        _ => Err(Error::internal("an object became another")),
    })
}
