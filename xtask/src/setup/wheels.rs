//! Python packages as a source of binaries: fetched by pip, pinned by version and hash, never installed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use zip::ZipArchive;

use crate::child;

/// One package in one version and one build.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wheel {
    /// The package's name on the index.
    pub(crate) package: &'static str,
    /// Its version.
    pub(crate) version: &'static str,
    /// The SHA-256 of the file, in hex; pip refuses any other.
    pub(crate) sha256: &'static str,
}

/// The tags of the builds we pinned. With them given, pip fetches the same files whatever Python runs it.
const PLATFORM: [&str; 12] = [
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--platform",
    "manylinux_2_28_x86_64",
    "--platform",
    "manylinux_2_25_x86_64",
    "--platform",
    "manylinux2014_x86_64",
    "--platform",
    "any",
];

/// Downloads `wheels` into `folder` and returns their paths in order. pip shows its own progress.
pub(crate) fn download(wheels: &[Wheel], folder: &Path) -> Result<Vec<PathBuf>> {
    check_pip()?;
    let pin = |wheel: &Wheel| format!("{}=={} --hash=sha256:{}\n", wheel.package, wheel.version, wheel.sha256);
    let pins: String = wheels.iter().map(pin).collect();
    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, pins).with_context(|| format!("cannot write `{}`", requirements.display()))?;
    let mut pip = child::python();
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .args(PLATFORM)
        .arg("--require-hashes")
        .arg("--requirement")
        .arg(&requirements)
        .arg("--dest")
        .arg(folder);
    let succeeded = child::run_to_stderr(&mut pip)?;
    if !succeeded {
        bail!(
            "pip could not download the pinned packages; its reason is above\n\
             hint: without a way to the package index, set `PIP_INDEX_URL` or `HTTPS_PROXY`; \
             with pip older than 20.3, run `python3 -m pip install --upgrade pip`"
        );
    }
    wheels.iter().map(|wheel| find(folder, wheel)).collect()
}

/// Says clearly what is missing before pip says it unclearly.
fn check_pip() -> Result<()> {
    let mut python = child::python();
    let program = python.get_program().to_string_lossy().into_owned();
    let answer = python.args(["-m", "pip", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match answer {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(anyhow!(
            "`{program}` has no pip, which fetches libtorch and the demo model\n\
             hint: `apt install python3-pip`, `dnf install python3-pip` or `{program} -m ensurepip`"
        )),
        Err(error) => Err(anyhow!(
            "cannot run `{program}` ({error}): Python 3 with pip is needed once, to fetch libtorch and the demo model\n\
             hint: install it, or name another with `PYTHON`; for libtorch alone you may set `LIBTORCH` to a folder that has 2.11.0"
        )),
    }
}

/// The downloaded file of `wheel`.
fn find(folder: &Path, wheel: &Wheel) -> Result<PathBuf> {
    let start = format!("{}-{}-", wheel.package.replace('-', "_"), wheel.version);
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.to_lowercase().starts_with(&start) && name.ends_with(".whl") {
            return Ok(path);
        }
    }
    bail!("pip did not leave `{start}….whl` in `{}`", folder.display())
}

/// Unpacks the files of `wheel` that `place` gives a path below `folder`.
pub(crate) fn unpack(wheel: &Path, folder: &Path, place: impl Fn(&str) -> Option<PathBuf>) -> Result<()> {
    let broken = || format!("cannot unpack `{}`", wheel.display());
    let file = fs::File::open(wheel).with_context(broken)?;
    let mut archive = ZipArchive::new(file).with_context(broken)?;
    let mut wanted = Vec::new();
    let mut bytes = 0;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).with_context(broken)?;
        if entry.is_dir() {
            continue;
        }
        if let Some(path) = place(entry.name()) {
            bytes += entry.size();
            wanted.push((index, path));
        }
    }
    let progress = bytes_bar(bytes, "unpacking");
    for (index, path) in wanted {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(broken)?;
        }
        let entry = archive.by_index(index).with_context(broken)?;
        let mut target = fs::File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
        // The archive's own check sums are verified at the end of each entry.
        io::copy(&mut progress.wrap_read(entry), &mut target)
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    progress.finish_and_clear();
    Ok(())
}

/// A progress bar that counts bytes.
pub(crate) fn bytes_bar(bytes: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_message(what);
    match ProgressStyle::with_template("  {msg:11} {bar:40} {bytes:>11} of {total_bytes}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
