//! `cargo xtask bench`: runs the programs of `benches/` and writes their results to `docs/benchmarks.md`.

mod serving;
mod training;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::child;
use crate::server;
use crate::setup;
use crate::workspace::Workspace;

/// Where the results go.
const REPORT: &str = "docs/benchmarks.md";

/// Measure speed, memory and latency, and write `docs/benchmarks.md`.
///
/// Training is measured against Hugging Face transformers + PEFT, interleaved on the same weights and batch; that needs
/// a Python with torch 2.11, transformers and peft in `.venvs/reference`. Close other programs first: everything shares
/// the machine's cores.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measure only these, and print the result instead of writing it.
    #[arg(value_enum, value_name = "PIECE")]
    only: Vec<Piece>,
    /// Rounds of the training measurements, of about twenty minutes each on two cores; the table has their medians.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Piece {
    /// Start to ready, and idle memory.
    Footprint,
    /// Requests per second and latency of routes without a model.
    ControlPlane,
    /// Samples at once, beside thousands of held polls.
    Crowd,
    /// Trained tokens per second and peak memory.
    Train,
}

/// Runs `cargo xtask bench`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let chosen = |piece: Piece| options.only.is_empty() || options.only.contains(&piece);
    setup::libtorch(workspace)?;
    setup::demo_model(workspace)?;
    let server = server::build(workspace, ["--bin", "twinkle-server"])?;
    let mut report = String::from(
        "# Measurements\n\nWritten by `cargo xtask bench`. Compare ratios, not numbers, with those of another machine.\n",
    );
    write!(report, "\nMachine: {}\n", machine())?;
    if chosen(Piece::Footprint) {
        report += &serving::footprint(workspace, &server)?;
    }
    if chosen(Piece::ControlPlane) {
        report += &serving::control_plane(workspace, &server)?;
    }
    if chosen(Piece::Crowd) {
        report += &serving::crowd(workspace, &server)?;
    }
    if chosen(Piece::Train) {
        report += &training::training(workspace, &server, options.rounds)?;
    }
    if !options.only.is_empty() {
        eprintln!("\n{report}\n`{REPORT}` is left as it is: only a part was measured");
        return Ok(());
    }
    let path = workspace.path(REPORT);
    fs::write(&path, &report).with_context(|| format!("cannot write `{}`", path.display()))?;
    eprintln!("\n{report}\nwritten to `{REPORT}`");
    Ok(())
}

fn bench_program(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    server::build(workspace, ["--bin", name])
}

/// Runs a program that prints one JSON object as its last line.
fn json_of(command: &mut Command, workspace: &Workspace) -> Result<Value> {
    let shown = child::shown(command);
    eprintln!("{shown}");
    command.current_dir(workspace.root()).stderr(Stdio::inherit());
    if let Some(folder) = setup::library_path() {
        command.env("LD_LIBRARY_PATH", folder);
    }
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("`{shown}` printed no JSON"))
}

fn number(result: &Value, key: &str) -> Result<f64> {
    result[key].as_f64().with_context(|| format!("a result without `{key}`"))
}

fn mebibytes(result: &Value, key: &str) -> Result<String> {
    Ok(format!("{:.0} MiB", number(result, key)? / f64::from(1 << 20)))
}

/// What the numbers were measured on.
pub(crate) fn machine() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{}, {cores} cores", model.map_or("unknown processor", |(_, name)| name))
}
