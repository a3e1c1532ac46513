//! The numbers of a tensor on the processor, as slices.

use std::ffi::c_void;

use half::bf16;
use tch::{Device, Kind, Tensor};

/// A contiguous bf16 tensor's numbers; `None` for any other tensor.
///
/// As with [`crate::Frozen`]: nobody may write through another alias of the tensor meanwhile.
#[must_use]
pub fn bf16s(tensor: &Tensor) -> Option<&[bf16]> {
    let place = place(tensor, Kind::BFloat16)?;
    #[expect(unsafe_code, reason = "a view of libtorch's memory")]
    // SAFETY: `place` has `numel` numbers of this type, which live as long as the tensor.
    Some(unsafe { std::slice::from_raw_parts(place.cast::<bf16>(), tensor.numel()) })
}

/// A contiguous bf16 tensor's numbers, for writing; `None` for any other tensor.
///
/// The tensor must be the only alias in use: not a view of one that is read or written meanwhile.
#[must_use]
pub fn bf16s_mut(tensor: &mut Tensor) -> Option<&mut [bf16]> {
    let place = place(tensor, Kind::BFloat16)?;
    #[expect(unsafe_code, reason = "a view of libtorch's memory")]
    // SAFETY: as in `bf16s`; the tensor is borrowed mutably, and by the rule above no other alias is in use.
    Some(unsafe { std::slice::from_raw_parts_mut(place.cast::<bf16>(), tensor.numel()) })
}

/// A contiguous fp32 tensor's numbers, by the rules of [`bf16s`].
#[must_use]
pub fn f32s(tensor: &Tensor) -> Option<&[f32]> {
    let place = place(tensor, Kind::Float)?;
    #[expect(unsafe_code, reason = "a view of libtorch's memory")]
    // SAFETY: as in `bf16s`.
    Some(unsafe { std::slice::from_raw_parts(place.cast::<f32>(), tensor.numel()) })
}

/// A contiguous fp32 tensor's numbers, for writing, by the rules of [`bf16s_mut`].
#[must_use]
pub fn f32s_mut(tensor: &mut Tensor) -> Option<&mut [f32]> {
    let place = place(tensor, Kind::Float)?;
    #[expect(unsafe_code, reason = "a view of libtorch's memory")]
    // SAFETY: as in `bf16s_mut`.
    Some(unsafe { std::slice::from_raw_parts_mut(place.cast::<f32>(), tensor.numel()) })
}

fn place(tensor: &Tensor, kind: Kind) -> Option<*mut c_void> {
    let fits = tensor.device() == Device::Cpu && tensor.kind() == kind && tensor.is_contiguous();
    // An empty tensor may have no memory at all.
    (fits && tensor.numel() > 0).then(|| tensor.data_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_written_in_place() {
        let mut tensor = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).to_kind(Kind::BFloat16);
        bf16s_mut(&mut tensor).unwrap()[1] = bf16::from_f32(7.0);
        assert_eq!(bf16s(&tensor.narrow(0, 1, 2)).unwrap(), [bf16::from_f32(7.0), bf16::from_f32(3.0)]);
        let mut floats = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        f32s_mut(&mut floats).unwrap()[0] = 4.0;
        assert_eq!(Vec::<f32>::try_from(&floats).unwrap(), [4.0, 0.0]);
    }

    #[test]
    fn other_tensors_have_no_slice() {
        let tensor = Tensor::zeros([4, 4], (Kind::Float, Device::Cpu));
        assert!(bf16s(&tensor).is_none() && f32s_mut(&mut tensor.tr()).is_none());
        assert!(f32s_mut(&mut Tensor::zeros([0], (Kind::Float, Device::Cpu))).is_none());
    }
}
