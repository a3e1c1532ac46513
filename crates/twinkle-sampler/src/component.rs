//! The `sampler` component: a handle that checks requests, finds their weights and hands them to the engine thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use tokenizers::Tokenizer;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;
use tower::Service;
use tracing::{debug, info, warn};
use twinkle_core::call::{Call, LogprobsMode, Operation, Reply, SampleRequest};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{Component, ComponentKind, Health, Lifecycle, misrouted};
use twinkle_core::config::{self, SamplerArgs, SamplerType};
use twinkle_core::engine::pulse::EngineStatus;
use twinkle_core::engine::supervisor::RestartPolicy;
use twinkle_core::ids::TenantId;
use twinkle_core::telemetry::labels::{BaseModel as BaseModelLabel, Model};
use twinkle_core::telemetry::metrics::KV_CACHE_LIMIT;
use twinkle_core::{Error, ErrorCode, Result};
use twinkle_nn::{BaseModel, ModelConfig, PublishedAdapters};

use crate::adapters::{AdapterLimits, Adapters};
use crate::line::{Line, Question};
use crate::memory::CacheBudget;
use crate::params::{MOST_CELLS, ModelLimits, ValidRequest, validate};
use crate::runner::TorchRunner;
use crate::scheduler::{FairScheduler, Scheduler, SchedulerLimits};
use crate::seeds::Seeds;
use crate::stats::EngineStats;
use crate::stop::StopRule;

/// Requests in the house, waiting or running; more are told to come back.
const MOST_REQUESTS: usize = 4096;
/// Likeliest, given and drawn tokens of all requests at once: 128 MiB of ids and logprobs.
const ROOM: usize = 4 * MOST_CELLS;
/// Most samples in one request.
const MOST_SAMPLES: u32 = 1024;
/// Prompt tokens per tile: what one prefill computes.
const TILE: usize = 64;
/// Tokens of one step: long enough to be efficient, short enough that running samples do not stall.
const STEP_TOKENS: usize = 512;

/// What the launcher hands over besides the arguments.
#[derive(Clone)]
pub struct SamplerContext {
    /// The frozen weights.
    pub base: Arc<BaseModel>,
    /// Where the trainer hands over live adapters.
    pub published: PublishedAdapters,
    /// Where saved adapters lie.
    pub checkpoints: CheckpointStore,
    /// The folder of the tokenizer; without one there, stop texts are refused.
    pub tokenizer: PathBuf,
    /// What its caches may take.
    pub caches: CacheBudget,
}

/// What this sampler can do, for status pages and clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SamplerCapabilities {
    /// The engine that computes.
    pub engine: &'static str,
    /// The engine the configuration asks for.
    pub sampler_type: &'static str,
    /// Most tokens of prompt and answer together.
    pub max_model_len: usize,
    /// Most samples at once.
    pub max_num_seqs: usize,
    /// KV rows of all samples together.
    pub kv_tokens: usize,
    /// Largest rank of an adapter; 0 when adapters are not served.
    pub max_lora_rank: u32,
    /// Whether stop texts work.
    pub stop_texts: bool,
}

/// A cloneable handle to one sampling engine.
#[derive(Clone)]
pub struct SamplerComponent {
    shared: Arc<Shared>,
}

struct Shared {
    limits: ModelLimits,
    eos: Vec<u32>,
    tokenizer: Option<Arc<Tokenizer>>,
    seeds: Seeds,
    adapters: Adapters,
    capabilities: SamplerCapabilities,
    line: Line,
    places: Arc<Semaphore>,
    /// For likeliest, given and drawn tokens of all requests together.
    room: Semaphore,
}

/// What this component tells about itself.
#[derive(Debug, Serialize)]
struct SamplerStatus {
    #[serde(flatten)]
    engine: EngineStatus,
    requests_in_memory: usize,
    samples_waiting: usize,
    cache_bytes: u64,
    generated_tokens: u64,
}

impl SamplerComponent {
    /// What it can do.
    #[must_use]
    pub fn capabilities(&self) -> &SamplerCapabilities {
        &self.shared.capabilities
    }

    /// What the engine holds right now.
    #[must_use]
    pub fn stats(&self) -> &EngineStats {
        self.shared.line.stats()
    }

