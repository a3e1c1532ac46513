//! The C face of `shim/shim.h`.

use std::ffi::{CStr, c_char, c_int, c_void};

use torch_sys::C_tensor;

use crate::error::{Error, Result};

pub(crate) type TensorPointer = *mut C_tensor;
pub(crate) type ErrorText = *mut c_char;
pub(crate) type Backward = extern "C" fn(
    closure: *mut c_void,
    saved: *const TensorPointer,
    saved_count: usize,
    gradients: *const TensorPointer,
    gradient_count: usize,
    results: *mut TensorPointer,
    result_count: usize,
) -> ErrorText;
pub(crate) type Release = extern "C" fn(owner: *mut c_void);

#[expect(unsafe_code, reason = "the declarations of the shim's C functions")]
// SAFETY: these signatures are those of shim/shim.h, which shim.cpp includes, so the C++ compiler checks its side.
unsafe extern "C" {
    pub(crate) fn twinkle_copy_text(text: *const c_char, length: usize) -> ErrorText;
    pub(crate) fn twinkle_free_text(text: ErrorText);
    pub(crate) fn twinkle_gradients(
        outputs: *const TensorPointer,
        output_gradients: *const TensorPointer,
        output_count: usize,
        inputs: *const TensorPointer,
        input_count: usize,
        keep_graph: c_int,
        results: *mut TensorPointer,
    ) -> ErrorText;
    pub(crate) fn twinkle_attach(
        inputs: *const TensorPointer,
        input_count: usize,
        outputs: *mut TensorPointer,
        output_count: usize,
        saved: *const TensorPointer,
        saved_count: usize,
        backward: Backward,
        closure: *mut c_void,
        release: Release,
    ) -> ErrorText;
    pub(crate) fn twinkle_borrow_memory(
        data: *mut c_void,
        shape: *const i64,
        dimensions: usize,
        scalar_type: c_int,
        owner: *mut c_void,
        release: Release,
        result: *mut TensorPointer,
    ) -> ErrorText;
    pub(crate) fn twinkle_intra_op_threads(count: *mut c_int) -> ErrorText;
    pub(crate) fn twinkle_set_intra_op_threads(count: c_int) -> ErrorText;
    pub(crate) fn twinkle_inter_op_threads(count: *mut c_int) -> ErrorText;
    pub(crate) fn twinkle_set_inter_op_threads(count: c_int) -> ErrorText;
    pub(crate) fn twinkle_cuda_device_count(count: *mut c_int) -> ErrorText;
}

/// Turns the shim's error text into a result, freeing it.
#[expect(unsafe_code, reason = "reads and frees a C string")]
pub(crate) fn check(text: ErrorText) -> Result<()> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null text of the shim is a NUL-terminated string that is ours until we free it, once, below.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: see above; `message` is a copy.
    unsafe { twinkle_free_text(text) };
    let first_line = message.lines().next().unwrap_or("no reason given").to_owned();
    Err(Error::Libtorch(first_line))
}

/// Copies a text into memory the shim may free.
#[expect(unsafe_code, reason = "calls the shim")]
pub(crate) fn error_text(message: &str) -> ErrorText {
    // SAFETY: pointer and length are those of a live string slice; the shim copies it.
    unsafe { twinkle_copy_text(message.as_ptr().cast(), message.len()) }
}
