//! `args` of an application with `import_path: model`.

use serde::Serialize;

use super::choices::choices;
use super::device::Devices;
use super::model_source::{ModelSource, public_name};
use super::queue::QueueConfig;
use super::section::{Located, Section};

/// Idle runs beyond this many wait on disk: enough that a team's runs stay in memory.
const DEFAULT_MAX_LORAS: u32 = 64;

/// Which engine trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Data parallel.
    Transformers,
    /// Tensor, pipeline and expert parallel.
    Megatron,
    /// Arithmetic without a model, for tests of other parts.
    Mock,
}
choices!(Backend { Transformers = "transformers", Megatron = "megatron", Mock = "mock" });

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainMode {
    /// Adapters of many tenants over a frozen base.
    Lora,
    /// All weights, for one tenant.
    Full,
}
choices!(TrainMode { Lora = "lora", Full = "full" });

/// The number format of the frozen weights and of the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As the weights are stored.
    Auto,
    /// IEEE single precision.
    Float32,
    /// bfloat16.
    Bfloat16,
}
choices!(Precision {
    Auto = "auto",
    Float32 = "float32" | "fp32" | "float" | "no" | "torch.float32",
    Bfloat16 = "bfloat16" | "bf16" | "torch.bfloat16",
});

/// How long adapters live and how many a tenant may have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterConfig {
    /// Seconds of silence of a session after which its runs are unloaded.
    pub adapter_timeout: f64,
    /// Most seconds a run lives.
    pub adapter_max_lifetime: f64,
    /// Most runs of one tenant on this model.
    pub per_token_adapter_limit: u32,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self { adapter_timeout: 1800.0, adapter_max_lifetime: 36_000.0, per_token_adapter_limit: 30 }
    }
}

/// A model to train.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelArgs {
    /// Where its files are.
    pub model: ModelSource,
    /// The name clients use for it.
    pub public_name: String,
    /// Which engine trains it.
    pub backend: Backend,
    /// What is trained.
    pub train_mode: TrainMode,
    /// Its number format.
    pub precision: Precision,
    /// Where it runs.
    pub devices: Devices,
    /// How long adapters live.
    pub adapter: AdapterConfig,
    /// What a tenant may send.
    pub queue: QueueConfig,
    /// Most runs in memory at once; idle ones beyond it wait on disk and come back with their next operation.
    pub max_loras: u32,
    /// Largest LoRA rank.
    pub max_rank: u32,
    /// LoRA alpha of runs that name none.
    pub lora_alpha: f64,
    /// Most tokens of one datum; `None` is the model's own context length.
    pub max_length: Option<u32>,
}

impl ModelArgs {
    pub(super) fn read(mut args: Section<'_>, route_prefix: &str, task_queue: &QueueConfig) -> Option<Self> {
        let model = args.required_text("model_id");
        let backend = read_backend(&mut args);
        let train_mode = args.choice::<TrainMode>("train_mode");
        let precision = read_precision(&mut args);
        let mut max_loras: Option<Located<u32>> = args.integer("max_loras", 1..=100_000);
        let adapter = read_adapter(args.section("adapter_config"), &mut max_loras);
        let queue = QueueConfig::read(args.section("queue_config"), task_queue);
        let max_rank = args.integer("max_r", 1..=65_536).map_or(32, |rank| rank.value);
        let lora_alpha = args.number("lora_alpha", f64::MIN_POSITIVE).map_or(32.0, |alpha| alpha.value);
        let max_length = args.integer("max_length", 1..).map(|length| length.value);
        if args.node("device_group").is_none() {
            args.report().problem(args.place(), format!("`device_group` is missing{}", args.suffix()));
        }
        let devices = Devices::read(&mut args);
        if let Some(devices) = &devices {
            devices.check_available(&args);
        }
        if let Some(mode) = train_mode.as_ref().filter(|mode| mode.value == TrainMode::Full) {
            args.report().unavailable(mode.place, "`train_mode: full`");
        }
        read_extras(&mut args);
        args.finish();

        let model = ModelSource::new(model?.value);
        Some(Self {
            public_name: public_name(route_prefix, &["/model/", "/models/"], &model),
            model,
            backend: backend?,
            train_mode: train_mode.map_or(TrainMode::Lora, |mode| mode.value),
            precision,
            devices: devices?,
            adapter,
            queue,
            max_loras: max_loras.map_or(DEFAULT_MAX_LORAS, |most| most.value),
            max_rank,
            lora_alpha,
            max_length,
        })
    }
}

