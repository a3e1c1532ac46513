//! CUDA, only when it is asked for.
//!
//! The program links libtorch's CPU half. Its CUDA half is opened at run time, before libtorch is first asked about
//! CUDA, so that one binary serves machines with and without it.

use std::ffi::{CStr, CString, c_int};
use std::sync::OnceLock;

use tch::Device;

use crate::error::{Error, Result};
use crate::ffi;

const LIBRARY: &CStr = c"libtorch_cuda.so";

/// The device of this name: `cpu`, `cuda` or `cuda:<number>`. A CUDA device is checked to be there.
pub fn device(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let number = match name {
        "cuda" | "gpu" => 0,
        _ => name
            .strip_prefix("cuda:")
            .and_then(|number| number.parse::<usize>().ok())
            .ok_or_else(|| Error::Device(name.to_owned()))?,
    };
    let count = device_count()?;
    if number >= count {
        return Err(Error::Cuda(format!("`{name}` was asked for, this machine has {count} CUDA devices")));
    }
    Ok(Device::Cuda(number))
}

/// How many CUDA devices there are; an error if libtorch's CUDA half is not there.
#[expect(unsafe_code, reason = "calls the shim")]
pub fn device_count() -> Result<usize> {
    load()?;
    let mut count: c_int = 0;
    // SAFETY: the shim writes one int to a live int.
    ffi::check(unsafe { ffi::twinkle_cuda_device_count(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Free and total bytes of the CUDA device of this number.
#[expect(unsafe_code, reason = "calls the CUDA runtime that libtorch has loaded")]
pub fn memory(number: usize) -> Result<(u64, u64)> {
    type GetDevice = unsafe extern "C" fn(*mut c_int) -> c_int;
    type SetDevice = unsafe extern "C" fn(c_int) -> c_int;
    type GetMemory = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;

    let count = device_count()?;
    let wanted = c_int::try_from(number).ok().filter(|_| number < count);
    let wanted = wanted.ok_or_else(|| Error::Cuda(format!("there is no device `{number}`, but `{count}` of them")))?;
    let (get, set, ask) = (symbol(c"cudaGetDevice")?, symbol(c"cudaSetDevice")?, symbol(c"cudaMemGetInfo")?);
    // SAFETY: these are the documented C signatures of the CUDA runtime's functions of these names.
    let (get, set, ask) = unsafe {
        (
            std::mem::transmute::<*mut libc::c_void, GetDevice>(get),
            std::mem::transmute::<*mut libc::c_void, SetDevice>(set),
            std::mem::transmute::<*mut libc::c_void, GetMemory>(ask),
        )
    };
    let (mut before, mut free, mut total) = (0, 0, 0);
    // SAFETY: every pointer is to a live local; the thread's device is set back.
    let status = unsafe {
        match (get(&raw mut before), set(wanted)) {
            (0, 0) => {
                let status = ask(&raw mut free, &raw mut total);
                set(before);
                status
            }
            (status, 0) | (_, status) => status,
        }
    };
    if status == 0 { Ok((free as u64, total as u64)) } else { Err(Error::Cuda(format!("the runtime says {status}"))) }
}

/// A function of what is loaded.
#[expect(unsafe_code, reason = "asks the loader for a symbol")]
fn symbol(name: &CStr) -> Result<*mut libc::c_void> {
    // SAFETY: looks up a symbol by a NUL-terminated name among what is loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() { Err(Error::Cuda(format!("`{}` is not there", name.to_string_lossy()))) } else { Ok(found) }
}

/// Opens libtorch's CUDA half, once per process.
pub fn load() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(open_library).clone().map_err(Error::Cuda)
}

#[expect(unsafe_code, reason = "opens a shared library")]
fn open_library() -> std::result::Result<(), String> {
    let mut reason = String::new();
    for name in candidates() {
        // SAFETY: the name is a NUL-terminated string; the library's initialisers register libtorch's CUDA operators,
        // and it is never closed.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if !handle.is_null() {
            return Ok(());
        }
        // SAFETY: after a failed dlopen, dlerror returns a string that is valid until the next dl call of this thread.
        let text = unsafe { libc::dlerror() };
        if !text.is_null() {
            // SAFETY: see above; it is copied at once.
            reason = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        }
    }
    Err(format!("libtorch's CUDA library cannot be opened ({reason}); point `LIBTORCH` at a CUDA build of libtorch"))
}

/// Where the library may be: on the loader's path, or beside the libtorch that is loaded already.
#[expect(unsafe_code, reason = "asks the loader where a symbol came from")]
fn candidates() -> Vec<CString> {
    let mut names = vec![LIBRARY.to_owned()];
    // SAFETY: all-zero is a valid Dl_info (null pointers).
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    let symbol = torch_sys::at_new_tensor as *const libc::c_void;
    let torch_symbol = {
        // SAFETY: looks up a symbol by a NUL-terminated name among what is loaded.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_ZN2at19get_num_threadsEv".as_ptr()) };
        if found.is_null() { symbol } else { found.cast_const() }
    };
    // SAFETY: `torch_symbol` is an address inside a loaded object, `info` is ours to write to.
    if unsafe { libc::dladdr(torch_symbol, &raw mut info) } != 0 && !info.dli_fname.is_null() {
        // SAFETY: dladdr gave a NUL-terminated path that lives as long as the object is loaded.
        let path = unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned();
        if let Some((folder, _)) = path.rsplit_once('/')
            && let Ok(name) = CString::new(format!("{folder}/{}", LIBRARY.to_string_lossy()))
        {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there_and_nonsense_is_refused() {
        assert_eq!(device("cpu").unwrap(), Device::Cpu);
        for name in ["tpu", "cuda:", "cuda:x", "CPU"] {
            assert!(matches!(device(name), Err(Error::Device(_))), "{name} was accepted");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_a_clear_error() {
        let error = device("cuda:4096").unwrap_err().to_string();
        assert!(error.contains("cannot use CUDA"), "{error}");
        assert!(error.contains("libtorch_cuda") || error.contains("CUDA devices"), "{error}");
    }
}
