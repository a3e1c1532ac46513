//! A model's weights: safetensors files, mapped into memory and used in place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};
use twinkle_core::{Error, Result};
use twinkle_torch::{Frozen, MappedFile};

use crate::config::{ModelConfig, read_json};
use crate::torch::device_error;

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// A folder's tensors by canonical name, none of them read yet.
#[derive(Debug)]
pub struct WeightFiles {
    tensors: BTreeMap<String, Place>,
    /// Tensors that are in memory already.
    in_memory: BTreeMap<String, Tensor>,
    /// Whether a tensor that is nowhere is made of random numbers.
    invents: bool,
    kind: Kind,
    device: Device,
    loaded: Loaded,
}

/// What was taken of a model's files.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The folder; `None`: they were in memory.
    pub(crate) directory: Option<PathBuf>,
    /// The tensors by canonical name, in the order they were taken.
    pub(crate) weights: Vec<(String, Frozen)>,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Place {
    file: MappedFile,
    path: PathBuf,
    range: std::ops::Range<usize>,
    shape: Vec<i64>,
    kind: Kind,
}

impl WeightFiles {
    /// Maps `model.safetensors`, or the shards of `model.safetensors.index.json`, and reads their headers.
    pub fn open(directory: &Path, config: &ModelConfig, kind: Kind, device: Device) -> Result<Self> {
        let mut files = Self::of_tensors(BTreeMap::new(), kind, device);
        files.loaded.directory = Some(directory.to_owned());
        for name in file_names(directory)? {
            files.add_file(&directory.join(name), config)?;
        }
        Ok(files)
    }

    /// Tensors in memory, in the dtype and on the device of the model.
    pub(crate) fn of_tensors(in_memory: BTreeMap<String, Tensor>, kind: Kind, device: Device) -> Self {
        Self { tensors: BTreeMap::new(), in_memory, invents: false, kind, device, loaded: Loaded::default() }
    }

    /// No files: every tensor is made of random numbers when it is taken.
    pub(crate) fn invented(kind: Kind, device: Device) -> Self {
        Self { invents: true, ..Self::of_tensors(BTreeMap::new(), kind, device) }
    }

    fn add_file(&mut self, path: &Path, config: &ModelConfig) -> Result<()> {
        let file = MappedFile::open(path).map_err(|error| Error::invalid(error.to_string()))?;
        let header = SafeTensors::deserialize(file.bytes()).map_err(|error| {
            Error::invalid(format!(
                "`{}` is damaged or cut off ({} bytes): {error}",
                path.display(),
                file.bytes().len()
            ))
            .hint("download or copy the file again")
        })?;
        let base = file.bytes().as_ptr().addr();
        for (name, view) in header.iter() {
            let Some(canonical) = canonical_name(name, config) else {
                continue;
            };
            let start = view.data().as_ptr().addr() - base;
            let place = Place {
                file: file.clone(),
                path: path.to_owned(),
                range: start..start + view.data().len(),
                shape: view.shape().iter().map(|size| *size as i64).collect(),
                kind: float_kind(view.dtype()).ok_or_else(|| {
                    Error::unsupported(format!(
                        "tensor `{name}` in `{}` has dtype {:?}, only BF16, F16 and F32 weights are read",
                        path.display(),
                        view.dtype()
                    ))
                })?,
            };
            if self.tensors.insert(canonical, place).is_some() {
                return Err(Error::invalid(format!("tensor `{name}` occurs twice in `{}`", path.display())));
            }
        }
        Ok(())
    }