    fn validate(&self, request: SampleRequest) -> Result<ValidRequest> {
        let shared = &self.shared;
        let stop =
            StopRule::read(&request.params.stop, &shared.eos, shared.limits.vocabulary, shared.tokenizer.as_ref())?;
        let has_seed = request.params.seed.is_some();
        let request = validate(request, stop, &shared.limits, &shared.seeds)?;
        if !has_seed {
            debug!(seed = request.seed, "drew a seed for a sampling request that names none");
        }
        Ok(request)
    }
}

impl Component for SamplerComponent {
    type Args = SamplerArgs;
    type Context = SamplerContext;

    async fn build(args: SamplerArgs, context: SamplerContext) -> Result<Self> {
        let SamplerContext { base, published, checkpoints, tokenizer, caches } = context;
        let config = base.config();
        let max_model_len = model_length(args.engine.max_model_len, config)?;
        let text = spawn_blocking(move || read_text_files(&tokenizer))
            .await
            .map_err(|_| Error::internal("reading the tokenizer was interrupted"))??;
        let mut eos = config.eos_token_ids.clone();
        eos.extend(text.eos);
        let limits = ModelLimits {
            vocabulary: config.vocab_size,
            max_model_len,
            max_samples: MOST_SAMPLES,
            numbers: numbers(args.engine.logprobs_mode),
        };
        let schedule = SchedulerLimits {
            seats: args.engine.max_num_seqs as usize,
            kv_tokens: caches.tokens(),
            sequence_tokens: caches.sequence_tokens(),
            step_tokens: STEP_TOKENS,
            tile: TILE,
            waiting: MOST_REQUESTS,
        };
        let capabilities = SamplerCapabilities {
            engine: "torch",
            sampler_type: engine_name(args.sampler_type),
            max_model_len,
            max_num_seqs: schedule.seats,
            kv_tokens: schedule.kv_tokens,
            max_lora_rank: if args.engine.enable_lora { args.engine.max_lora_rank } else { 0 },
            stop_texts: text.tokenizer.is_some(),
        };
        announce(&args, &capabilities, schedule.sequence_tokens);

        let adapter_limits = AdapterLimits {
            base_model: args.public_name.clone(),
            enabled: args.engine.enable_lora,
            max_rank: args.engine.max_lora_rank,
        };
        let adapters = Adapters::new(Arc::clone(&base), published, checkpoints, adapter_limits);
        KV_CACHE_LIMIT.set(capabilities.kv_tokens as u64, Model { base_model: BaseModelLabel::new(&args.public_name) });
        let name = args.public_name.clone();
        let line = Line::start(RestartPolicy::default(), move || {
            let scheduler: Box<dyn Scheduler> = Box::new(FairScheduler::new(schedule));
            (TorchRunner::new(Arc::clone(&base)).named(&name), scheduler)
        })?;
        let shared = Shared {
            limits,
            eos,
            tokenizer: text.tokenizer,
            seeds: Seeds::new(args.engine.seed),
            adapters,
            capabilities,
            line,
            places: Arc::new(Semaphore::new(MOST_REQUESTS)),
            room: Semaphore::new(ROOM),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Service<Call> for SamplerComponent {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Dropping the future aborts the request and frees its memory.
    fn call(&mut self, call: Call) -> Self::Future {
        let Call { tenant, operation } = call;
        let Operation::Sample(request) = operation else {
            let error = misrouted(ComponentKind::Sampler, operation.name());
            return async move { Err(error) }.boxed();
        };
        let component = self.clone();
        async move { component.sample(tenant, *request).await }.boxed()
    }
}

impl SamplerComponent {
    async fn sample(&self, tenant: TenantId, request: SampleRequest) -> Result<Reply> {
        let Ok(_place) = self.shared.places.try_acquire() else {
            return Err(Error::new(ErrorCode::Overloaded, "too many sampling requests are waiting")
                .retry_after(Duration::from_secs(1)));
        };
        let source = request.source.clone();
        let request = self.validate(request)?;
        let _room = self.room_for_extras(&request).await?;
        let weights = self.shared.adapters.resolve(&tenant, &source).await?;
        self.shared.line.ask(Question { tenant, request, weights }).await.map(Reply::Sample)
    }

    /// Room for what the request wants beside its tokens; waits until others have theirs.
    async fn room_for_extras(&self, request: &ValidRequest) -> Result<Option<SemaphorePermit<'_>>> {
        let cells = u32::try_from(request.extra_cells()).unwrap_or(u32::MAX);
        if cells == 0 {
            return Ok(None);
        }
        let room = self.shared.room.acquire_many(cells).await;
        room.map(Some).map_err(|_| Error::internal("the sampler has no room for likeliest tokens"))
    }
}

impl Lifecycle for SamplerComponent {
    fn kind(&self) -> ComponentKind {
        ComponentKind::Sampler
    }

    fn health(&self) -> Health {
        self.shared.line.pulse().health()
    }

    fn status(&self) -> serde_json::Value {
        let (pulse, counts) = (self.shared.line.pulse(), self.shared.line.stats());
        let status = SamplerStatus {
            engine: pulse.status(),
            requests_in_memory: counts.requests(),
            samples_waiting: counts.waiting(),
            cache_bytes: counts.cache_bytes(),
            generated_tokens: counts.generated(),
        };
        serde_json::to_value(status).unwrap_or_default()
    }

    fn drain(&self, limit: Duration) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        async move { shared.line.drain(limit).await }.boxed()
    }
}

fn announce(args: &SamplerArgs, capabilities: &SamplerCapabilities, sequence_tokens: usize) {
    if args.sampler_type == SamplerType::Vllm {
        info!(
            model = args.public_name,
            "`sampler_type: vllm` is served by the `torch` engine; the paged engine comes later"
        );
    }
    if capabilities.kv_tokens < capabilities.max_model_len + sequence_tokens {
        warn!(
            kv_tokens = capabilities.kv_tokens,
            max_model_len = capabilities.max_model_len,
            "free memory does not hold one full context; requests that need more are refused"
        );
    }
    info!(
        model = args.public_name,
        max_model_len = capabilities.max_model_len,
        max_num_seqs = capabilities.max_num_seqs,
        kv_tokens = capabilities.kv_tokens,
        max_lora_rank = capabilities.max_lora_rank,
        "sampler ready; any number of adapters may share a batch"
    );
}

fn model_length(wanted: Option<u32>, config: &ModelConfig) -> Result<usize> {
    let most = config.max_position_embeddings;
    match wanted.map(|wanted| wanted as usize) {
        Some(wanted) if wanted > most => Err(Error::invalid(format!(
            "`engine_args.max_model_len` is {wanted}, the model's context has {most} tokens"
        ))),
        Some(wanted) => Ok(wanted),
        None => Ok(most),
    }
}

/// What the model's folder says about text.
struct TextFiles {
    tokenizer: Option<Arc<Tokenizer>>,
    /// The tokenizer's own end-of-sequence token, beside those of the model's configuration.
    eos: Option<u32>,
}

fn read_text_files(directory: &Path) -> Result<TextFiles> {
    let path = directory.join("tokenizer.json");
    if !path.exists() {
        return Ok(TextFiles { tokenizer: None, eos: None });
    }
    let tokenizer = Tokenizer::from_file(&path)
        .map_err(|error| Error::invalid(format!("`{}` is not a tokenizer: {error}", path.display())))?;
    let eos = end_of_sequence(&directory.join("tokenizer_config.json")).and_then(|token| tokenizer.token_to_id(&token));
    Ok(TextFiles { tokenizer: Some(Arc::new(tokenizer)), eos })
}

/// `eos_token` of a `tokenizer_config.json`: a text, or an object with its `content`.
fn end_of_sequence(path: &Path) -> Option<String> {
    let text = std::fs::read(path).ok()?;
    let settings: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let token = settings.get("eos_token")?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// What the configuration's `logprobs_mode` means.
fn numbers(mode: config::LogprobsMode) -> LogprobsMode {
    match mode {
        config::LogprobsMode::ProcessedLogprobs => LogprobsMode::Processed,
        config::LogprobsMode::RawLogprobs => LogprobsMode::Raw,
        config::LogprobsMode::ProcessedLogits => LogprobsMode::ProcessedLogits,
        config::LogprobsMode::RawLogits => LogprobsMode::RawLogits,
    }
}

/// As it is written in the configuration.
fn engine_name(kind: SamplerType) -> &'static str {
    match kind {
        SamplerType::Vllm => "vllm",
        SamplerType::Torch => "torch",
        SamplerType::Mock => "mock",
    }
}
