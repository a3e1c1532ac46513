//! Decode tokens per second at 1 and 16 streams: `cargo run -p twinkle-sampler --example decode_speed -- <model folder>`.
//!
//! Every request has its own 64-token prompt and draws 64 tokens at temperature 1; prefill is counted in.
#![expect(clippy::print_stdout, reason = "a command-line tool")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use twinkle_core::call::LogprobsMode;
use twinkle_core::engine::supervisor::RestartPolicy;
use twinkle_core::ids::TenantId;
use twinkle_core::{Error, Result};
use twinkle_nn::{BaseModel, LoadOptions};
use twinkle_sampler::adapters::Weights;
use twinkle_sampler::line::{Line, Question};
use twinkle_sampler::logits::DrawParams;
use twinkle_sampler::memory::CacheBudget;
use twinkle_sampler::params::ValidRequest;
use twinkle_sampler::prompt::PromptWants;
use twinkle_sampler::runner::TorchRunner;
use twinkle_sampler::scheduler::{FairScheduler, Scheduler, SchedulerLimits};
use twinkle_sampler::stop::StopRule;

const PROMPT: usize = 64;
const NEW_TOKENS: usize = 64;
/// For the caches of all streams.
const CACHE_BYTES: u64 = 4 << 30;

fn main() -> Result<()> {
    let runtime = Runtime::new().map_err(|error| Error::internal(error.to_string()))?;
    runtime.block_on(measure())
}

async fn measure() -> Result<()> {
    let folder = std::env::args().nth(1).ok_or_else(|| Error::invalid("name a model folder"))?;
    let base = Arc::new(BaseModel::load(&PathBuf::from(folder), &LoadOptions::default())?);
    println!("weights: {} MiB as {:?}", base.weight_bytes() >> 20, base.kind());
    let caches = CacheBudget::new(&base.cost(), CACHE_BYTES);
    let limits = SchedulerLimits {
        seats: 64,
        kv_tokens: caches.tokens(),
        sequence_tokens: caches.sequence_tokens(),
        step_tokens: 512,
        tile: 64,
        waiting: 64,
    };
    let vocabulary = base.config().vocab_size as u32;
    let line = Line::start(RestartPolicy::default(), move || {
        let scheduler: Box<dyn Scheduler> = Box::new(FairScheduler::new(limits));
        (TorchRunner::new(Arc::clone(&base)), scheduler)
    })?;
    for streams in [1, 1, 4, 16] {
        let started = Instant::now();
        let questions = (0..streams).map(|stream| {
            let request = request(stream, vocabulary);
            line.ask(Question { tenant: TenantId::new("bench"), request, weights: Weights::default() })
        });
        let outcomes = try_join_all(questions).await?;
        let tokens: usize =
            outcomes.iter().flat_map(|outcome| &outcome.sequences).map(|sequence| sequence.tokens.len()).sum();
        let seconds = started.elapsed().as_secs_f64();
        println!("{streams:>3} streams: {:>8.1} tokens/s", tokens as f64 / seconds);
    }
    line.drain(Duration::from_secs(1)).await;
    Ok(())
}

fn request(stream: u32, vocabulary: u32) -> ValidRequest {
    ValidRequest {
        prompt: (0..PROMPT as u32).map(|index| (index * 97 + stream * 31) % vocabulary).collect(),
        samples: 1,
        max_new_tokens: NEW_TOKENS,
        seed: u64::from(stream),
        draw: DrawParams { temperature: 1.0, top_k: None, top_p: 1.0 },
        stop: StopRule::default(),
        wants: PromptWants::default(),
        top: 0,
        bias: None,
        seen: None,
        numbers: LogprobsMode::Processed,
        stream: None,
    }
}
