//! torch without a graphics card, and without the 3 GB of CUDA libraries it asks for when it is imported.
//!
//! The index has only the CUDA build of torch for Linux. Its libraries name those of CUDA, so the loader wants a file for
//! each; nothing of them is called on a machine without a card. An empty library of the right name will do, if functions
//! are looked up when they are called and not at load.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What torch 2.11.0 names and does not call. Two more are needed as they are, and come as packages: `libcudart`, in which
/// the kernels are registered at load, and `libcupti`.
const LIBRARIES: [&str; 10] = [
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcudnn.so.9",
    "libcufft.so.12",
    "libcufile.so.0",
    "libcurand.so.10",
    "libcusparse.so.12",
    "libcusparseLt.so.0",
    "libnccl.so.2",
    "libnvshmem_host.so.3",
];
/// Where torch looks for most of them.
const FOLDER: &str = "nvidia/cu13/lib";
/// Python runs the lines of such a file that begin with `import` whenever it starts.
const LAZY: (&str, &str) = ("torch_without_card.pth", "import os, sys; sys.setdlopenflags(os.RTLD_LAZY)\n");

/// Completes a torch in `packages` whose CUDA libraries are not installed; other folders are left alone.
pub(super) fn make(packages: &Path) -> Result<()> {
    let folder = packages.join(FOLDER);
    if !packages.join("torch").exists() || folder.join(LIBRARIES[0]).exists() {
        return Ok(());
    }
    let failed = || format!("cannot write `{}`", folder.display());
    fs::create_dir_all(&folder).with_context(failed)?;
    for name in LIBRARIES {
        link(name, &folder.join(name))?;
    }
    fs::write(packages.join(LAZY.0), LAZY.1).with_context(failed)
}

/// Lets an environment that sees such a torch beneath it load it, too: Python reads the lines of its own `.pth` files only.
pub(super) fn follow(packages: &Path, beneath: &[PathBuf]) -> Result<()> {
    if !beneath.iter().any(|folder| folder.join(LAZY.0).exists()) {
        return Ok(());
    }
    fs::write(packages.join(LAZY.0), LAZY.1).with_context(|| format!("cannot write `{}`", packages.display()))
}

/// An empty shared library that calls itself `name`.
fn link(name: &str, file: &Path) -> Result<()> {
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-x", "c", "-", "-o"]).arg(file).arg(format!("-Wl,-soname,{name}"));
    let mut process = compiler.stdin(Stdio::piped()).spawn().context("cannot start `cc`")?;
    if let Some(mut source) = process.stdin.take() {
        source.write_all(b"\n").context("cannot talk to `cc`")?;
    }
    if !process.wait().context("lost `cc`")?.success() {
        bail!("`cc` could not link `{}`; its reason is above", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_torch_without_its_libraries_gets_empty_ones() {
        let packages = tempfile::tempdir().unwrap();
        let packages = packages.path();
        make(packages).unwrap();
        assert!(!packages.join(FOLDER).exists());
        fs::create_dir_all(packages.join("torch")).unwrap();
        make(packages).unwrap();
        assert!(LIBRARIES.iter().all(|name| packages.join(FOLDER).join(name).exists()));
        let first = packages.join(FOLDER).join(LIBRARIES[0]);
        fs::write(&first, "the real one").unwrap();
        make(packages).unwrap();
        assert_eq!(fs::read(first).unwrap(), b"the real one");
    }

    #[test]
    fn an_environment_above_such_a_torch_loads_it_as_lazily() {
        let (above, beneath) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [beneath.path().to_path_buf()];
        follow(above.path(), &folders).unwrap();
        assert!(!above.path().join(LAZY.0).exists());
        fs::create_dir_all(beneath.path().join("torch")).unwrap();
        make(beneath.path()).unwrap();
        follow(above.path(), &folders).unwrap();
        assert_eq!(fs::read_to_string(above.path().join(LAZY.0)).unwrap(), LAZY.1);
    }
}