    /// Whether there is a tensor `name` that has not been taken.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.in_memory.contains_key(name)
    }

    /// Takes the tensor `name`, which must have this shape. It borrows the file's pages if dtype and device allow.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Frozen> {
        self.take_as(name, shape, self.kind)
    }

    /// Takes the tensor `name`, which must have this shape, in a dtype that need not be the model's.
    pub fn take_as(&mut self, name: &str, shape: &[usize], kind: Kind) -> Result<Frozen> {
        let tensor = match self.in_memory.remove(name) {
            Some(tensor) => tensor,
            None if self.invents => self.invent(shape, kind).map_err(device_error)?,
            None => self.read(name, shape, kind)?,
        };
        self.loaded.bytes += (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        self.loaded.weights.push((name.to_owned(), Frozen::new(tensor.shallow_clone())));
        Ok(Frozen::new(tensor))
    }

    /// As of an untrained model: normal with deviation 0.02.
    fn invent(&self, shape: &[usize], kind: Kind) -> Result<Tensor, tch::TchError> {
        let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let numbers = Tensor::f_randn(shape.as_slice(), (Kind::Float, self.device))?;
        numbers.f_mul_scalar(0.02)?.f_to_kind(kind)
    }

    fn read(&mut self, name: &str, shape: &[usize], kind: Kind) -> Result<Tensor> {
        let place = self
            .tensors
            .remove(name)
            .ok_or_else(|| Error::invalid(format!("the model's files have no tensor `{name}`")))?;
        if !place.shape.iter().copied().eq(shape.iter().map(|size| *size as i64)) {
            return Err(Error::invalid(format!(
                "tensor `{name}` in `{}` has shape {:?}, `config.json` asks for {shape:?}",
                place.path.display(),
                place.shape
            )));
        }
        self.load(&place, kind).map_err(|error| {
            Error::new(error.code, format!("tensor `{name}` in `{}`: {}", place.path.display(), error.message))
        })
    }

    fn load(&self, place: &Place, kind: Kind) -> Result<Tensor> {
        let mapped = place.file.tensor(place.range.clone(), &place.shape, place.kind);
        let tensor = match mapped {
            Ok(tensor) => tensor,
            // A header of odd length leaves the tensors unaligned; only a copy can be used then.
            Err(twinkle_torch::Error::Place { .. }) => {
                Tensor::f_from_data_size(&place.file.bytes()[place.range.clone()], &place.shape, place.kind)
                    .map_err(device_error)?
            }
            Err(error) => return Err(Error::internal(error.to_string())),
        };
        tensor.f_to_device(self.device).and_then(|tensor| tensor.f_to_kind(kind)).map_err(device_error)
    }

    /// Ends the loading: every tensor of the files must have been taken.
    pub fn finish(self) -> Result<Loaded> {
        if let Some((name, place)) = self.tensors.first_key_value() {
            return Err(Error::invalid(format!(
                "the model's files have `{}` tensors that this architecture does not use, the first is `{name}` in `{}`",
                self.tensors.len(),
                place.path.display()
            )));
        }
        Ok(self.loaded)
    }
}

pub(crate) fn file_names(directory: &Path) -> Result<BTreeSet<String>> {
    let index = directory.join(INDEX);
    if index.exists() {
        let index_json = read_json(&index)?;
        let map = index_json
            .get("weight_map")
            .and_then(serde_json::Value::as_object)
            .ok_or_else(|| Error::invalid(format!("`{}` has no `weight_map`", index.display())))?;
        let mut names = BTreeSet::new();
        for name in map.values() {
            let name = name.as_str().filter(|name| is_plain_name(name)).ok_or_else(|| {
                Error::invalid(format!("`{}` names the shard {name}, which is not a file name", index.display()))
            })?;
            names.insert(name.to_owned());
        }
        return Ok(names);
    }
    if directory.join(SINGLE).exists() {
        return Ok(BTreeSet::from([SINGLE.to_owned()]));
    }
    Err(Error::invalid(format!("`{}` holds neither `{SINGLE}` nor `{INDEX}`", directory.display()))
        .hint("only safetensors weights are read; pickled `.bin` files can carry code and are refused"))
}

/// A shard lies beside its index: its name must not lead elsewhere.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\']) && name != ".."
}

/// The name this network uses for a tensor; `None` for one that it rightly leaves out.
pub(crate) fn canonical_name(name: &str, config: &ModelConfig) -> Option<String> {
    let is_other_tower = ["model.visual.", "visual.", "mtp."].iter().any(|prefix| name.starts_with(prefix));
    if is_other_tower || name.ends_with(".rotary_emb.inv_freq") {
        return None;
    }
    let canonical =
        match name.strip_prefix("model.language_model.").or_else(|| name.strip_prefix("language_model.model.")) {
            Some(rest) => format!("model.{rest}"),
            None => name.strip_prefix("language_model.").unwrap_or(name).to_owned(),
        };
    // A tied model may still ship its head; the embedding is what counts.
    if config.tied_embeddings && canonical == "lm_head.weight" {
        return None;
    }
    Some(canonical)
}

/// The name of a tensor in a published checkpoint, given the one this network uses.
pub(crate) fn published_name(canonical: &str, config: &ModelConfig) -> String {
    match canonical.strip_prefix("model.") {
        Some(rest) if config.nested => format!("model.language_model.{rest}"),
        _ => canonical.to_owned(),
    }
}

pub(crate) const fn float_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F16 => Some(Kind::Half),
        Dtype::F32 => Some(Kind::Float),
        _ => None,
    }
}
