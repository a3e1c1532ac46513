//! `cargo xtask cookbook`: every recipe of the cookbook, and the table of what came out.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::test;
use crate::workspace::Workspace;

/// The page with the table.
const PAGE: &str = "docs/cookbook.md";
/// The table stands between these lines.
const MARKERS: [&str; 2] =
    ["<!-- results: written by `cargo xtask cookbook --write-docs` -->", "<!-- end of results -->"];

/// Run every recipe of the cookbook against a server and show a table of what came out.
///
/// The same tests as in `cargo xtask test --all`. The recipes are unmodified and need no network: they run in a folder
/// with a tokenizer, data sets and a tiny model made for them. The first time, the cookbook's Python environment is made.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write the table into docs/cookbook.md.
    #[arg(long)]
    write_docs: bool,
}

/// What a recipe left, written by `tests/cookbook/run.py`.
#[derive(Deserialize)]
struct Outcome {
    order: u32,
    name: String,
    command: String,
    steps: u32,
    seconds: f64,
    metrics: std::collections::BTreeMap<String, serde_json::Value>,
}

/// Runs `cargo xtask cookbook`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let results = tempfile::tempdir().context("cannot make a temporary folder")?;
    let counts = test::cookbook(workspace, results.path())?;
    let outcomes = read(results.path())?;
    let table = table(&outcomes);
    let summary = format!("{table}\n{} passed, {} failed\n", counts.passed, counts.failed);
    io::stdout().write_all(summary.as_bytes())?;
    if counts.failed > 0 {
        return Ok(ExitCode::FAILURE);
    }
    if options.write_docs {
        let page = workspace.path(PAGE);
        let text = fs::read_to_string(&page).with_context(|| format!("cannot read `{}`", page.display()))?;
        let text = replaced(&text, &format!("{table}\n{}", commands(&outcomes)))?;
        fs::write(&page, text).with_context(|| format!("cannot write `{}`", page.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(folder: &Path) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let outcome: Outcome = serde_json::from_str(&text).with_context(|| format!("in `{}`", path.display()))?;
        outcomes.push(outcome);
    }
    outcomes.sort_by_key(|outcome| outcome.order);
    Ok(outcomes)
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text = "| Recipe | Steps | Seconds | Last metrics |\n| --- | --- | --- | --- |\n".to_owned();
    for Outcome { name, steps, seconds, metrics, .. } in outcomes {
        let metrics: Vec<String> = metrics.iter().map(|(key, value)| format!("`{key}` {}", number(value))).collect();
        // Writing to a text does not fail.
        let _ = writeln!(text, "| `{name}` | {steps} | {seconds:.0} | {} |", metrics.join(", "));
    }
    text
}

/// Three digits that count.
fn number(value: &serde_json::Value) -> String {
    match value.as_f64() {
        Some(value) if value != 0.0 && value.abs() < 1e-3 => format!("{value:.1e}"),
        Some(value) => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        None => value.to_string(),
    }
}

fn commands(outcomes: &[Outcome]) -> String {
    let lines: Vec<&str> = outcomes.iter().map(|outcome| outcome.command.as_str()).collect();
    format!("```console\n{}\n```\n", lines.join("\n"))
}

/// The page with another table.
fn replaced(page: &str, table: &str) -> Result<String> {
    let [start, end] = MARKERS;
    let Some((before, rest)) = page.split_once(start) else { bail!("`{PAGE}` has no line `{start}`") };
    let Some((_, after)) = rest.split_once(end) else { bail!("`{PAGE}` has no line `{end}`") };
    Ok(format!("{before}{start}\n\n{table}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_stands_between_its_markers_however_often_it_is_written() {
        let outcome = Outcome {
            order: 0,
            name: "sl_loop".to_owned(),
            command: "python -m sl_loop".to_owned(),
            steps: 12,
            seconds: 6.54,
            metrics: serde_json::from_str(r#"{"nll": 1.25, "kl": 2.5e-14, "reward": 0.0}"#).unwrap(),
        };
        let table = table(&[outcome]);
        assert!(table.ends_with("| `sl_loop` | 12 | 7 | `kl` 2.5e-14, `nll` 1.25, `reward` 0 |\n"), "{table}");
        let [start, end] = MARKERS;
        let page = format!("before\n{start}\nold\n{end}\nafter\n");
        let once = replaced(&page, &table).unwrap();
        assert_eq!(replaced(&once, &table).unwrap(), once);
        assert!(once.starts_with("before\n") && once.ends_with("\nafter\n") && !once.contains("old"));
        assert!(replaced("no marker", &table).is_err());
    }
}
