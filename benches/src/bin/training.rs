//! Trained tokens per second and peak memory: this server against Hugging Face transformers + PEFT.
//!
//! Same weights, same batch, same machine, interleaved: a few steps of one, then of the other, and so on.
//! One step is a forward-backward over the batch and an `AdamW` step. Prints one JSON object.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::{Value, json};
use tokio::time::Instant;
use twinkle_tests::{Node, NodeOptions, TinkerHttp};

/// Measures training against transformers + PEFT.
#[derive(Debug, Parser)]
struct Arguments {
    /// The server binary.
    #[arg(long, default_value = "target/debug/twinkle-server")]
    server: PathBuf,
    /// Python with torch, transformers and peft.
    #[arg(long, default_value = ".venvs/reference/bin/python")]
    python: PathBuf,
    /// A model folder in the Hugging Face layout.
    #[arg(long)]
    model_dir: PathBuf,
    /// Sequences in the batch.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens in each sequence.
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// LoRA rank.
    #[arg(long, default_value_t = 16)]
    rank: u32,
    /// `bfloat16` or `float32`.
    #[arg(long, default_value = "bfloat16")]
    dtype: String,
    /// Measured steps per round; one more warms up.
    #[arg(long, default_value_t = 2)]
    steps: usize,
    /// Rounds; in each, both sides are measured.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let options = NodeOptions {
        binary: arguments.server.clone(),
        model: arguments.model_dir.canonicalize().context("the model folder")?,
        name: "bench/model".to_owned(),
        dtype: arguments.dtype.clone(),
        ..NodeOptions::fixture("", "qwen3")
    };
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    let (mut our_peak, mut their_peak) = (0, 0);
    for round in 0..arguments.rounds {
        let reference = measure_reference(&arguments).await?;
        theirs.extend(numbers(&reference["tokens_per_second"])?);
        their_peak = their_peak.max(reference["peak_rss_bytes"].as_u64().unwrap_or(0));

        let node = Node::start(options.clone()).await?;
        ours.extend(measure_node(&node, &arguments).await?);
        our_peak = our_peak.max(peak_memory(node.process_id())?);
        eprintln!("round {}: ours {:?}, transformers + PEFT {:?} tokens/s", round + 1, last(&ours), last(&theirs));
    }
    let (our_median, their_median) = (median(&mut ours), median(&mut theirs));
    let report = json!({
        "model": arguments.model_dir.file_name().map(|name| name.to_string_lossy().into_owned()),
        "dtype": arguments.dtype,
        "batch": arguments.batch,
        "length": arguments.length,
        "rank": arguments.rank,
        "ours": { "tokens_per_second": our_median, "peak_rss_bytes": our_peak },
        "transformers_peft": { "tokens_per_second": their_median, "peak_rss_bytes": their_peak },
        "speed_ratio": our_median / their_median,
        "memory_ratio": our_peak as f64 / their_peak as f64,
    });
    #[expect(clippy::print_stdout, reason = "the result is this program's output")]
    {
        println!("{report}");
    }
    Ok(())
}

async fn measure_reference(arguments: &Arguments) -> Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/hf_peft.py");
    let output = tokio::process::Command::new(&arguments.python)
        .arg(script)
        .arg("--model-dir")
        .arg(&arguments.model_dir)
        .args(["--batch", &arguments.batch.to_string(), "--length", &arguments.length.to_string()])
        .args(["--rank", &arguments.rank.to_string(), "--dtype", &arguments.dtype])
        .args(["--steps", &arguments.steps.to_string()])
        // Its own default, which is the faster one for a process that has the machine to itself.
        .env_remove("GOMP_SPINCOUNT")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await
        .with_context(|| format!("starting {}", arguments.python.display()))?;
    if !output.status.success() {
        bail!("hf_peft.py ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().context("hf_peft.py printed nothing")?;
    serde_json::from_str(line).with_context(|| format!("hf_peft.py printed `{line}`"))
}

/// Tokens per second of each measured step, seen by a client: transport, journal and all.
async fn measure_node(node: &Node, arguments: &Arguments) -> Result<Vec<f64>> {
    let client = TinkerHttp::new(&node.base_url(), "tml-bench");
    // Attention and MLP, as `hf_peft.py` trains.
    let adapter = json!({ "rank": arguments.rank, "seed": 0, "train_unembed": false });
    let run = client.create_run_of(node.model(), &adapter).await?;
    let data = batch(arguments);
    let mut speeds = Vec::new();
    for step in 0..=arguments.steps as u64 {
        let started = Instant::now();
        let body = json!({
            "model_id": run,
            "seq_id": 2 * step + 1,
            "forward_backward_input": { "loss_fn": "cross_entropy", "data": data },
        });
        let forward_backward = client.submit("forward_backward", &body).await?;
        let optim_step = client.submit_optim_step(&run, 2 * step + 2, 1e-4).await?;
        for request in [forward_backward, optim_step] {
            let result = client.result(&request).await?;
            if result.get("error").is_some() {
                bail!("a step failed: {result}");
            }
        }
        let seconds = started.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
        if step > 0 {
            speeds.push((arguments.batch * arguments.length) as f64 / seconds);
        }
    }
    Ok(speeds)
}

/// The same pseudo-random tokens as `hf_peft.py`: `(7919 · row + 104729 · column) mod 32000 + 100`.
fn batch(arguments: &Arguments) -> Vec<Value> {
    let token = |row: usize, column: usize| (7919 * row + 104_729 * column) % 32_000 + 100;
    (0..arguments.batch)
        .map(|row| {
            let inputs: Vec<usize> = (0..arguments.length).map(|column| token(row, column)).collect();
            let targets: Vec<usize> = (1..=arguments.length).map(|column| token(row, column)).collect();
            json!({
                "model_input": { "chunks": [{ "tokens": inputs }] },
                "loss_fn_inputs": {
                    "target_tokens": { "data": targets, "dtype": "int64" },
                    "weights": { "data": vec![1.0; arguments.length], "dtype": "float32" },
                },
            })
        })
        .collect()
}

/// The most memory a process ever had resident.
fn peak_memory(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM in /proc")?;
    let kibibytes: u64 = line.split_whitespace().nth(1).context("VmHWM has no number")?.parse()?;
    Ok(kibibytes * 1024)
}

fn numbers(value: &Value) -> Result<Vec<f64>> {
    let list = value.as_array().context("no list of speeds")?;
    Ok(list.iter().filter_map(Value::as_f64).collect())
}

fn last(values: &[f64]) -> f64 {
    values.last().copied().unwrap_or(f64::NAN).round()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
