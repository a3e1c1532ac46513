//! `args` of an application with `import_path: sampler`.

use serde::Serialize;

use super::choices::choices;
use super::device::Devices;
use super::model::Precision;
use super::model_source::{ModelSource, public_name};
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
    /// Share of the device's memory that may be used, in `(0, 1]`.
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
    pub(super) fn read(mut args: Section<'_>, route_prefix: &str, task_queue: &QueueConfig) -> Option<Self> {
        let model = args.required_text("model_id");
        let sampler_type = args.choice::<SamplerType>("sampler_type");
        let is_misspelt = sampler_type.is_none() && args.node("sampler_type").is_some();
        let engine = EngineArgs::read(args.section("engine_args"));
        let queue = QueueConfig::read(args.section("queue_config"), task_queue);
        if args.node("device_group").is_none() {
            args.report().problem(args.place(), format!("`device_group` is missing{}", args.suffix()));
        }
        let devices = Devices::read(&mut args);
        if let Some(devices) = &devices {
            devices.check_available(&args);
        }
        args.inert("adapter_config", "adapters are managed by the model application");
        if let Some(kind) = sampler_type.as_ref().filter(|kind| kind.value == SamplerType::Mock) {
            args.report().unavailable(kind.place, "sampler_type `mock`");
        }
        args.finish();

        let model = ModelSource::new(model?.value);
        if is_misspelt {
            return None;
        }
        Some(Self {
            public_name: public_name(route_prefix, &["/sampler/", "/samplers/"], &model),
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
        if let Some(dtype) = section.choice("dtype") {
            engine.dtype = dtype.value;
        }
        if let Some(enabled) = section.boolean("enable_lora") {
            engine.enable_lora = enabled.value;
        }
        if let Some(mode) = section.choice::<LogprobsMode>("logprobs_mode") {
            engine.logprobs_mode = mode.value;
            if mode.value != LogprobsMode::ProcessedLogprobs {
                section.unavailable("logprobs_mode");
            }
        }
        engine.seed = section.integer("seed", 0..).map(|seed| seed.value);
        if let Some(share) = section.number("gpu_memory_utilization", 0.0) {
            if share.value > 0.0 && share.value <= 1.0 {
                engine.gpu_memory_utilization = share.value;
            } else {
                section.report().problem(share.place, "`gpu_memory_utilization` must be above 0 and at most 1");
            }
        }
        if let Some(size) = section.integer::<u32>("tensor_parallel_size", 1..).filter(|size| size.value > 1) {
            section.report().unavailable(size.place, format!("`tensor_parallel_size: {}`", size.value));
        }
        if section.node("quantization").is_some() {
            section.unavailable("quantization");
        }
        for key in ["enable_prefix_caching", "enforce_eager", "enable_sleep_mode", "enable_tower_connector_lora"] {
            section.inert(key, "a setting of vLLM's engine that changes no result");
        }
        section.inert("load_format", "weights are always safetensors");
        section.inert("trust_remote_code", "code from a model folder is never run");
        section.finish();
        engine
    }
}
