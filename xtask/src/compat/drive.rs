//! Running the drivers, two at a time, behind one progress bar.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use super::MODEL;
use super::report::{Field, Row, Seen};
use crate::child;
use crate::setup;
use crate::workspace::Workspace;

/// Releases that are driven at the same time: a driver waits for the server half of its time.
const AT_ONCE: usize = 2;

/// What is driven against what.
pub(super) struct Target {
    /// Where the server listens.
    pub(super) base_url: String,
    /// Where torch and transformers lie.
    pub(super) packages: PathBuf,
    /// Rows that contain this.
    pub(super) only: String,
}

/// A release and what came of its rows.
type Driven = (String, Vec<Row>);

/// A line of a driver's output.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Header { rows: u64 },
    Row(Row),
}

/// Drives the releases and asks which fields are ignored.
pub(super) fn all(workspace: &Workspace, releases: &[(String, PathBuf)], target: &Target) -> Result<Seen> {
    let bar = progress();
    let begun = AtomicUsize::new(0);
    let work = || -> Result<Vec<Driven>> {
        let mut done = Vec::new();
        while let Some((name, environment)) = releases.get(begun.fetch_add(1, Ordering::Relaxed)) {
            let release = name.trim_start_matches("tinker-").to_owned();
            let rows = one(workspace, environment, target, &bar).with_context(|| format!("driving {name}"))?;
            done.push((release, rows));
        }
        Ok(done)
    };
    let results: Vec<Result<Vec<Driven>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| bail!("a driver's thread ended"))).collect()
    });
    bar.finish_and_clear();
    let mut driven = Vec::new();
    for result in results {
        driven.extend(result?);
    }
    let order = |release: &str| releases.iter().position(|(name, _)| name.ends_with(release));
    driven.sort_by_key(|(release, _)| order(release));
    let fields = match releases.last() {
        Some((_, environment)) if target.only.is_empty() => fields(workspace, environment, target)?,
        _ => Vec::new(),
    };
    Ok(Seen::new(driven, fields))
}

/// Drives one release.
fn one(workspace: &Workspace, environment: &std::path::Path, target: &Target, bar: &ProgressBar) -> Result<Vec<Row>> {
    let mut driver = Command::new(setup::python_interpreter(environment));
    driver.current_dir(workspace.root()).arg("tests/python/compat");
    driver.args(["--base-url", &target.base_url, "--model", MODEL.1, "--tokenizer", MODEL.0, "--only", &target.only]);
    driver.arg("--packages").arg(&target.packages);
    let shown = child::shown(&driver);
    let mut process = driver.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let mut rows = Vec::new();
    if let Some(stdout) = process.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.with_context(|| format!("lost `{shown}`"))?;
            match serde_json::from_str(&line).with_context(|| format!("`{shown}` printed `{line}`"))? {
                Line::Header { rows } => bar.inc_length(rows),
                Line::Row(row) => {
                    bar.inc(1);
                    bar.set_message(row.name.clone());
                    rows.push(row);
                }
            }
        }
    }
    let status = process.wait().with_context(|| format!("lost `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(rows)
}

/// Which fields of requests are ignored, and which are refused.
fn fields(workspace: &Workspace, environment: &std::path::Path, target: &Target) -> Result<Vec<Field>> {
    let mut driver = Command::new(setup::python_interpreter(environment));
    driver.current_dir(workspace.root()).args(["tests/python/compat/fields.py", "--base-url", &target.base_url]);
    driver.args(["--model", MODEL.1]);
    let shown = child::shown(&driver);
    let output = driver.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed");
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("what `{shown}` printed is no list of fields"))
}

fn progress() -> ProgressBar {
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("  {bar:40} {pos:>4} of {len} {elapsed} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
