//! Samples without a server: the engine with its scheduler and continuous batching, in a program of one's own.
//!
//! ```text
//! cargo run -p twinkle-sampler --example sample_tokens -- path/to/a/model 5 9 31 --max-tokens 20
//! ```
//!
//! The folder is a Hugging Face model; the numbers are the prompt's token ids.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use futures::future::try_join_all;
use tower::Service;
use twinkle_core::call::{Call, Operation, Reply, SampleOutcome, SampleRequest, SamplingParams, SamplingSource};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{Component, Lifecycle};
use twinkle_core::config::{ApplicationArgs, SamplerArgs, ServerConfig};
use twinkle_core::ids::TenantId;
use twinkle_nn::{BaseModel, LoadOptions, Precision, PublishedAdapters};
use twinkle_sampler::memory::CacheBudget;
use twinkle_sampler::{SamplerComponent, SamplerContext};

/// Continue a prompt.
#[derive(Parser)]
struct Arguments {
    /// The model's folder.
    model: PathBuf,
    /// The prompt.
    #[arg(required = true)]
    prompt: Vec<u32>,
    /// New tokens at most.
    #[arg(long, default_value_t = 16)]
    max_tokens: u32,
    /// The same seed draws the same tokens, whatever else runs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let options = LoadOptions { precision: Precision::Float32, ..LoadOptions::default() };
    let state = tempfile::tempdir()?;
    let base = Arc::new(BaseModel::load(&arguments.model, &options)?);
    let context = SamplerContext {
        caches: CacheBudget::new(&base.cost(), 1 << 30),
        base,
        // Where adapters would be: those a trainer in this program publishes, and those on disk.
        published: PublishedAdapters::new(state.path().join("live")),
        checkpoints: CheckpointStore::new(state.path().join("checkpoints")),
        tokenizer: arguments.model.clone(),
    };
    let sampler = SamplerComponent::build(settings(&arguments.model)?, context).await?;
    println!("{:?}", sampler.capabilities());

    // Both are in the engine at the same time and share its passes; neither changes a bit of the other.
    let greedy = SamplingParams::greedy(arguments.max_tokens);
    let drawn = SamplingParams { temperature: 1.0, seed: Some(arguments.seed), ..greedy.clone() };
    let ask = |params| ask(sampler.clone(), SampleRequest::new(SamplingSource::Base, arguments.prompt.clone(), params));
    for outcome in try_join_all([greedy, drawn].map(ask)).await? {
        for sequence in outcome.sequences {
            let logprob: f32 = sequence.logprobs.iter().sum();
            println!("{:?} {:?}, logprob {logprob:.3}", sequence.tokens, sequence.stop_reason);
        }
    }
    sampler.drain(Duration::from_secs(5)).await;
    Ok(())
}

async fn ask(mut sampler: SamplerComponent, request: SampleRequest) -> Result<SampleOutcome> {
    let operation = Operation::Sample(Box::new(request));
    match sampler.call(Call { tenant: TenantId::new("me"), operation }).await? {
        Reply::Sample(outcome) => Ok(outcome),
        other => bail!("not the answer to a sample: {other:?}"),
    }
}

/// The engine's settings, as they would stand in a server's file.
fn settings(model: &Path) -> Result<SamplerArgs> {
    let text = format!(
        "
applications:
  - {{name: server, route_prefix: /api/v1, import_path: server}}
  - name: sampler
    route_prefix: /api/v1/sampler/mine
    import_path: sampler
    args:
      model_id: {}
      engine_args: {{max_num_seqs: 8}}
      device_group: {{name: sampler, ranks: 1, device_type: CPU}}
",
        model.canonicalize()?.display()
    );
    let config = ServerConfig::parse("settings", &text).map_err(|error| anyhow::anyhow!("{error}"))?;
    let sampler = config.applications.into_iter().find_map(|application| match application.args {
        ApplicationArgs::Sampler(args) => Some(*args),
        _ => None,
    });
    sampler.context("the settings have no sampler")
}
