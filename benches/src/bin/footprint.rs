//! Start to ready, and memory when idle: how light the server is before anybody uses it.
//!
//! Prints one JSON object. Mapped weight files are counted apart: the kernel may drop those pages.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use tokio::time::Instant;
use twinkle_tests::{Node, NodeOptions};

/// Measures start-up time and idle memory.
#[derive(Debug, Parser)]
struct Arguments {
    /// The server binary.
    #[arg(long, default_value = "target/debug/twinkle-server")]
    server: PathBuf,
    /// A model folder in the Hugging Face layout.
    #[arg(long)]
    model_dir: PathBuf,
    /// `bfloat16` or `float32`; the checkpoint's own needs no copy.
    #[arg(long, default_value = "bfloat16")]
    dtype: String,
    /// How often it is started.
    #[arg(long, default_value_t = 5)]
    starts: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let options = NodeOptions {
        binary: arguments.server,
        model: arguments.model_dir.canonicalize().context("the model folder")?,
        name: "bench/model".to_owned(),
        dtype: arguments.dtype,
        ..NodeOptions::fixture("", "qwen3")
    };
    let mut seconds = Vec::new();
    let (mut own, mut mapped) = (0, 0);
    for _ in 0..arguments.starts.max(1) {
        let started = Instant::now();
        let node = Node::start(options.clone()).await?;
        seconds.push(started.elapsed().as_secs_f64());
        own = memory(node.process_id(), "RssAnon:")?;
        mapped = memory(node.process_id(), "RssFile:")?;
    }
    seconds.sort_by(f64::total_cmp);
    let report = json!({
        "model": arguments.model_dir.file_name().map(|name| name.to_string_lossy().into_owned()),
        "start_to_ready_seconds": seconds[seconds.len() / 2],
        "idle_own_memory_bytes": own,
        "idle_mapped_files_bytes": mapped,
    });
    #[expect(clippy::print_stdout, reason = "the result is this program's output")]
    {
        println!("{report}");
    }
    Ok(())
}

fn memory(process: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).with_context(|| format!("no {field} in /proc"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1).with_context(|| format!("{field} has no number"))?.parse()?;
    Ok(kibibytes * 1024)
}
