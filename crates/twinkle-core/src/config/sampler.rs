//! `args` of an application with `import_path: sampler`.

use serde::Serialize;

use super::application::Surroundings;
use super::choices::choices;
use super::device::Devices;
use super::limits::Limits;
use super::model::read_model_id;
use super::model_source::{ModelSource, public_name};
use super::precision::{Dtype, Precision};
use super::queue::QueueConfig;
use super::section::Section;

/// Which engine samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerType {
    /// Our paged engine, under the name deployments already use.
    Vllm,
    /// The simple reference engine.
    Torch,
    /// Arithmetic without a model, for tests of other parts.
    Mock,
}
choices!(SamplerType { Vllm = "vllm", Torch = "torch", Mock = "mock" });

/// Which numbers are returned as log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogprobsMode {
    /// After temperature and the other logits processors.
    ProcessedLogprobs,
    /// Before them.
    RawLogprobs,
    /// Logits after them.
    ProcessedLogits,
    /// Logits before them.
    RawLogits,
}
choices!(LogprobsMode {
    ProcessedLogprobs = "processed_logprobs",
    RawLogprobs = "raw_logprobs",
    ProcessedLogits = "processed_logits",
    RawLogits = "raw_logits",
});

/// Settings of the sampling engine (`engine_args`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EngineArgs {
    /// Most tokens of prompt and answer together; `None` is the model's own context length.
    pub max_model_len: Option<u32>,
    /// Most sequences at once.
    pub max_num_seqs: u32,
    /// Number format.
    pub dtype: Precision,
    /// Whether adapters can be sampled.
    pub enable_lora: bool,
    /// Most adapters in one batch.
    pub max_loras: u32,
    /// Largest LoRA rank.
    pub max_lora_rank: u32,
    /// Which numbers are returned as log-probabilities.
    pub logprobs_mode: LogprobsMode,
    /// Seed of requests that name none; `None` draws one at start.
    pub seed: Option<u64>,
    /// Share of the device's memory, in `(0, 1]`, that weights and this sampler's caches may take together. Beside a trainer
    /// caches share a quarter of what weights leave free.
    pub gpu_memory_utilization: f64,
}

impl Default for EngineArgs {
    fn default() -> Self {
        Self {
            max_model_len: None,
            max_num_seqs: 256,
            dtype: Precision::Auto,
            enable_lora: false,
            max_loras: 1,
            max_lora_rank: 32,
            logprobs_mode: LogprobsMode::ProcessedLogprobs,
            seed: None,
            gpu_memory_utilization: 0.7,
        }
    }
}

/// A model to sample from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SamplerArgs {
    /// Where its files are.
    pub model: ModelSource,
    /// The name clients use for it.
    pub public_name: String,
    /// Which engine samples.
    pub sampler_type: SamplerType,
    /// Settings of the engine.
    pub engine: EngineArgs,
    /// Where it runs.
    pub devices: Devices,
    /// What a tenant may send.
    pub queue: QueueConfig,
}

impl SamplerArgs {
    pub(super) fn read(mut args: Section<'_>, surroundings: &Surroundings<'_>) -> Option<Self> {
        let model = read_model_id(&mut args);
        let sampler_type = args.choice::<SamplerType>("sampler_type");
        let is_misspelt = sampler_type.is_none() && args.has("sampler_type");
        let engine = EngineArgs::read(args.section("engine_args"));
        let queue = QueueConfig::read(args.section("queue_config"), surroundings.task_queue);
        let devices = Devices::required(&mut args, surroundings);
        args.inert("adapter_config", "adapters are managed by the model application");
        if let Some(kind) = sampler_type.as_ref().filter(|kind| kind.value == SamplerType::Mock) {
            args.report().unavailable(kind.place, "sampler_type `mock`");
        }
        args.finish();

        let model = model?;
        if is_misspelt {
            return None;
        }
        Some(Self {
            public_name: public_name(surroundings.route_prefix, &["/sampler/", "/samplers/"], &model),
            model,
            sampler_type: sampler_type.map_or(SamplerType::Vllm, |kind| kind.value),
            engine,
            devices: devices?,
            queue,
        })
    }
}

impl EngineArgs {
    fn read(section: Option<Section<'_>>) -> Self {
        let mut engine = Self::default();
        let Some(mut section) = section else { return engine };
        engine.max_model_len = section.integer("max_model_len", 1..).map(|length| length.value);
        let counts = [
            ("max_num_seqs", &mut engine.max_num_seqs),
            ("max_loras", &mut engine.max_loras),
            ("max_lora_rank", &mut engine.max_lora_rank),
        ];
        for (key, count) in counts {
            if let Some(given) = section.integer(key, 1..=1_000_000) {
                *count = given.value;
            }
        }
        if let Some(dtype) = Dtype::read(&mut section, "dtype") {
            engine.dtype = dtype.value;
        }
        if let Some(enabled) = section.boolean("enable_lora") {
            engine.enable_lora = enabled.value;
        }
        if let Some(mode) = section.choice::<LogprobsMode>("logprobs_mode") {
            engine.logprobs_mode = mode.value;
        }
        engine.seed = section.integer("seed", 0..).map(|seed| seed.value);
        section.set_number("gpu_memory_utilization", Limits::SHARE, &mut engine.gpu_memory_utilization);
        read_vllm(&mut section);
        section.finish();
        engine
    }
}

/// Keys of vLLM's own engine.
fn read_vllm(section: &mut Section<'_>) {
    const SPEED_ONLY: &str = "a setting of vLLM's engine that changes no result";
    for key in ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"] {
        if section.integer::<u32>(key, 1..).is_some_and(|size| size.value > 1) {
            section.unavailable_value(key);
        }
    }
    for key in ["quantization", "rope_scaling", "rope_theta", "hf_overrides", "speculative_config", "tokenizer"] {
        section.unavailable(key);
    }
    if section.text("kv_cache_dtype").is_some_and(|dtype| dtype.value != "auto") {
        section.unavailable_value("kv_cache_dtype");
    }
    for key in [
        "enable_prefix_caching",
        "enforce_eager",
        "enable_sleep_mode",
        "enable_tower_connector_lora",
        "enable_chunked_prefill",
        "async_scheduling",
        "disable_log_stats",
        "disable_custom_all_reduce",
        "enable_expert_parallel",
    ] {
        section.inert_boolean(key, SPEED_ONLY);
    }
    for key in ["block_size", "swap_space", "cpu_offload_gb", "max_num_batched_tokens", "max_logprobs"] {
        section.inert_number(key, Limits::FROM_ZERO, SPEED_ONLY);
    }
    for key in ["compilation_config", "distributed_executor_backend", "limit_mm_per_prompt", "mm_processor_kwargs"] {
        section.inert(key, SPEED_ONLY);
    }
    section.inert("load_format", "weights are always safetensors");
    section.inert_boolean("trust_remote_code", "code from a model folder is never run");
}
