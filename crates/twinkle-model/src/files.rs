//! How a run looks on disk, as a checkpoint and as a snapshot.
//!
//! ```text
//! adapter_config.json         PEFT; where all weights are trained `config.json`, `model.safetensors` in fp32 and the
//!                             tokenizer's files instead
//! adapter_model.safetensors   PEFT, fp32; with experts or linear attention Tinker's layout, which repeats nothing
//! optimizer.safetensors       what the optimizer remembers by torch's names (AdamW: exp_avg, exp_avg_sq) and, in a
//!                             snapshot, gradients: fp32, flat in the order of the adapter's modules
//! run.json                    format version, base model, adapter shape, optimizer, schedule and steps
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use twinkle_core::call::{LoraSpec, SavedTraining, TrainingProgress};
use twinkle_core::ids::TenantId;
use twinkle_core::{Error, ErrorCode, Result};
use twinkle_nn::tensor_file::{Entry, FloatFile, TensorFile};
use twinkle_nn::{AdapterLayout, BaseModel, peft};

use crate::accumulation::Accumulation;
use crate::full::FullWeights;
use crate::optimizer::shape::ParameterShape;
use crate::optimizer::state::SavedOptimizer;
use crate::optimizer::{Optimizer, shape};
use crate::run::Run;

pub(crate) const OPTIMIZER_FILE: &str = "optimizer.safetensors";
pub(crate) const RUN_FILE: &str = "run.json";
pub(crate) const FORMAT: u32 = 1;
/// Numbers that are copied out of a tensor at once.
const PART: i64 = 1 << 20;

/// The small part of a run's state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunFile {
    pub(crate) format: u32,
    pub(crate) base_model: String,
    pub(crate) lora: LoraSpec,
    pub(crate) optimizer_steps: u64,
    /// Its settings and schedule; older files know only `AdamW` and have none.
    #[serde(default)]
    pub(crate) optimizer: Option<SavedOptimizer>,
    /// How far it is on its way to the next update; older files know nothing of it.
    #[serde(default)]
    pub(crate) accumulation: Option<Accumulation>,
    /// What a client said about it.
    #[serde(default, skip_serializing_if = "SavedTraining::is_usual")]
    pub(crate) training: SavedTraining,
}

impl RunFile {
    /// Reads it from its text.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let file: Self = serde_json::from_slice(text)
            .map_err(|error| Error::invalid(format!("`{RUN_FILE}` is damaged: {error}")))?;
        if file.format != FORMAT {
            return Err(Error::unsupported(format!(
                "`{RUN_FILE}` has format {}, this server reads {FORMAT}",
                file.format
            )));
        }
        Ok(file)
    }

    /// Refuses what belongs to another base model.
    pub(crate) fn check_base(&self, base_model: &str) -> Result<()> {
        if self.base_model == base_model {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the checkpoint belongs to base model `{}`, not to `{base_model}`",
            self.base_model
        )))
    }

    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::internal(format!("the run's description could not be encoded: {error}")))?;
        write_file(&directory.join(RUN_FILE), &text)
    }
}

/// What is written of a run besides its parameters and its optimizer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    /// What has accumulated since the last step: a snapshot holds it, a checkpoint does not.
    pub gradients: bool,
    /// What a client asked of its checkpoint.
    pub training: SavedTraining,
}

/// A run that was read back.
#[derive(Debug)]
pub struct ReadRun {
    /// The run.
    pub run: Run,
    /// How far it had come.
    pub progress: TrainingProgress,
}

/// Writes only the adapter, for sampling; or all weights.
pub fn write_adapter(directory: &Path, run: &Run) -> Result<()> {
    if let Some(full) = &run.full {
        return full.write(directory, &run.parameters);
    }
    peft::write(directory, &run.layout, &run.parameters, &run.base_model)
}

/// Writes only the adapter, for PEFT: every expert by itself, nothing in parts.
pub fn write_export(directory: &Path, run: &Run) -> Result<()> {
    if run.full.is_some() {
        return write_adapter(directory, run);
    }
    peft::write_as(peft::Format::Peft, directory, &run.layout, &run.parameters, &run.base_model)
}

/// Writes adapter, optimizer and counters, and what `extent` says.
pub fn write_run(directory: &Path, run: &Run, extent: Extent) -> Result<()> {
    write_adapter(directory, run)?;
    if !extent.training.without_optimizer {
        write_optimizer(directory, run, extent.gradients)?;
    }
    let accumulation = if extent.gradients { run.accumulation } else { run.accumulation.without_gradients() };
    RunFile {
        format: FORMAT,
        base_model: run.base_model.clone(),
        lora: run.lora.clone(),
        optimizer_steps: run.optimizer.steps(),
        optimizer: Some(run.optimizer.saved()),
        accumulation: Some(accumulation),
        training: extent.training,
    }
    .write(directory)
}

