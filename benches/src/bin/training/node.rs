//! Our side: a server of its own for each measurement, seen by its clients with transport, journal and all.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::Instant;
use twinkle_tests::{Node, NodeOptions, TinkerHttp};

use crate::workload::Workload;

/// How tenants take their steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// All submit at once.
    Together,
    /// Each waits for the one before to be done.
    OneAfterAnother,
}

/// Trained tokens per second of each measured step of all tenants together, and the server's peak memory in bytes.
pub(crate) struct Measured {
    pub(crate) tokens_per_second: Vec<f64>,
    pub(crate) peak_bytes: u64,
}

/// Trains `tenants` runs, each of a tenant of its own, on `workload`; one more step than `steps` warms up.
pub(crate) async fn measure(
    options: &NodeOptions,
    workload: &Workload,
    rank: u32,
    tenants: usize,
    order: Order,
    steps: usize,
) -> Result<Measured> {
    let node = Node::start(options.clone()).await?;
    let mut runs = Vec::with_capacity(tenants);
    for tenant in 0..tenants {
        runs.push(Run::create(&node, tenant, rank).await?);
    }
    let data = workload.datums();
    let mut tokens_per_second = Vec::with_capacity(steps);
    for step in 0..=steps as u64 {
        let started = Instant::now();
        match order {
            Order::Together => {
                try_join_all(runs.iter().map(|run| run.step(step, &data))).await?;
            }
            Order::OneAfterAnother => {
                for run in &runs {
                    run.step(step, &data).await?;
                }
            }
        }
        let seconds = started.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
        if step > 0 {
            tokens_per_second.push((tenants * workload.tokens()) as f64 / seconds);
        }
    }
    Ok(Measured { tokens_per_second, peak_bytes: peak_memory(node.process_id())? })
}

/// One tenant's run.
struct Run {
    client: TinkerHttp,
    id: String,
}

impl Run {
    async fn create(node: &Node, tenant: usize, rank: u32) -> Result<Self> {
        let client = TinkerHttp::new(&node.base_url(), &format!("tml-bench-{tenant}"));
        // Attention and MLP, as `hf_peft.py` trains.
        let adapter = json!({ "rank": rank, "seed": tenant, "train_unembed": false });
        let id = client.create_run_of(node.model(), &adapter).await?;
        Ok(Self { client, id })
    }

    /// A forward-backward and an optimizer step, submitted together as the SDK's users do.
    async fn step(&self, step: u64, data: &[Value]) -> Result<()> {
        let body = json!({
            "model_id": self.id,
            "seq_id": 2 * step + 1,
            "forward_backward_input": { "loss_fn": "cross_entropy", "data": data },
        });
        let forward_backward = self.client.submit("forward_backward", &body).await?;
        let optim_step = self.client.submit_optim_step(&self.id, 2 * step + 2, 1e-4).await?;
        for request in [forward_backward, optim_step] {
            let result = self.client.result(&request).await?;
            if result.get("error").is_some() {
                bail!("a step failed: {result}");
            }
        }
        Ok(())
    }
}

/// The most memory a process ever had resident, in bytes.
fn peak_memory(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM in /proc")?;
    let kibibytes: u64 = line.split_whitespace().nth(1).context("VmHWM has no number")?.parse()?;
    Ok(kibibytes * 1024)
}
