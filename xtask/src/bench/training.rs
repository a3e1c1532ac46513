//! Training: against transformers + PEFT, against the matrix products alone, and many tenants together.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{bench_program, json_of, mebibytes, number};
use crate::child;
use crate::setup;
use crate::workspace::Workspace;

/// Python with torch, transformers and PEFT, to compare with.
const REFERENCE_PYTHON: &str = ".venvs/reference/bin/python";
/// A 0.5B-shaped Qwen2.5 with random weights: its speed is that of the real one.
const RANDOM_MODEL: &str = ".models/random-qwen2.5-0.5b";
/// A mixture of experts of that size in the proportions of Qwen3-30B-A3B.
const RANDOM_MIXTURE: &str = ".models/random-qwen3-moe-0.5b";

const ALONE: &str = "
## Training

LoRA rank 16 on attention and MLP, bf16; a step is one forward-backward and one AdamW step, through HTTP, journal and all. All sides in \
turn, medians. PEFT is transformers + PEFT in one process, sequences padded to the longest, adapters in bf16; padding does not count. `mixed` is eight \
sequences of 37 to 512 tokens. The floor is the matrix products with the frozen weights alone (forward, and the gradient of \
their input), by torch, with 2048 rows at once.

| model | step | tokens/s | PEFT | ratio | of the floor | peak memory | PEFT | ratio |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

const SHARED: &str = "
## Many tenants

Every tenant has a run of its own and submits a step of its own: all at once, or one tenant after another.

| model | tenants | step of each | together, tokens/s | one after another | ratio | peak memory |
| --- | ---: | --- | ---: | ---: | ---: | ---: |
";

/// Measures the models in so many rounds; needs a reference Python.
pub(super) fn training(workspace: &Workspace, server: &Path, rounds: u32) -> Result<String> {
    let python = workspace.path(REFERENCE_PYTHON);
    if !python.exists() {
        bail!(
            "`{REFERENCE_PYTHON}` is missing, with which training is compared\n\
             hint: make it with torch 2.11.0, transformers 5.23.0 and peft 0.21.0, or measure the rest: `cargo xtask bench \
             footprint control-plane crowd`"
        );
    }
    let program = bench_program(workspace, "training")?;
    for (shape, folder) in [("qwen2.5-0.5b", RANDOM_MODEL), ("qwen3-moe-0.5b", RANDOM_MIXTURE)] {
        let mut make = Command::new(&python);
        make.current_dir(workspace.root());
        make.args(["benches/reference/make_model.py", "--shape", shape, "--out", folder]);
        if !child::run_to_stderr(&mut make)? {
            bail!("`{}` failed", child::shown(&make));
        }
    }
    let (mut alone, mut shared) = (ALONE.to_owned(), SHARED.to_owned());
    for model in [RANDOM_MODEL, setup::DEMO_MODEL, RANDOM_MIXTURE] {
        let mut compare = Command::new(&program);
        compare.arg("--server").arg(server).arg("--python").arg(&python).arg("--model-dir").arg(workspace.path(model));
        compare.args(["--rounds", &rounds.to_string()]);
        if model == RANDOM_MIXTURE {
            compare.arg("--one-tenant");
        }
        let result = json_of(&mut compare, workspace)?;
        add_alone(&mut alone, &result)?;
        add_shared(&mut shared, &result)?;
    }
    Ok(format!("{alone}{shared}\nRounds of all measurements of training: {rounds}.\n"))
}

fn add_alone(table: &mut String, result: &Value) -> Result<()> {
    let floor = number(result, "matrix_floor_tokens_per_second")?;
    for row in rows(result, "alone")? {
        let (ours, theirs) = (&row["ours"], &row["transformers_peft"]);
        let speed = number(ours, "tokens_per_second")?;
        writeln!(
            table,
            "| {} | {} | {speed:.0} | {:.0} | {:.2} | {:.0} % of {floor:.0} | {} | {} | {:.2} |",
            text(result, "model"),
            text(row, "workload"),
            number(theirs, "tokens_per_second")?,
            number(row, "speed_ratio")?,
            100.0 * speed / floor,
            mebibytes(ours, "peak_rss_bytes")?,
            mebibytes(theirs, "peak_rss_bytes")?,
            number(row, "memory_ratio")?,
        )?;
    }
    Ok(())
}

fn add_shared(table: &mut String, result: &Value) -> Result<()> {
    for row in rows(result, "shared")? {
        writeln!(
            table,
            "| {} | {} | {} | {:.0} | {:.0} | {:.2} | {} |",
            text(result, "model"),
            row["tenants"],
            text(row, "workload"),
            number(&row["together"], "tokens_per_second")?,
            number(&row["one_after_another"], "tokens_per_second")?,
            number(row, "speed_ratio")?,
            mebibytes(&row["together"], "peak_rss_bytes")?,
        )?;
    }
    Ok(())
}

fn rows<'a>(result: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    result[key].as_array().with_context(|| format!("a result without `{key}`"))
}

fn text<'a>(result: &'a Value, key: &str) -> &'a str {
    result[key].as_str().unwrap_or("?")
}