fn write_optimizer(directory: &Path, run: &Run, with_gradients: bool) -> Result<()> {
    let mut tensors: Vec<(&str, &Tensor)> = run.optimizer.tensors().collect();
    if with_gradients {
        tensors.push(("gradients", run.gradients.flat()));
    }
    let entry = |(name, tensor): &(&str, &Tensor)| Entry {
        name: (*name).to_owned(),
        dtype: Dtype::F32,
        shape: vec![tensor.numel()],
    };
    let entries = tensors.iter().map(entry).collect();
    let mut file = TensorFile::create(&directory.join(OPTIMIZER_FILE), &BTreeMap::new(), entries)?;
    for (_, tensor) in tensors {
        append(&mut file, tensor)?;
    }
    file.finish()
}

/// Appends a flat fp32 tensor part by part: a run that trains all weights has no room for a second copy of them.
pub(crate) fn append(file: &mut TensorFile, tensor: &Tensor) -> Result<()> {
    let length = tensor.numel() as i64;
    if length == 0 {
        return file.append(&[]);
    }
    for start in (0..length).step_by(PART as usize) {
        let part = tensor.narrow(0, start, PART.min(length - start));
        file.append(bytemuck::cast_slice(&flat_values(&part)?))?;
    }
    Ok(())
}

/// Reads a run back. Without `with_optimizer` its optimizer starts afresh; gradients are restored if they are there.
pub fn read_run(
    directory: &Path,
    tenant: TenantId,
    base_model: &str,
    base: &BaseModel,
    with_optimizer: bool,
) -> Result<ReadRun> {
    let file = RunFile::parse(&read_file(&directory.join(RUN_FILE))?)?;
    file.check_base(base_model)?;
    if with_optimizer && file.training.without_optimizer {
        return Err(Error::invalid("the checkpoint holds no optimizer")
            .hint("load its weights alone, or save with the optimizer's state"));
    }
    // Older runs took every backward pass for an update of its own.
    let accumulation =
        file.accumulation.unwrap_or_else(|| Accumulation { steps: file.optimizer_steps, ..Accumulation::default() });
    let progress = TrainingProgress {
        cur_step: accumulation.steps,
        consumed_train_samples: file.training.consumed_train_samples,
        accumulation_steps: accumulation.every,
    };
    let optimizer = |shapes: &[ParameterShape]| -> Result<(Optimizer, Option<Tensor>)> {
        if !with_optimizer {
            return Ok((Optimizer::adam_w(shapes, base.device())?, None));
        }
        let mut tensors = read_flat(&directory.join(OPTIMIZER_FILE), base.device())?;
        let (saved, steps) = (file.optimizer, file.optimizer_steps);
        let optimizer = Optimizer::restored(saved, steps, &mut tensors, shapes, base.device())?;
        Ok((optimizer, tensors.remove("gradients")))
    };
    let (mut run, gradients) = if file.lora.full {
        let full = FullWeights::of(base);
        let masters = full.read(directory)?.to_device(base.device());
        let (optimizer, gradients) = optimizer(&full.shapes())?;
        (Run::of_all_weights((tenant, base_model, file.lora), base, full, masters, optimizer), gradients)
    } else {
        let layout = Arc::new(AdapterLayout::new(base.config(), &file.lora)?);
        let parameters = peft::read_as(directory, base.config(), &layout)?.to_device(base.device());
        let (optimizer, gradients) = optimizer(&shape::of_adapter(&layout))?;
        (Run::assembled((tenant, base_model, file.lora), base, layout, parameters, optimizer), gradients)
    };
    if let Some(gradients) = gradients {
        if gradients.numel() != run.gradients.flat().numel() {
            return Err(Error::invalid(format!("`{OPTIMIZER_FILE}` holds {} gradients", gradients.numel())));
        }
        *run.gradients.flat_mut() = gradients;
    }
    if with_optimizer {
        run.accumulation = accumulation.with_every(accumulation.every.max(1))?;
    }
    Ok(ReadRun { run, progress })
}

fn flat_values(tensor: &Tensor) -> Result<Vec<f32>> {
    Vec::<f32>::try_from(tensor).map_err(|error| Error::internal(format!("a tensor could not be read: {error}")))
}

/// The flat tensors of an optimizer's file.
fn read_flat(path: &Path, device: Device) -> Result<HashMap<String, Tensor>> {
    let file = FloatFile::open(path)?;
    let mut tensors = HashMap::new();
    for name in file.names() {
        let Some(tensor) = file.tensor(name)? else { continue };
        if tensor.dim() != 1 {
            return Err(Error::invalid(format!(
                "tensor `{name}` of `{OPTIMIZER_FILE}` is {:?}, expected one dimension",
                tensor.size()
            )));
        }
        let own = Tensor::empty(tensor.size(), (Kind::Float, device));
        own.shallow_clone().copy_(&tensor);
        tensors.insert(name.to_owned(), own);
    }
    Ok(tensors)
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::invalid(format!("`{}` cannot be read: {error}", path.display())))
}

/// Writes a file, telling a full disk apart from other failures.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|error| io_error("written", path, &error))
}

/// What the disk said, as an error a person can act on.
#[must_use]
pub fn io_error(what: &str, path: &Path, error: &std::io::Error) -> Error {
    let message = format!("`{}` could not be {what}: {error}", path.display());
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Error::new(ErrorCode::ResourceExhausted, message).hint("free space on the server's disk; nothing was lost")
        }
        _ => Error::internal(message),
    }
}
