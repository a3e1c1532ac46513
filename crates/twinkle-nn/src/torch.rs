//! The edge between libtorch's errors and ours: what a failure means, and what a client hears of it.

use tch::{Device, Kind, TchError, Tensor};
use twinkle_core::{Error, ErrorCode};

/// What tensor code inside this crate returns; public functions turn it into [`twinkle_core::Result`].
pub(crate) type TorchResult<T> = Result<T, TchError>;

/// What a failure on the device means for those who go on using it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceFailure {
    /// This one operation did not work; the device does.
    Operation,
    /// There was not enough memory for it; the device works.
    OutOfMemory,
    /// The device, or this process's hold on it, is damaged: nothing it computes or holds can be trusted.
    Lost,
}

/// Reads a failure from what libtorch said, as an error or as a panic.
///
/// CUDA reports errors late and keeps them: after any of its errors but a lack of memory, every later call of the process
/// fails as well.
#[must_use]
pub fn device_failure(text: &str) -> DeviceFailure {
    const OUT_OF_MEMORY: [&str; 3] = ["can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"];
    const LOST: [&str; 4] = [
        "CUDA error:",
        "CUBLAS_STATUS_EXECUTION_FAILED",
        "CUBLAS_STATUS_INTERNAL_ERROR",
        "CUDNN_STATUS_EXECUTION_FAILED",
    ];
    if OUT_OF_MEMORY.iter().any(|sign| text.contains(sign)) {
        return DeviceFailure::OutOfMemory;
    }
    if LOST.iter().any(|sign| text.contains(sign)) {
        return DeviceFailure::Lost;
    }
    DeviceFailure::Operation
}

/// What a client is told when the device has too little memory for its operation.
#[must_use]
pub fn out_of_memory(text: &str) -> Error {
    let first_line = text.lines().next().unwrap_or_default();
    Error::new(ErrorCode::ResourceExhausted, format!("the device is out of memory: {first_line}"))
        .hint("use shorter sequences, a smaller batch or a smaller model")
}

/// A failed tensor operation, as the engine sees it.
#[expect(clippy::needless_pass_by_value, reason = "handed to `map_err`")]
pub(crate) fn device_error(error: TchError) -> Error {
    let text = error.to_string();
    let first_line = text.lines().next().unwrap_or_default();
    match device_failure(first_line) {
        DeviceFailure::OutOfMemory => out_of_memory(first_line),
        DeviceFailure::Operation | DeviceFailure::Lost => {
            Error::internal(format!("a tensor operation failed: {first_line}"))
        }
    }
}

/// Copies a tensor of numbers out as fp32.
pub(crate) fn to_floats(tensor: &Tensor) -> TorchResult<Vec<f32>> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtorch_says_tells_a_full_device_from_a_lost_one() {
        let said = [
            ("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory", "OutOfMemory"),
            ("CUDA out of memory. Tried to allocate 2.00 GiB", "OutOfMemory"),
            ("CUDA error: out of memory", "OutOfMemory"),
            ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "OutOfMemory"),
            ("CUDA error: device-side assert triggered", "Lost"),
            ("CUDA error: an illegal memory access was encountered", "Lost"),
            ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", "Lost"),
            ("The size of tensor a (3) must match the size of tensor b (4)", "Operation"),
        ];
        for (text, expected) in said {
            assert_eq!(format!("{:?}", device_failure(text)), expected, "{text}");
        }
    }
}
