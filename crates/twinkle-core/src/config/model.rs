//! `args` of an application with `import_path: model`.

use serde::Serialize;

use super::application::Surroundings;
use super::choices::choices;
use super::device::Devices;
use super::limits::Limits;
use super::model_source::{ModelSource, public_name};
use super::precision::{Dtype, Precision};
use super::queue::QueueConfig;
use super::section::{Located, Section};
use super::tree::Value;

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

/// How long adapters live and how many a tenant may have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterConfig {
    /// Seconds of silence of a session after which its runs are unloaded.
    pub adapter_timeout: f64,
    /// Most seconds a run lives.
    pub adapter_max_lifetime: f64,
    /// Most runs of one tenant on this model; `None` leaves it to the node-wide `per_token_model_limit`.
    pub per_token_adapter_limit: Option<u32>,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self { adapter_timeout: 1800.0, adapter_max_lifetime: 36_000.0, per_token_adapter_limit: None }
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
    /// Most bytes for runs and passes, beside the weights; `None` is a share of what is free at start.
    pub memory_limit: Option<u64>,
}

impl ModelArgs {
    pub(super) fn read(mut args: Section<'_>, surroundings: &Surroundings<'_>) -> Option<Self> {
        let model = read_model_id(&mut args);
        let backend = read_backend(&mut args);
        let train_mode = args.choice::<TrainMode>("train_mode");
        let precision = read_precision(&mut args);
        let mut max_loras: Option<Located<u32>> = args.integer("max_loras", 1..=100_000);
        let adapter = read_adapter(args.section("adapter_config"), &mut max_loras);
        let queue = QueueConfig::read(args.section("queue_config"), surroundings.task_queue);
        let max_rank = args.integer("max_r", 1..=65_536).map_or(32, |rank| rank.value);
        let lora_alpha = args.number("lora_alpha", Limits::ABOVE_ZERO).map_or(32.0, |alpha| alpha.value);
        let max_length = args.integer("max_length", 1..).map(|length| length.value);
        let memory_limit = args.bytes("memory_limit");
        let devices = Devices::required(&mut args, surroundings);
        read_extras(&mut args);
        args.finish();

        let model = model?;
        Some(Self {
            public_name: public_name(surroundings.route_prefix, &["/model/", "/models/"], &model),
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
            memory_limit,
        })
    }
}

/// `model_id`, which must be there and mean something.
pub(super) fn read_model_id(args: &mut Section<'_>) -> Option<ModelSource> {
    let id = args.required_text("model_id")?;
    let source = ModelSource::new(id.value);
    if let Err(error) = source.location() {
        match error.hint {
            Some(hint) => args.report().problem_with_hint(id.place, error.message, hint),
            None => args.report().problem(id.place, error.message),
        }
        return None;
    }
    Some(source)
}

/// `backend`, or the older `use_megatron`; with neither, `transformers` as the older grammar had it.
fn read_backend(args: &mut Section<'_>) -> Option<Backend> {
    let older = args.boolean("use_megatron");
    let named = args.choice::<Backend>("backend");
    let is_misspelt = named.is_none() && args.has("backend");
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
        Backend::Megatron => args.report().unavailable(place.unwrap_or_default(), "`backend: megatron`"),
        Backend::Mock => args.report().unavailable(place.unwrap_or_default(), "`backend: mock`"),
    }
    Some(backend)
}

/// `torch_dtype`, or the older `mixed_precision`.
fn read_precision(args: &mut Section<'_>) -> Precision {
    args.either("torch_dtype", "mixed_precision", Dtype::read).map_or(Precision::Auto, |precision| precision.value)
}

fn read_adapter(section: Option<Section<'_>>, max_loras: &mut Option<Located<u32>>) -> AdapterConfig {
    let mut config = AdapterConfig::default();
    let Some(mut section) = section else { return config };
    section.set_number("adapter_timeout", Limits::SOME_SECONDS, &mut config.adapter_timeout);
    section.set_number("adapter_max_lifetime", Limits::SOME_SECONDS, &mut config.adapter_max_lifetime);
    let limit =
        section.either("per_token_model_limit", "per_token_adapter_limit", |section, key| section.integer(key, 1..));
    if let Some(limit) = limit {
        config.per_token_adapter_limit = Some(limit.value);
    }
    if let Some(inner) = section.integer::<u32>("max_loras", 1..=100_000) {
        match max_loras {
            Some(outer) if outer.value != inner.value => {
                let message = format!("`max_loras` is {} here and {} in `args`", inner.value, outer.value);
                section.report().problem_with_hint(inner.place, message, "keep one of them");
            }
            _ => *max_loras = Some(inner),
        }
    }
    section.finish();
    config
}

/// Keys that earlier generations handed to the model's constructor.
fn read_extras(args: &mut Section<'_>) {
    const OF_THE_ORIGINAL: &str = "a setting of the original's engine";
    for key in ["strategy", "ddp_config", "grad_scaler_config", "memory_efficient_init", "attn_implementation"] {
        args.inert(key, OF_THE_ORIGINAL);
    }
    for key in [
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
        "recompute_modules",
        "variable_seq_lengths",
    ] {
        args.inert(key, "a setting of Megatron-LM");
    }
    args.inert("fsdp_config", "one device holds all weights");
    for key in ["lora_config", "tokenizer_id"] {
        args.unavailable(key);
    }
    if args.boolean("enable_router_replay").is_some_and(|replay| replay.value) {
        args.unavailable_value("enable_router_replay");
    }
    let Some(targets) = args.node("target_modules") else { return };
    if targets.value != Value::Text("all-linear".to_owned()) {
        args.report().unavailable(targets.place, "`target_modules` other than `all-linear`");
    }
}
