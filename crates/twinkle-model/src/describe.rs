//! How a run is, for those who ask: never a change.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use twinkle_core::call::{NamedTensor, RunState};
use twinkle_core::ids::RunId;
use twinkle_core::{Error, ErrorCode, Result};

use crate::engine::EngineContext;
use crate::files;
use crate::run::Run;

/// Most trained numbers that one answer gives the values of: 64 MiB of them.
const MOST_VALUES: u64 = 16 << 20;

/// What a run has come to; with `values` also the numbers of its trained tensors.
pub(crate) fn describe(context: &EngineContext, id: &RunId, run: &Run, values: bool) -> Result<RunState> {
    let trained = run.parameters.numel();
    let parameters = if values {
        read_values(&context.snapshots.join(id.as_str()).join(".described"), run, trained as u64)?
    } else {
        names(run)
    };
    let base = context.base.weight_layout().count();
    Ok(RunState {
        cur_step: run.accumulation.steps,
        accumulation_steps: run.accumulation.every,
        optimizer_steps: run.optimizer.steps(),
        optimizer: run.optimizer.spec().clone(),
        scheduler: run.optimizer.scheduler().cloned(),
        trained: trained as u64,
        base: base as u64,
        parameters,
    })
}

/// Names and shapes, without values; those of experts as they are in memory.
fn names(run: &Run) -> Vec<NamedTensor> {
    let named = |name: String, shape: Vec<usize>| NamedTensor { name, shape, values: Vec::new() };
    if let Some(full) = &run.full {
        let weights = full.layout().weights().iter();
        return weights
            .map(|weight| named(weight.name.clone(), weight.shape.iter().map(|size| *size as usize).collect()))
            .collect();
    }
    let factors = run.layout.modules().iter().flat_map(|module| {
        [
            named(format!("base_model.model.{}.lora_A.weight", module.name), module.a_shape()),
            named(format!("base_model.model.{}.lora_B.weight", module.name), module.b_shape()),
        ]
    });
    factors.collect()
}

/// The tensors as a checkpoint has them: under the same names, in the same shapes.
fn read_values(folder: &Path, run: &Run, count: u64) -> Result<Vec<NamedTensor>> {
    if count > MOST_VALUES {
        return Err(Error::new(
            ErrorCode::TooLarge,
            format!("the run trains {count} numbers, and one answer holds at most {MOST_VALUES}"),
        )
        .hint("save a checkpoint and read its `adapter_model.safetensors`"));
    }
    // The engine's thread alone writes here. What a crash leaves is written over.
    fs::create_dir_all(folder).map_err(|error| files::io_error("created", folder, &error))?;
    let file = if run.full.is_some() { "model.safetensors" } else { "adapter_model.safetensors" };
    let tensors = files::write_adapter(folder, run).and_then(|()| read_file(&folder.join(file)));
    let removed = fs::remove_dir_all(folder);
    let tensors = tensors?;
    removed.map_err(|error| files::io_error("removed", folder, &error))?;
    Ok(tensors)
}

fn read_file(path: &Path) -> Result<Vec<NamedTensor>> {
    let bytes = fs::read(path).map_err(|error| files::io_error("read", path, &error))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Error::internal(format!("`{}` is damaged: {error}", path.display())))?;
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(Error::internal(format!("tensor `{name}` is {:?}, expected F32", view.dtype())));
        }
        let (numbers, _) = view.data().as_chunks::<4>();
        let values = numbers.iter().map(|number| f32::from_le_bytes(*number)).collect();
        tensors.push(NamedTensor { name, shape: view.shape().to_vec(), values });
    }
    tensors.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tensors)
}