/// `backend`, or the older `use_megatron`; with neither, `transformers` as the older grammar had it.
fn read_backend(args: &mut Section<'_>) -> Option<Backend> {
    let older = args.boolean("use_megatron");
    let named = args.choice::<Backend>("backend");
    let is_misspelt = named.is_none() && args.node("backend").is_some();
    let from_older = older.as_ref().map(|flag| if flag.value { Backend::Megatron } else { Backend::Transformers });
    if let (Some(named), Some(older), Some(from_older)) = (&named, &older, from_older)
        && named.value != from_older
    {
        let word = if named.value == Backend::Mock {
            "mock"
        } else if older.value {
            "transformers"
        } else {
            "megatron"
        };
        let message = format!("`use_megatron: {}` contradicts `backend: {word}`{}", older.value, args.suffix());
        args.report().problem_with_hint(older.place, message, "keep `backend`; `use_megatron` is its older form");
        return None;
    }
    if is_misspelt {
        return None;
    }
    let place = named.as_ref().map(|named| named.place).or_else(|| older.as_ref().map(|older| older.place));
    let backend = named.map(|named| named.value).or(from_older).unwrap_or(Backend::Transformers);
    match backend {
        Backend::Transformers => {}
        Backend::Megatron => args.report().unavailable(place.unwrap_or_default(), "backend `megatron`"),
        Backend::Mock => args.report().unavailable(place.unwrap_or_default(), "backend `mock`"),
    }
    Some(backend)
}

/// `torch_dtype`, or the older `mixed_precision`.
fn read_precision(args: &mut Section<'_>) -> Precision {
    let named = args.choice::<Precision>("torch_dtype");
    let older = args.choice::<Precision>("mixed_precision");
    if let (Some(named), Some(older)) = (&named, &older)
        && named.value != older.value
    {
        let message = format!("`mixed_precision` contradicts `torch_dtype`{}", args.suffix());
        args.report().problem_with_hint(older.place, message, "keep `torch_dtype`");
    }
    named.or(older).map_or(Precision::Auto, |precision| precision.value)
}

fn read_adapter(section: Option<Section<'_>>, max_loras: &mut Option<Located<u32>>) -> AdapterConfig {
    let mut config = AdapterConfig::default();
    let Some(mut section) = section else { return config };
    if let Some(seconds) = section.number("adapter_timeout", 0.0) {
        config.adapter_timeout = seconds.value;
    }
    if let Some(seconds) = section.number("adapter_max_lifetime", 0.0) {
        config.adapter_max_lifetime = seconds.value;
    }
    let older = section.integer("per_token_adapter_limit", 1..);
    if let Some(limit) = section.integer("per_token_model_limit", 1..).or(older) {
        config.per_token_adapter_limit = limit.value;
    }
    if let Some(inner) = section.integer::<u32>("max_loras", 1..=100_000) {
        match max_loras {
            Some(outer) if outer.value != inner.value => {
                let message = format!("`max_loras` is {} here and {} in `args`", inner.value, outer.value);
                section.report().problem(inner.place, message);
            }
            _ => *max_loras = Some(inner),
        }
    }
    section.finish();
    config
}

/// Keys that earlier generations handed to the model's constructor.
fn read_extras(args: &mut Section<'_>) {
    for key in ["strategy", "ddp_config", "grad_scaler_config", "memory_efficient_init", "attn_implementation"] {
        args.inert(key, "a setting of the original's engine");
    }
    for key in ["recompute_granularity", "variable_seq_lengths"] {
        args.inert(key, "a setting of Megatron-LM");
    }
    for key in ["fsdp_config", "lora_config", "tokenizer_id", "enable_router_replay"] {
        args.unavailable(key);
    }
    if let Some(targets) = args.text("target_modules").filter(|targets| targets.value != "all-linear") {
        args.report().unavailable(targets.place, format!("`target_modules: {}`", targets.value));
    }
}
