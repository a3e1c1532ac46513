//! The `args` of `model`.

use super::Need::{Default, Optional, Required};
use super::device::{DEVICE_GROUP, DEVICE_MESH};
use super::node::QUEUE;
use super::{Grammar, Kind, key};
use crate::config::limits::Limits;

/// Words of number formats, the older spellings among them.
pub(super) const DTYPES: Kind = Kind::Words(&[
    "auto",
    "float32",
    "bfloat16",
    "float16",
    "fp8",
    "fp32",
    "float",
    "no",
    "bf16",
    "fp16",
    "half",
    "torch.float32",
    "torch.bfloat16",
    "torch.float16",
]);

/// An amount of memory.
const BYTES: Kind = Kind::Other {
    told: "amount of memory, such as `8 GiB`",
    schema: r#"{"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9.]+ *([kKMGT]i?B)?$"}]}"#,
    example: "8 GiB",
};

pub(super) const MODEL_ID_MEANING: &str =
    "Where the model's files are: `ms://org/name`, `hf://org/name`, `org/name`, a folder or a `.gguf` file";

pub(super) static MODEL_ARGS: Grammar = Grammar {
    name: "args of a model",
    about: "Trains LoRA adapters over a frozen model.",
    keys: &[
        key("model_id", Kind::Text, Required, MODEL_ID_MEANING),
        key(
            "backend",
            Kind::Words(&["transformers", "megatron", "mock"]),
            Default("transformers"),
            "Which engine trains",
        )
        .since("G4")
        .refused("`megatron`, `mock`"),
        key("use_megatron", Kind::Flag, Optional, "The older form of `backend`; both must agree")
            .since("G1–G3")
            .refused("`true`"),
        key(
            "train_mode",
            Kind::Words(&["lora", "full"]),
            Default("lora"),
            "What is trained: adapters of many tenants, or all weights for one tenant (a single replica)",
        )
        .since("G4"),
        key(
            "torch_dtype",
            DTYPES,
            Default("auto"),
            "Number format of the frozen weights and of the computation; `auto` takes the one they are stored in",
        )
        .refused("`float16`, `fp8`"),
        key("mixed_precision", DTYPES, Optional, "The older form of `torch_dtype`; `no` is `float32`")
            .since("G1–G3")
            .refused("`fp16`, `fp8`"),
        key(
            "max_loras",
            Kind::Whole(1, 100_000),
            Default("64"),
            "Most adapters in memory at once; idle ones beyond wait on disk and return with their next operation",
        )
        .since("G3, G4"),
        key("max_r", Kind::Whole(1, 65_536), Default("32"), "Largest LoRA rank"),
        key("lora_alpha", Kind::Number(Limits::ABOVE_ZERO), Default("32"), "LoRA alpha of runs that name none")
            .since("ours"),
        key(
            "max_length",
            Kind::Whole(1, u32::MAX as i64),
            Optional,
            "Most tokens of one datum; the model's own context length when left out",
        )
        .since("G3, G4"),
        key(
            "memory_limit",
            BYTES,
            Optional,
            "Most memory for runs and passes, beside the weights; half of what is free at start when left out",
        )
        .since("ours"),
        key("adapter_config", Kind::Section(&ADAPTER_CONFIG), Optional, "How long adapters live"),
        key("queue_config", Kind::Section(&QUEUE), Optional, "What one tenant may send; `task_queue` when left out")
            .since("G3, G4"),
        key("device_group", Kind::Section(&DEVICE_GROUP), Required, "The devices it runs on"),
        key("device_mesh", Kind::Section(&DEVICE_MESH), Optional, "How work is split over them"),
        key(
            "nproc_per_node",
            Kind::Whole(1, 4096),
            Default("1"),
            "Processes of one machine. One process drives every device; a worker's devices must be on one node of \
             this many",
        )
        .inert(),
        key("target_modules", Kind::Anything, Default("all-linear"), "Which layers get adapters")
            .refused("anything but `all-linear`"),
        key("lora_config", Kind::Anything, Optional, "Settings of adapters, which clients give").refused("any value"),
        key("tokenizer_id", Kind::Anything, Optional, "Another model's tokenizer").refused("any value"),
        key("fsdp_config", Kind::Anything, Optional, "How weights are sharded").since("G1–G3").inert(),
        key("enable_router_replay", Kind::Flag, Default("false"), "Replays the routing of experts").refused("`true`"),
        key("strategy", Kind::Anything, Default("accelerate"), "How the original runs in parallel")
            .since("G1–G3")
            .inert(),
        key("ddp_config", Kind::Anything, Optional, "Data-parallel settings of the original").since("G1–G3").inert(),
        key("grad_scaler_config", Kind::Anything, Optional, "Loss scaling of half precision").since("G1–G3").inert(),
        key("memory_efficient_init", Kind::Anything, Optional, "How the original loads weights").since("G1–G3").inert(),
        key("attn_implementation", Kind::Anything, Optional, "Which attention kernel the original uses")
            .since("G1–G3")
            .inert(),
        key("recompute_granularity", Kind::Anything, Optional, "What Megatron-LM recomputes").since("G1–G3").inert(),
        key("recompute_method", Kind::Anything, Optional, "How Megatron-LM recomputes").since("G1–G3").inert(),
        key("recompute_num_layers", Kind::Anything, Optional, "How much Megatron-LM recomputes").since("G1–G3").inert(),
        key("recompute_modules", Kind::Anything, Optional, "Which modules Megatron-LM recomputes")
            .since("G1–G3")
            .inert(),
        key("variable_seq_lengths", Kind::Anything, Optional, "Whether Megatron-LM takes rows of different lengths")
            .since("G1–G3")
            .inert(),
    ],
};

static ADAPTER_CONFIG: Grammar = Grammar {
    name: "adapter_config",
    about: "How long adapters live and how many a tenant may have on this model.",
    keys: &[
        key(
            "adapter_timeout",
            Kind::Seconds(Limits::SOME_SECONDS),
            Default("1800"),
            "Seconds of silence of a session after which its adapters leave the memory",
        ),
        key(
            "adapter_max_lifetime",
            Kind::Seconds(Limits::SOME_SECONDS),
            Default("36000"),
            "Seconds an adapter lives at most",
        )
        .since("G3, G4"),
        key(
            "per_token_adapter_limit",
            Kind::Whole(1, u32::MAX as i64),
            Optional,
            "Most runs of one tenant on this model; when left out, only `per_token_model_limit` of the server holds",
        )
        .since("G1, G2"),
        key("per_token_model_limit", Kind::Whole(1, u32::MAX as i64), Optional, "The same; both must agree")
            .since("G3"),
        key("max_loras", Kind::Whole(1, 100_000), Optional, "As `max_loras` in `args`; both must agree").since("G3"),
    ],
};
