//! Making an object and calling it: from names and arguments to work.

use std::sync::Arc;

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result, suggestion};
use twinkle_core::ids::{SessionId, TenantId};

use super::hands::Hands;
use super::registry::Registry;
use super::{Answered, Arguments, Object, Shared, data_calls, loader_calls, plain_calls};
use crate::dataset::Dataset;

/// The types of objects.
const TYPES: &[&str] = &["dataset", "dataloader", "preprocessor", "processor", "reward", "advantage", "template"];

/// Functions that work on all of a data set.
const LONG: &[&str] =
    &["map", "filter", "encode", "check", "add_dataset", "mix_dataset", "pack_dataset", "save_as", "flush_save"];

/// Makes an object; answers its name.
pub async fn create(
    registry: &Arc<Registry>,
    hands: &Hands,
    (tenant, session): (&TenantId, &SessionId),
    (kind, class): (&str, &str),
    arguments: Map<String, Value>,
) -> Result<String> {
    let mut given = Arguments::new(format!("`{class}`"), arguments);
    given.without_effect(&["remote_group", "device_mesh", "instance_id"]);
    let seat = registry.seat(tenant, session)?;
    let object = match kind {
        "dataset" => data_calls::dataset(registry, hands, tenant, class, given).await?,
        "dataloader" => loader_calls::loader(registry, hands, tenant, class, given).await?,
        "template" => {
            let settings = given.rest();
            Object::Template(hands.template(class, &settings)?)
        }
        "weight_loader" => {
            return Err(Error::unsupported("weights are not loaded through a processor")
                .hint("a model's `load` reads checkpoints, and `save` with `is_sampler` publishes them"));
        }
        other => plain_calls::object(other, class, given)?.ok_or_else(|| {
            Error::invalid(format!("there are no processors of type `{other}`")).hint(suggestion(other, "types", TYPES))
        })?,
    };
    Ok(seat.fill(object))
}

/// Calls a function of an object.
pub async fn call(
    registry: &Registry,
    hands: &Hands,
    tenant: &TenantId,
    (object, function): (&str, &str),
    arguments: Map<String, Value>,
) -> Result<Answered> {
    let object = registry.find(tenant, object)?;
    let mut object = object.lock_owned().await;
    let given = Arguments::new(format!("`{function}`"), arguments);
    let work = match needs_of(&object) {
        Needs::Places { is_stream } => data_calls::of_dataset(hands, tenant, is_stream, function, given).await?,
        Needs::Dataset(dataset) => loader_calls::of_loader(dataset, function, given).await?,
        Needs::Nothing => plain_calls::of(&object, function, given)?,
    };
    let worker = hands.worker(LONG.contains(&function)).await?;
    // The permit goes with the work: a client that leaves does not free a thread that is still busy.
    let done = tokio::task::spawn_blocking(move || {
        let answered = work(&mut object);
        drop((object, worker));
        answered
    });
    done.await.map_err(|error| Error::internal(format!("the call was interrupted: {error}")))?
}

/// What calls of an object need besides the object.
enum Needs {
    /// A data set finds rows elsewhere.
    Places {
        is_stream: bool,
    },
    /// A loader takes rows of a data set.
    Dataset(Shared),
    Nothing,
}

fn needs_of(object: &Object) -> Needs {
    match object {
        Object::Dataset(dataset) => Needs::Places { is_stream: matches!(dataset, Dataset::Streamed(_)) },
        Object::Loader(_, dataset) => Needs::Dataset(Arc::clone(dataset)),
        _ => Needs::Nothing,
    }
}

/// What is answered for a function that an object does not have.
pub(super) fn no_function(of: &str, function: &str, known: &[&str]) -> Error {
    Error::invalid(format!("{of} has no function `{function}`")).hint(suggestion(function, "functions", known))
}
