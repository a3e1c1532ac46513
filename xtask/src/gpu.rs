//! `cargo xtask gpu`: everything that a machine with a GPU needs to check and measure this build, in one folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::child;
use crate::server;
use crate::setup;
use crate::workspace::Workspace;

/// Pack the programs that check and measure a GPU; with `--dry-run`, also try them here on the CPU.
///
/// Copy the folder to a machine with an NVIDIA card and a Python with torch 2.11 for CUDA, transformers and peft, and run
/// `python3 run.py --out results` in it. Nothing is compiled there; the programs use torch's libtorch.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where the folder is made.
    #[arg(long, value_name = "FOLDER", default_value = "target/gpu")]
    out: PathBuf,
    /// Run the script here with tiny models on the CPU.
    #[arg(long)]
    dry_run: bool,
    /// The Python with torch for `--dry-run`.
    #[arg(long, value_name = "PYTHON", default_value = ".venvs/reference/bin/python")]
    python: PathBuf,
}

/// The packages whose golden tests can run on any device.
const GOLDENS: &[&str] = &["twinkle-nn"];

/// Runs `cargo xtask gpu`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    setup::libtorch(workspace)?;
    let out = workspace.root().join(&options.out);
    let programs = out.join("bin");
    fs::create_dir_all(&programs).with_context(|| format!("cannot create `{}`", programs.display()))?;
    pack(&server::build(workspace, ["--bin", "twinkle-server"])?, &programs.join("twinkle-server"))?;
    pack(&server::build(workspace, ["--bin", "training"])?, &programs.join("training"))?;
    for package in GOLDENS {
        let program = golden_tests(workspace, package)?;
        pack(&program, &programs.join(format!("golden-{package}")))?;
    }
    copy_folder(&workspace.path("tests/golden/fixtures"), &out.join("fixtures"))?;
    copy_files(&workspace.path("benches/reference"), &out.join("reference"))?;
    copy_files(&workspace.path("tests/golden"), &out.join("reference"))?;
    copy_files(&workspace.path("benches/gpu"), &out)?;
    eprintln!(
        "packed into `{}`\nhint: copy it to the machine with the GPU and run `python3 run.py --out results` in it",
        out.display()
    );
    if !options.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let mut script = Command::new(workspace.root().join(&options.python));
    script.current_dir(&out).args(["run.py", "--dry-run", "--steps", "1", "--out", "dry-run"]);
    if let Some(folder) = setup::library_path() {
        script.env("LD_LIBRARY_PATH", folder);
    }
    if !child::run_to_stderr(&mut script)? {
        bail!("`{}` failed", child::shown(&script));
    }
    Ok(ExitCode::SUCCESS)
}

/// The program with a package's golden tests.
fn golden_tests(workspace: &Workspace, package: &str) -> Result<PathBuf> {
    let mut cargo = child::cargo(workspace);
    cargo.args(["test", "--workspace", "--test", "golden", "--no-run", "--message-format=json-render-diagnostics"]);
    let shown = child::shown(&cargo);
    let output =
        cargo.stderr(std::process::Stdio::inherit()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed");
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let is_its = message["package_id"].as_str().is_some_and(|id| id.contains(&format!("{package}#")));
        if is_its && let Some(program) = message["executable"].as_str() {
            return Ok(PathBuf::from(program));
        }
    }
    bail!("`{shown}` built no golden tests of `{package}`")
}

/// Copies a program without its debugging symbols.
fn pack(program: &Path, target: &Path) -> Result<()> {
    let stripped = Command::new("strip").arg("-o").arg(target).arg(program).status();
    if stripped.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    fs::copy(program, target).with_context(|| format!("cannot copy `{}`", program.display()))?;
    Ok(())
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create `{}`", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    copy_files(from, to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
