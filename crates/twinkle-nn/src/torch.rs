//! The edge between libtorch's errors and ours.

use tch::{Device, Kind, TchError, Tensor};
use twinkle_core::{Error, ErrorCode};

/// What tensor code inside this crate returns; public functions turn it into [`twinkle_core::Result`].
pub(crate) type TorchResult<T> = Result<T, TchError>;

/// A failed tensor operation, as the engine sees it.
#[expect(clippy::needless_pass_by_value, reason = "handed to `map_err`")]
pub(crate) fn device_error(error: TchError) -> Error {
    let text = error.to_string();
    let first_line = text.lines().next().unwrap_or_default().to_owned();
    if first_line.contains("can't allocate memory") || first_line.contains("out of memory") {
        return Error::new(ErrorCode::ResourceExhausted, format!("the device is out of memory: {first_line}"))
            .hint("use shorter sequences, a smaller batch or a smaller model");
    }
    Error::internal(format!("a tensor operation failed: {first_line}"))
}

/// Copies a tensor of numbers out as fp32.
pub(crate) fn to_floats(tensor: &Tensor) -> TorchResult<Vec<f32>> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    Ok(values)
}
