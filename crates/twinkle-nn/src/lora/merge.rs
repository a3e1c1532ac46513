//! An adapter added to its base model: a full Hugging Face checkpoint of `W + s · B A`.
//!
//! Every shard is read and written block by block, so that the memory holds one block and the adapter. A sum is computed
//! in fp32 and rounded once, to the dtype that the checkpoint has. An adapter on the head of a tied model is a delta on
//! the output side only, so such a merge unties the two: `lm_head.weight` is written and `tie_word_embeddings` turned off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use twinkle_core::{Error, Result};
use twinkle_torch::MappedFile;

use super::layout::{AdapterLayout, LoraModule, Site};
use super::peft;
use super::projection::Projection;
use crate::config::{ModelConfig, read_json};
use crate::tensor_file::{Entry, TensorFile, write_error};
use crate::torch::{TorchResult, device_error};
use crate::weights::{INDEX, SINGLE, canonical_name, file_names, float_kind};

/// Numbers that are summed at a time.
const BLOCK: usize = 1 << 22;
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// Files of a model's folder that hold weights, in forms of which only one is written.
const WEIGHT_FILES: [&str; 8] = [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json"];

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights written.
    pub done: u64,
    /// Bytes of weights to write.
    pub total: u64,
}

/// What a merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Linear maps that were changed; all experts' together count as one.
    pub modules: usize,
    /// Bytes of weights written.
    pub bytes: u64,
    /// Whether the head was tied to the embedding and no longer is.
    pub untied: bool,
}

/// Writes to `output`, a folder that does not exist or is empty, the model of the folder `model` with the adapter of the
/// folder `adapter` added. `progress` is called as it goes on.
///
/// # Errors
/// When a folder is not what it should be, when the adapter is not one of this model, or when the disk is full. Then
/// nothing is left behind.
pub fn merge(model: &Path, adapter: &Path, output: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Merged> {
    let config = ModelConfig::read(model)?;
    let (spec, flat) = peft::read(adapter, &config)?;
    let layout = AdapterLayout::new(&config, &spec)?;
    if fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()) || output.is_file() {
        return Err(Error::invalid(format!("`{}` is there already and not empty", output.display())));
    }
    let aside = aside(output)?;
    let _ = fs::remove_dir_all(&aside);
    fs::create_dir_all(&aside).map_err(|error| write_error(&aside, &error))?;
    let written =
        Merge::new(model, &aside, &config, &layout, &flat).and_then(|merge| merge.run(progress)).and_then(|merged| {
            // An empty folder may stand where the new one goes.
            let _ = fs::remove_dir(output);
            fs::rename(&aside, output).map_err(|error| write_error(output, &error))?;
            Ok(merged)
        });
    if written.is_err() {
        let _ = fs::remove_dir_all(&aside);
    }
    written
}

/// Where the folder is written before it gets its name.
fn aside(output: &Path) -> Result<PathBuf> {
    let name = output
        .file_name()
        .ok_or_else(|| Error::invalid(format!("`{}` is not the name of a new folder", output.display())))?;
    Ok(output.with_file_name(format!(".{}.writing", name.to_string_lossy())))
}

/// `s · B A` of some rows of a tensor, seen as a matrix with its last dimension as columns.
struct Delta {
    rows: Range<usize>,
    /// `[rank, columns]`.
    a: Tensor,
    /// `[rows, rank]`.
    b: Tensor,
    scale: f64,
}

struct Merge<'a> {
    model: &'a Path,
    output: &'a Path,
    config: &'a ModelConfig,
    /// Per canonical name of a tensor what is added to it.
    deltas: BTreeMap<String, Vec<Delta>>,
    modules: usize,
    unties: bool,
    done: u64,
    total: u64,
}

