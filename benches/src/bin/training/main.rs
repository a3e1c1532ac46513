//! Trained tokens per second and peak memory: this server against Hugging Face transformers + PEFT, against the matrix
//! products alone, and many tenants together against one after another.
//!
//! Same weights, same tokens, same machine, in turn: every round measures every side once. One step is a
//! forward-backward over the workload and an `AdamW` step. Prints one JSON object.

mod node;
mod reference;
mod workload;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};
use twinkle_tests::NodeOptions;

use crate::node::Order;
use crate::workload::Workload;

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
    /// LoRA rank.
    #[arg(long, default_value_t = 16)]
    rank: u32,
    /// `bfloat16` or `float32`.
    #[arg(long, default_value = "bfloat16")]
    dtype: String,
    /// Measured steps per round; one more warms up.
    #[arg(long, default_value_t = 2)]
    steps: usize,
    /// Rounds; in each, every side is measured.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Sequences of a step of equal lengths.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens in each of them.
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// Where the server computes.
    #[arg(long, default_value = "CPU", value_parser = ["CPU", "CUDA"])]
    device: String,
    /// Leave out the measurements with several tenants.
    #[arg(long)]
    one_tenant: bool,
    /// Measure this server only.
    #[arg(long)]
    ours_only: bool,
}

/// Several tenants, each with a step of the same workload.
struct Tenancy {
    tenants: usize,
    workload: Workload,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let options = NodeOptions {
        binary: arguments.server.clone(),
        model: arguments.model_dir.canonicalize().context("the model folder")?,
        name: "bench/model".to_owned(),
        dtype: arguments.dtype.clone(),
        device: arguments.device.clone(),
        // All tenants may submit all they have.
        settings: "task_queue: {rps_limit: 0, tps_limit: 0}".to_owned(),
        ..NodeOptions::fixture("", "qwen3")
    };
    let workloads = [Workload::equal(arguments.batch, arguments.length), Workload::mixed()];
    let tenancies = if arguments.one_tenant { Vec::new() } else { tenancies() };

    let mut floor = Samples::default();
    let mut alone: Vec<Comparison> = workloads.iter().map(|_| Comparison::default()).collect();
    let mut shared: Vec<(Samples, Samples)> = tenancies.iter().map(|_| Default::default()).collect();
    for round in 1..=arguments.rounds {
        if !arguments.ours_only {
            floor.extend(&matrix_floor(&arguments).await?)?;
        }
        for (workload, comparison) in workloads.iter().zip(&mut alone) {
            if !arguments.ours_only {
                comparison.theirs.extend(&transformers_peft(&arguments, workload).await?)?;
            }
            comparison.ours.measure(&options, workload, &arguments, 1, Order::Together).await?;
            let (ours, theirs) = (comparison.ours.last(), comparison.theirs.last());
            eprintln!("round {round}, {}: ours {ours:.0}, transformers + PEFT {theirs:.0} tokens/s", workload.name);
        }
        for (Tenancy { tenants, workload }, (serial, together)) in tenancies.iter().zip(&mut shared) {
            serial.measure(&options, workload, &arguments, *tenants, Order::OneAfterAnother).await?;
            together.measure(&options, workload, &arguments, *tenants, Order::Together).await?;
            let (name, together, serial) = (&workload.name, together.last(), serial.last());
            eprintln!("round {round}, {tenants} tenants of {name}: {together:.0} together, {serial:.0} in turn");
        }
    }

    let alone: Vec<Value> = workloads
        .iter()
        .zip(alone)
        .map(|(workload, Comparison { ours, theirs })| {
            json!({
                "workload": workload.name,
                "tokens": workload.tokens(),
                "ours": ours.report(),
                "transformers_peft": theirs.report(),
                "speed_ratio": ours.median() / theirs.median(),
                "memory_ratio": ours.peak_bytes as f64 / theirs.peak_bytes as f64,
            })
        })
        .collect();
    let shared: Vec<Value> = tenancies
        .iter()
        .zip(shared)
        .map(|(Tenancy { tenants, workload }, (serial, together))| {
            json!({
                "tenants": tenants,
                "workload": workload.name,
                "together": together.report(),
                "one_after_another": serial.report(),
                "speed_ratio": together.median() / serial.median(),
            })
        })
        .collect();
    let report = json!({
        "model": arguments.model_dir.file_name().map(|name| name.to_string_lossy().into_owned()),
        "dtype": arguments.dtype,
        "rank": arguments.rank,
        "matrix_floor_tokens_per_second": floor.median(),
        "alone": alone,
        "shared": shared,
    });
    #[expect(clippy::print_stdout, reason = "the result is this program's output")]
    {
        println!("{report}");
    }
    Ok(())
}

/// Very small steps of sixteen tenants, which read the weights once only together; small ones of four; and full ones of
/// sixteen, which gain nothing and must lose nothing.
fn tenancies() -> Vec<Tenancy> {
    vec![
        Tenancy { tenants: 16, workload: Workload::equal(1, 16) },
        Tenancy { tenants: 4, workload: Workload::equal(8, 32) },
        Tenancy { tenants: 4, workload: Workload::mixed() },
        Tenancy { tenants: 16, workload: Workload::equal(2, 256) },
    ]
}

/// The same work on both sides.
#[derive(Default)]
struct Comparison {
    ours: Samples,
    theirs: Samples,
}

/// What was measured of one side, over all rounds.
#[derive(Default)]
struct Samples {
    tokens_per_second: Vec<f64>,
    peak_bytes: u64,
}

impl Samples {
    async fn measure(
        &mut self,
        options: &NodeOptions,
        workload: &Workload,
        arguments: &Arguments,
        tenants: usize,
        order: Order,
    ) -> Result<()> {
        let measured = node::measure(options, workload, arguments.rank, tenants, order, arguments.steps).await?;
        self.tokens_per_second.extend(measured.tokens_per_second);
        self.peak_bytes = self.peak_bytes.max(measured.peak_bytes);
        Ok(())
    }

    /// Adds what a script printed.
    fn extend(&mut self, printed: &Value) -> Result<()> {
        let list = printed["tokens_per_second"].as_array().context("a script printed no speeds")?;
        self.tokens_per_second.extend(list.iter().filter_map(Value::as_f64));
        self.peak_bytes = self.peak_bytes.max(printed["peak_rss_bytes"].as_u64().unwrap_or(0));
        Ok(())
    }

    fn last(&self) -> f64 {
        self.tokens_per_second.last().copied().unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        let mut sorted = self.tokens_per_second.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn report(&self) -> Value {
        json!({ "tokens_per_second": self.median(), "peak_rss_bytes": self.peak_bytes })
    }
}

async fn transformers_peft(arguments: &Arguments, workload: &Workload) -> Result<Value> {
    let lengths: Vec<String> = workload.lengths.iter().map(ToString::to_string).collect();
    let options = [
        ("--model-dir", arguments.model_dir.display().to_string()),
        ("--lengths", lengths.join(",")),
        ("--rank", arguments.rank.to_string()),
        ("--dtype", arguments.dtype.clone()),
        ("--steps", arguments.steps.to_string()),
    ];
    let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    reference::script(&arguments.python, "hf_peft.py", options).await
}

async fn matrix_floor(arguments: &Arguments) -> Result<Value> {
    let options = [
        ("--model-dir", arguments.model_dir.display().to_string()),
        ("--dtype", arguments.dtype.clone()),
        ("--steps", arguments.steps.to_string()),
    ];
    let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    reference::script(&arguments.python, "matrix_floor.py", options).await
}
