//! Writing and reading safetensors files tensor by tensor, so that a file larger than the memory can be.
//!
//! Unlike the crate's own writer, this one puts the header's metadata in order: equal contents are equal bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};
use twinkle_core::{Error, ErrorCode, Result};
use twinkle_torch::MappedFile;

/// One tensor of a file that is to be written.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its key.
    pub name: String,
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

impl Entry {
    /// How many bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// A safetensors file whose header is written and whose tensors are being appended.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: BufWriter<File>,
    entries: Vec<Entry>,
    /// Whole tensors that were appended.
    appended: usize,
    /// Bytes of the next one that were appended.
    part: usize,
}

impl TensorFile {
    /// Writes the header of a file with these tensors, which are then appended in this order.
    pub fn create(path: &Path, metadata: &BTreeMap<String, String>, entries: Vec<Entry>) -> Result<Self> {
        let mut header = Map::new();
        if !metadata.is_empty() {
            header.insert("__metadata__".to_owned(), json!(metadata));
        }
        let mut start = 0;
        for entry in &entries {
            let end = start + entry.bytes();
            let place = json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]});
            if header.insert(entry.name.clone(), place).is_some() {
                return Err(Error::internal(format!("tensor `{}` was to be written twice", entry.name)));
            }
            start = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // Tensors begin at a multiple of 8, so that a reader can use them in place.
        header.resize(header.len().next_multiple_of(8), b' ');
        let file = File::create(path).map_err(|error| write_error(path, &error))?;
        let mut written = Self { path: path.to_owned(), file: BufWriter::new(file), entries, appended: 0, part: 0 };
        written.put(&(header.len() as u64).to_le_bytes())?;
        written.put(&header)?;
        Ok(written)
    }

    /// Appends the next tensor, little-endian and row-major, or the next part of it.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let wanted = self.entries.get(self.appended).map_or(0, Entry::bytes);
        self.part += bytes.len();
        if self.part > wanted {
            return Err(Error::internal(format!(
                "{} bytes too many were written to `{}` in tensor {}",
                self.part - wanted,
                self.path.display(),
                self.appended
            )));
        }
        if self.part == wanted {
            self.appended += 1;
            self.part = 0;
        }
        self.put(bytes)
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<()> {
        if let Some(entry) = self.entries.get(self.appended) {
            return Err(Error::internal(format!("tensor `{}` was not written", entry.name)));
        }
        self.file.flush().map_err(|error| write_error(&self.path, &error))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| write_error(&self.path, &error))
    }
}

/// The fp32 tensors of a safetensors file, none of them read yet.
#[derive(Debug)]
pub struct FloatFile {
    path: PathBuf,
    file: MappedFile,
    places: BTreeMap<String, (Range<usize>, Vec<i64>)>,
}

impl FloatFile {
    /// Maps the file and reads its header.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file =
            MappedFile::open(path).map_err(|error| Error::invalid(format!("`{shown}` cannot be read: {error}")))?;
        let header = SafeTensors::deserialize(file.bytes())
            .map_err(|error| Error::invalid(format!("`{shown}` is damaged: {error}")))?;
        let base = file.bytes().as_ptr().addr();
        let mut places = BTreeMap::new();
        for (name, view) in header.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(Error::invalid(format!(
                    "tensor `{name}` of `{shown}` is {:?}, expected F32",
                    view.dtype()
                )));
            }
            let start = view.data().as_ptr().addr() - base;
            let shape = view.shape().iter().map(|size| *size as i64).collect();
            places.insert(name.to_owned(), (start..start + view.data().len(), shape));
        }
        Ok(Self { path: path.to_owned(), file, places })
    }

    /// The names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// A tensor over the file's own pages; `None`: there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some((range, shape)) = self.places.get(name) else { return Ok(None) };
        let failed = |error: &dyn std::fmt::Display| {
            Error::internal(format!("tensor `{name}` of `{}` could not be read: {error}", self.path.display()))
        };
        match self.file.tensor(range.clone(), shape, Kind::Float) {
            Ok(tensor) => Ok(Some(tensor)),
            // A header of odd length leaves the tensors unaligned; only a copy can be used then.
            Err(twinkle_torch::Error::Place { .. }) => {
                let bytes = self.file.bytes().get(range.clone()).unwrap_or_default();
                Tensor::f_from_data_size(bytes, shape, Kind::Float).map(Some).map_err(|error| failed(&error))
            }
            Err(error) => Err(failed(&error)),
        }
    }
}

/// Why a file could not be written, telling a full disk apart from other failures.
pub(crate) fn write_error(path: &Path, error: &io::Error) -> Error {
    let message = format!("`{}` could not be written: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(ErrorCode::ResourceExhausted, message).hint("free space on the server's disk")
        }
        _ => Error::internal(message),
    }
}