impl<'a> Merge<'a> {
    fn new(
        model: &'a Path,
        output: &'a Path,
        config: &'a ModelConfig,
        layout: &AdapterLayout,
        flat: &Tensor,
    ) -> Result<Self> {
        let mut deltas: BTreeMap<String, Vec<Delta>> = BTreeMap::new();
        for module in layout.modules() {
            for (name, delta) in deltas_of(module, config, flat).map_err(device_error)? {
                deltas.entry(name).or_default().push(delta);
            }
        }
        let unties = config.tied_embeddings && layout.module_at(Site::Head).is_some();
        Ok(Self { model, output, config, deltas, modules: layout.modules().len(), unties, done: 0, total: 0 })
    }

    fn run(mut self, progress: &mut dyn FnMut(Progress)) -> Result<Merged> {
        let shards = file_names(self.model)?;
        let mut places = BTreeMap::new();
        let mut plans = Vec::with_capacity(shards.len());
        for shard in &shards {
            let (file, planned) = self.plan(shard)?;
            for tensor in &planned {
                self.total += tensor.entry.bytes() as u64;
                places.insert(tensor.entry.name.clone(), shard.clone());
            }
            plans.push((shard, file, planned));
        }
        self.check_that_all_is_found(&plans)?;
        for (shard, file, planned) in plans {
            self.write(shard, &file, &planned, progress)?;
        }
        if shards.iter().map(String::as_str).ne([SINGLE]) {
            let index = json!({"metadata": {"total_size": self.total}, "weight_map": places});
            self.write_json(INDEX, &index)?;
        }
        self.copy_the_rest()?;
        Ok(Merged { modules: self.modules, bytes: self.total, untied: self.unties })
    }

    /// What a shard will hold.
    fn plan(&self, shard: &str) -> Result<(MappedFile, Vec<Planned>)> {
        let path = self.model.join(shard);
        let file = MappedFile::open(&path).map_err(|error| Error::invalid(error.to_string()))?;
        let header = SafeTensors::deserialize(file.bytes())
            .map_err(|error| Error::invalid(format!("`{}` is damaged or cut off: {error}", path.display())))?;
        let base = file.bytes().as_ptr().addr();
        let mut planned = Vec::new();
        for (name, view) in header.iter() {
            let start = view.data().as_ptr().addr() - base;
            let entry = Entry { name: name.to_owned(), dtype: view.dtype(), shape: view.shape().to_vec() };
            let canonical = canonical_name(name, self.config);
            // The head that a tied model ships beside its embedding would be in the way of its own.
            if self.unties && canonical.is_none() && name.ends_with(HEAD) {
                continue;
            }
            let source = start..start + view.data().len();
            if self.unties && canonical.as_deref() == Some(EMBEDDING) {
                planned.push(Planned {
                    entry: Entry { name: HEAD.to_owned(), ..entry.clone() },
                    source: source.clone(),
                    canonical: Some(HEAD.to_owned()),
                });
            }
            planned.push(Planned { entry, source, canonical });
        }
        planned.sort_by(|one, other| {
            other
                .entry
                .dtype
                .bitsize()
                .cmp(&one.entry.dtype.bitsize())
                .then_with(|| one.entry.name.cmp(&other.entry.name))
        });
        Ok((file, planned))
    }

    fn check_that_all_is_found(&self, plans: &[(&String, MappedFile, Vec<Planned>)]) -> Result<()> {
        let found: BTreeSet<&str> = plans
            .iter()
            .flat_map(|(_, _, planned)| planned.iter().filter_map(|tensor| tensor.canonical.as_deref()))
            .collect();
        for (layer, projection) in (0..self.config.layer_count)
            .flat_map(|layer| Projection::of_layer(self.config, layer).map(move |projection| (layer, projection)))
            .filter(|(_, projection)| projection.is_expert())
        {
            // Experts have two layouts on disk, of which a model has one.
            let names = expert_names(layer, projection, self.config);
            if self.deltas.contains_key(&names.fused)
                && !found.contains(names.fused.as_str())
                && !names.single.iter().all(|name| found.contains(name.as_str()))
            {
                return Err(missing(&names.fused));
            }
        }
        match self.deltas.keys().find(|name| !name.contains(".mlp.experts.") && !found.contains(name.as_str())) {
            Some(name) => Err(missing(name)),
            None => Ok(()),
        }
    }

