//! libtorch in `.libtorch`, in the layout its own run path expects.
//!
//! There is no CPU build of this version for Linux on the package index. The CUDA build runs without a card,
//! and its `libtorch_cpu.so` needs only two small NVIDIA libraries at load; all of CUDA itself is left out.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::wheels::{self, Wheel};
use crate::workspace::{Workspace, replace_folder};

/// The version the pinned `tch` binds.
const VERSION: &str = "2.11.0";

const WHEELS: [Wheel; 3] = [
    Wheel {
        package: "torch",
        version: VERSION,
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    },
    Wheel {
        package: "nvidia-cuda-runtime",
        version: "13.0.96",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    },
    Wheel {
        package: "nvidia-cuda-cupti",
        version: "13.0.85",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    },
];

/// The libraries that are kept, by their path in the wheels and in `.libtorch`.
const LIBRARIES: [&str; 5] = [
    "torch/lib/libc10.so",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libgomp.so.1",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
];

/// Headers and build settings that are kept.
const FOLDERS: [&str; 2] = ["torch/include/", "torch/share/cmake/Torch/"];

/// Fetches libtorch unless it is there or the user brought one.
pub(crate) fn fetch(workspace: &Workspace) -> Result<()> {
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        eprintln!("libtorch: `LIBTORCH_USE_PYTORCH` is set, so the build uses the installed PyTorch; nothing to fetch");
        return Ok(());
    }
    if let Some(folder) = brought_by_user() {
        return check_users(&folder);
    }
    let folder = workspace.path(".libtorch");
    let lock = workspace.lock()?;
    if is_complete(&folder) {
        eprintln!("libtorch: {VERSION} is in `{}`", folder.display());
        return Ok(());
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "no libtorch is pinned for this platform yet, only for Linux on x86_64\n\
             hint: install PyTorch {VERSION} and set `LIBTORCH_USE_PYTORCH=1`, or set `LIBTORCH` to its folder"
        );
    }
    eprintln!("libtorch: fetching {VERSION} into `{}` (540 MB to download)", folder.display());
    let scratch = workspace.scratch(&lock)?;
    let unpacked = scratch.path().join("libtorch");
    for wheel in wheels::download(&WHEELS, scratch.path())? {
        wheels::unpack(&wheel, &unpacked, |name| is_kept(name).then(|| PathBuf::from(name)))?;
    }
    finish(&unpacked)?;
    if !is_complete(&unpacked) {
        bail!("the fetched packages do not hold all of libtorch; expected {}", LIBRARIES.join(", "));
    }
    replace_folder(&unpacked, &folder, scratch.path())?;
    eprintln!("libtorch: {VERSION} is in `{}`", folder.display());
    Ok(())
}

/// The folder a program must be told to look in, because the user brought a libtorch that is not beside the checkout.
pub(crate) fn library_path() -> Option<PathBuf> {
    brought_by_user().map(|folder| folder.join("lib"))
}

/// The folder of libtorch's libraries, the user's or ours.
pub(crate) fn libraries(workspace: &Workspace) -> PathBuf {
    library_path().unwrap_or_else(|| workspace.path(".libtorch/torch/lib"))
}

/// A folder the user chose. cargo itself sets `LIBTORCH` to ours, from `.cargo/config.toml`.
fn brought_by_user() -> Option<PathBuf> {
    let folder = PathBuf::from(env::var_os("LIBTORCH")?);
    let ours = Workspace::built_from().join(".libtorch/torch");
    (folder != ours).then_some(folder)
}

fn check_users(folder: &Path) -> Result<()> {
    let library = folder.join("lib/libtorch_cpu.so");
    if cfg!(target_os = "linux") && !library.exists() {
        bail!(
            "`LIBTORCH` is `{}`, but there is no `{}`\n\
             hint: unset `LIBTORCH` to have libtorch {VERSION} fetched",
            folder.display(),
            library.display()
        );
    }
    eprintln!("libtorch: using yours in `{}`, as `LIBTORCH` says; it must be {VERSION}", folder.display());
    eprintln!(
        "hint: programs look for it beside this checkout; set `LD_LIBRARY_PATH={}/lib` to run them",
        folder.display()
    );
    Ok(())
}

fn is_kept(name: &str) -> bool {
    LIBRARIES.contains(&name) || FOLDERS.iter().any(|folder| name.starts_with(folder))
}

/// What the wheels do not hold, or not in the form a link without CUDA needs.
fn finish(unpacked: &Path) -> Result<()> {
    let torch = unpacked.join("torch");
    let failed = || format!("cannot finish `{}`", torch.display());
    // The wheel's libtorch.so needs libtorch_cuda.so; this linker script does not.
    fs::write(torch.join("lib/libtorch.so"), "INPUT(-ltorch_cpu)\n").with_context(failed)?;
    #[cfg(unix)]
    std::os::unix::fs::symlink("libgomp.so.1", torch.join("lib/libgomp.so")).with_context(failed)?;
    fs::write(torch.join("build-version"), VERSION).with_context(failed)
}

fn is_complete(folder: &Path) -> bool {
    let version = fs::read_to_string(folder.join("torch/build-version")).unwrap_or_default();
    let headers = folder.join("torch/include/torch/csrc/api/include/torch/torch.h");
    version.trim() == VERSION
        && LIBRARIES.iter().all(|library| folder.join(library).exists())
        && folder.join("torch/lib/libtorch.so").exists()
        && headers.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_or_a_missing_library_is_not_complete() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        for file in LIBRARIES.iter().chain(&["torch/include/torch/csrc/api/include/torch/torch.h"]) {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        finish(folder).unwrap();
        assert!(is_complete(folder));
        fs::write(folder.join("torch/build-version"), "2.10.0").unwrap();
        assert!(!is_complete(folder));
        fs::write(folder.join("torch/build-version"), VERSION).unwrap();
        fs::remove_file(folder.join(LIBRARIES[0])).unwrap();
        assert!(!is_complete(folder));
    }

    #[test]
    fn cuda_libraries_are_left_out() {
        assert!(is_kept("torch/lib/libtorch_cpu.so") && is_kept("torch/include/ATen/ATen.h"));
        assert!(!is_kept("torch/lib/libtorch_cuda.so") && !is_kept("torch/lib/libtorch.so"));
    }
}
