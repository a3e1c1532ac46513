//! Tensors that borrow a file's pages.

use std::ffi::c_void;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::ffi;

/// A file in memory, page by page as it is touched. Tensors made from it keep it mapped.
///
/// The mapping is private (copy-on-write), so nothing done to a tensor reaches the file. The file must not be
/// truncated while it is mapped: reading a page that is gone ends the process with `SIGBUS`, as it does in every
/// program that maps weights.
#[derive(Clone, Debug)]
pub struct MappedFile {
    map: Arc<MmapMut>,
}

impl MappedFile {
    /// Maps a whole file.
    #[expect(unsafe_code, reason = "mapping a file that others could change")]
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Map { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the map is private and we hand out only shared bytes and tensors. Another process that truncates the
        // file while it is mapped breaks this promise; the type's documentation says so.
        let map = unsafe { MmapOptions::new().map_copy(&file) }.map_err(failed)?;
        Ok(Self { map: Arc::new(map) })
    }

    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A contiguous tensor of this shape over the bytes at `place`, without a copy.
    ///
    /// The place must lie inside the file, be as long as the shape says and start at a multiple of the element size.
    #[expect(unsafe_code, reason = "a tensor over borrowed memory")]
    pub fn tensor(&self, place: Range<usize>, shape: &[i64], kind: Kind) -> Result<Tensor> {
        let length = self.map.len();
        let refuse = |reason| Err(Error::Place { start: place.start, end: place.end, length, reason });
        if place.start > place.end || place.end > length {
            return refuse("it reaches outside the file");
        }
        let elements =
            shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?));
        if elements.and_then(|elements| elements.checked_mul(kind.elt_size_in_bytes())) != Some(place.len()) {
            return refuse("its length is not that of the shape");
        }
        let data = self.map[place.clone()].as_ptr();
        if !data.addr().is_multiple_of(kind.elt_size_in_bytes()) {
            return refuse("it is not aligned to its elements");
        }

        let Some(scalar_type) = scalar_type(kind) else {
            return refuse("its dtype is not one that files hold");
        };

        let owner = Arc::into_raw(Arc::clone(&self.map)).cast::<c_void>().cast_mut();
        let mut tensor = std::ptr::null_mut();
        // SAFETY: `data` points at `place.len()` readable, private (hence writable) bytes that live as long as the map.
        // `owner` is one strong count of the map, given back by `release_map` exactly once, also on failure.
        let text = unsafe {
            ffi::twinkle_borrow_memory(
                data.cast_mut().cast(),
                shape.as_ptr(),
                shape.len(),
                scalar_type,
                owner,
                release_map,
                &raw mut tensor,
            )
        };
        ffi::check(text)?;
        // SAFETY: the shim made a new tensor for us to own.
        Ok(unsafe { Tensor::from_ptr(tensor) })
    }
}

/// libtorch's number of a dtype (`c10/core/ScalarType.h`); tch keeps its own copy private.
const fn scalar_type(kind: Kind) -> Option<i32> {
    match kind {
        Kind::Uint8 => Some(0),
        Kind::Int8 => Some(1),
        Kind::Int16 => Some(2),
        Kind::Int => Some(3),
        Kind::Int64 => Some(4),
        Kind::Half => Some(5),
        Kind::Float => Some(6),
        Kind::Double => Some(7),
        Kind::Bool => Some(11),
        Kind::BFloat16 => Some(15),
        _ => None,
    }
}

/// Gives back the count of the map that a tensor held.
#[expect(unsafe_code, reason = "takes ownership back from C++")]
extern "C" fn release_map(owner: *mut c_void) {
    // SAFETY: `owner` came from `Arc::into_raw` in `MappedFile::tensor`, and the shim calls this once per such pointer.
    drop(unsafe { Arc::from_raw(owner.cast::<MmapMut>().cast_const()) });
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file_of(values: &[f32]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for value in values {
            file.write_all(&value.to_le_bytes()).unwrap();
        }
        file
    }

    #[test]
    fn a_tensor_outlives_the_handle_and_the_name_of_its_file() {
        let file = file_of(&[1.0, 2.0, 3.0, 4.0]);
        let mapped = MappedFile::open(file.path()).unwrap();
        let address = mapped.bytes().as_ptr().addr();
        let tensor = mapped.tensor(4..16, &[3], Kind::Float).unwrap();
        assert_eq!(tensor.data_ptr().addr(), address + 4, "the tensor was copied");
        drop(mapped);
        drop(file);
        assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), [2.0, 3.0, 4.0]);
    }

    #[test]
    fn writing_to_a_tensor_does_not_reach_the_file() {
        let file = file_of(&[1.0, 2.0]);
        let mut tensor = MappedFile::open(file.path()).unwrap().tensor(0..8, &[2], Kind::Float).unwrap();
        let _ = tensor.fill_(9.0);
        assert_eq!(std::fs::read(file.path()).unwrap()[..4], 1.0_f32.to_le_bytes());
    }

    #[test]
    fn places_outside_the_file_or_across_elements_are_refused() {
        let file = file_of(&[1.0, 2.0]);
        let mapped = MappedFile::open(file.path()).unwrap();
        for (place, shape) in
            [(0..12, vec![3]), (0..8, vec![3]), (2..6, vec![1]), (4..8, vec![-1]), (0..8, vec![i64::MAX, 4])]
        {
            assert!(mapped.tensor(place.clone(), &shape, Kind::Float).is_err(), "{place:?} {shape:?} was accepted");
        }
    }

    #[test]
    fn the_dtype_of_a_tensor_is_the_one_asked_for() {
        let file = file_of(&[0.0; 4]);
        let mapped = MappedFile::open(file.path()).unwrap();
        for kind in [
            Kind::Uint8,
            Kind::Int16,
            Kind::Int,
            Kind::Int64,
            Kind::Half,
            Kind::Float,
            Kind::Double,
            Kind::Bool,
            Kind::BFloat16,
        ] {
            let count = 16 / kind.elt_size_in_bytes();
            assert_eq!(mapped.tensor(0..16, &[count as i64], kind).unwrap().kind(), kind);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = MappedFile::open(Path::new("/nowhere/model.safetensors")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/model.safetensors"), "{error}");
    }
}