    fn write(
        &mut self,
        shard: &str,
        source: &MappedFile,
        planned: &[Planned],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let entries = planned.iter().map(|tensor| tensor.entry.clone()).collect();
        let mut file = TensorFile::create(&self.output.join(shard), &metadata, entries)?;
        for tensor in planned {
            let bytes = &source.bytes()[tensor.source.clone()];
            match tensor.canonical.as_ref().and_then(|name| self.deltas.get(name)) {
                None => file.append(bytes)?,
                Some(deltas) => add(&mut file, &tensor.entry, bytes, deltas)?,
            }
            self.done += bytes.len() as u64;
            progress(Progress { done: self.done, total: self.total });
        }
        file.finish()
    }

    /// Everything that is not a weight: configuration, tokenizer, templates, licence.
    fn copy_the_rest(&self) -> Result<()> {
        let entries = fs::read_dir(self.model)
            .map_err(|error| Error::invalid(format!("`{}` cannot be listed: {error}", self.model.display())))?;
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let is_weight = WEIGHT_FILES.iter().any(|ending| name.ends_with(ending));
            if !path.is_file() || is_weight || name.starts_with('.') || (self.unties && name == "config.json") {
                continue;
            }
            let target = self.output.join(&name);
            fs::copy(&path, &target).map_err(|error| write_error(&target, &error))?;
        }
        if self.unties {
            let mut config = read_json(&self.model.join("config.json"))?;
            config["tie_word_embeddings"] = json!(false);
            if let Some(text) = config.get_mut("text_config").filter(|text| text.is_object()) {
                text["tie_word_embeddings"] = json!(false);
            }
            self.write_json("config.json", &config)?;
        }
        Ok(())
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        let path = self.output.join(name);
        let text = serde_json::to_vec_pretty(value)
            .map_err(|error| Error::internal(format!("`{name}` could not be encoded: {error}")))?;
        fs::write(&path, text).map_err(|error| write_error(&path, &error))
    }
}

/// A tensor that is to be written, and where its numbers are in the source.
struct Planned {
    entry: Entry,
    source: Range<usize>,
    canonical: Option<String>,
}

fn missing(name: &str) -> Error {
    Error::invalid(format!("the adapter changes `{name}`, which the model's files do not have"))
}

/// The two names of the experts' tensors.
struct ExpertNames {
    /// All experts in one tensor, gate and up in one.
    fused: String,
    /// Expert by expert.
    single: Vec<String>,
}

fn expert_names(layer: usize, projection: Projection, config: &ModelConfig) -> ExpertNames {
    let below = format!("model.layers.{layer}.mlp.experts");
    let count = config.moe.as_ref().map_or(0, |moe| moe.expert_count);
    let leaf = projection.leaf();
    let fused = if projection == Projection::ExpertDown { "down_proj" } else { "gate_up_proj" };
    ExpertNames {
        fused: format!("{below}.{fused}"),
        single: (0..count).map(|expert| format!("{below}.{expert}.{leaf}.weight")).collect(),
    }
}

/// What a module adds, under every name that its tensor may have.
fn deltas_of(module: &LoraModule, config: &ModelConfig, flat: &Tensor) -> TorchResult<Vec<(String, Delta)>> {
    let factor = |range: Range<usize>, groups: usize, rows: usize, columns: usize| {
        flat.f_narrow(0, range.start as i64, range.len() as i64)?.f_view([groups as i64, rows as i64, columns as i64])
    };
    let a = factor(module.a_range(), module.a_groups, module.rank, module.inputs)?;
    let b = factor(module.b_range(), module.b_groups, module.outputs, module.rank)?;
    let delta = |expert: usize, first_row: usize| {
        Ok::<_, tch::TchError>(Delta {
            rows: first_row..first_row + module.outputs,
            a: a.f_get(expert.min(module.a_groups - 1) as i64)?,
            b: b.f_get(expert.min(module.b_groups - 1) as i64)?,
            scale: module.scale,
        })
    };
    let Site::Layer(layer, projection) = module.site else {
        return Ok(vec![(HEAD.to_owned(), delta(0, 0)?)]);
    };
    if let Some(rows) = projection.rows_in_qkv(config) {
        let name = format!("model.layers.{layer}.linear_attn.in_proj_qkv.weight");
        return Ok(vec![(name, delta(0, rows.start)?)]);
    }
    if !projection.is_expert() {
        return Ok(vec![(format!("{}.weight", module.name), delta(0, 0)?)]);
    }
    let names = expert_names(layer, projection, config);
    let mut deltas = Vec::with_capacity(2 * names.single.len());
    for (expert, single) in names.single.into_iter().enumerate() {
        let first_row = match projection {
            Projection::ExpertGate => 2 * expert * module.outputs,
            Projection::ExpertUp => (2 * expert + 1) * module.outputs,
            _ => expert * module.outputs,
        };
        deltas.push((names.fused.clone(), delta(expert, first_row)?));
        deltas.push((single, delta(expert, 0)?));
    }
    Ok(deltas)
}

/// Appends a tensor with its deltas added, block of rows by block of rows.
fn add(file: &mut TensorFile, entry: &Entry, bytes: &[u8], deltas: &[Delta]) -> Result<()> {
    let kind = float_kind(entry.dtype).ok_or_else(|| {
        Error::unsupported(format!(
            "tensor `{}` has dtype {:?}, which an adapter is not added to",
            entry.name, entry.dtype
        ))
    })?;
    let columns = entry.shape.last().copied().unwrap_or(1).max(1);
    let rows = entry.shape.iter().product::<usize>() / columns;
    let last = deltas.iter().map(|delta| delta.rows.end).max().unwrap_or(0);
    if last > rows || deltas.iter().any(|delta| delta.a.size()[1] as usize != columns) {
        return Err(Error::invalid(format!(
            "tensor `{}` has shape {:?}, which the adapter does not fit",
            entry.name, entry.shape
        )));
    }
    let row_bytes = columns * entry.dtype.bitsize() / 8;
    let step = (BLOCK / columns).max(1);
    let mut start = 0;
    while start < rows {
        let end = rows.min(start + step);
        let block = Block { rows: start..end, columns, kind, dtype: entry.dtype };
        let sum = block.sum(&bytes[start * row_bytes..end * row_bytes], deltas).map_err(device_error)?;
        file.append(&sum)?;
        start = end;
    }
    Ok(())
}

/// Some rows of a tensor.
struct Block {
    rows: Range<usize>,
    columns: usize,
    kind: Kind,
    dtype: Dtype,
}

impl Block {
    fn sum(&self, bytes: &[u8], deltas: &[Delta]) -> TorchResult<Vec<u8>> {
        let count = self.rows.len();
        let weight = Tensor::f_from_data_size(bytes, &[count as i64, self.columns as i64], self.kind)?;
        // A copy, also where it is fp32 already.
        let sum = weight.f_totype(Kind::Float)?.f_contiguous()?.copy();
        for delta in deltas {
            let (first, last) = (self.rows.start.max(delta.rows.start), self.rows.end.min(delta.rows.end));
            if first >= last {
                continue;
            }
            let length = (last - first) as i64;
            let b = delta.b.f_narrow(0, (first - delta.rows.start) as i64, length)?;
            let product = b.f_matmul(&delta.a)?;
            let mut target = sum.f_narrow(0, (first - self.rows.start) as i64, length)?;
            let _ = target.f_add_(&product.f_mul_scalar(delta.scale)?)?;
        }
        let rounded = sum.f_to_kind(self.kind)?.f_contiguous()?;
        let mut written = vec![0_u8; count * self.columns * self.dtype.bitsize() / 8];
        rounded.f_copy_data_u8(&mut written, rounded.numel())?;
        Ok(written)
    }
}
