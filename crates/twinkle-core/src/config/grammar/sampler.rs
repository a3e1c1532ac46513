//! The `args` of `sampler`.

use super::Need::{Default, Optional, Required};
use super::device::{DEVICE_GROUP, DEVICE_MESH};
use super::model::{DTYPES, MODEL_ID_MEANING};
use super::node::QUEUE;
use super::{Grammar, Kind, key};
use crate::config::limits::Limits;

pub(super) static SAMPLER_ARGS: Grammar = Grammar {
    name: "args of a sampler",
    about: "Samples from a model and from the adapters trained on it.",
    keys: &[
        key("model_id", Kind::Text, Required, MODEL_ID_MEANING),
        key(
            "sampler_type",
            Kind::Words(&["vllm", "torch", "mock"]),
            Default("vllm"),
            "Which engine samples: `vllm` is the paged engine, `torch` the simple reference",
        )
        .refused("`mock`"),
        key("engine_args", Kind::Section(&ENGINE_ARGS), Optional, "Settings of the engine, under vLLM's names"),
        key("queue_config", Kind::Section(&QUEUE), Optional, "What one tenant may send; `task_queue` when left out")
            .since("G3, G4"),
        key("device_group", Kind::Section(&DEVICE_GROUP), Required, "The devices it runs on"),
        key("device_mesh", Kind::Section(&DEVICE_MESH), Optional, "How work is split over them"),
        key("nproc_per_node", Kind::Whole(1, 4096), Default("1"), "Processes of one machine, as for a model").inert(),
        key("adapter_config", Kind::Anything, Optional, "Adapters are managed by the model application")
            .since("G1")
            .inert(),
    ],
};

const SIZE: Kind = Kind::Whole(1, u32::MAX as i64);
const COUNT: Kind = Kind::Whole(1, 1_000_000);
const AMOUNT: Kind = Kind::Number(Limits::FROM_ZERO);

static ENGINE_ARGS: Grammar = Grammar {
    name: "engine_args",
    about: "Settings of the sampling engine, under vLLM's names.",
    keys: &[
        key(
            "max_model_len",
            SIZE,
            Optional,
            "Most tokens of prompt and answer together; the model's own context length when left out",
        ),
        key("max_num_seqs", COUNT, Default("256"), "Most sequences at once"),
        key(
            "dtype",
            DTYPES,
            Default("auto"),
            "Number format, as `torch_dtype` of a model; `auto` shares the trainer's weights",
        )
        .refused("`float16`, `fp8`"),
        key("enable_lora", Kind::Flag, Default("false"), "Whether adapters can be sampled"),
        key("max_loras", COUNT, Default("1"), "Most adapters in one batch"),
        key("max_lora_rank", COUNT, Default("32"), "Largest LoRA rank"),
        key(
            "logprobs_mode",
            Kind::Words(&["processed_logprobs", "raw_logprobs", "processed_logits", "raw_logits"]),
            Default("processed_logprobs"),
            "Which numbers are returned as log-probabilities",
        ),
        key(
            "seed",
            Kind::Whole(0, i64::MAX),
            Optional,
            "Seed of requests that name none; drawn at start when left out",
        ),
        key(
            "gpu_memory_utilization",
            Kind::Number(Limits::SHARE),
            Default("0.7"),
            "Share of the device's memory that weights and this sampler's caches may take together; beside a trainer caches share a quarter of what weights leave free",
        ),
        key("tensor_parallel_size", SIZE, Default("1"), "Devices over which every layer is split").refused("above 1"),
        key("pipeline_parallel_size", SIZE, Default("1"), "Devices over which the layers are divided")
            .refused("above 1"),
        key("data_parallel_size", SIZE, Default("1"), "Copies of the engine").refused("above 1"),
        key("kv_cache_dtype", Kind::Text, Default("auto"), "Number format of the cache").refused("all but `auto`"),
        key("quantization", Kind::Anything, Optional, "Quantized weights").refused("any value"),
        key("rope_scaling", Kind::Anything, Optional, "Another scaling of positions").refused("any value"),
        key("rope_theta", Kind::Anything, Optional, "Another base of positions").refused("any value"),
        key("hf_overrides", Kind::Anything, Optional, "Changes to the model's `config.json`").refused("any value"),
        key("speculative_config", Kind::Anything, Optional, "Speculative decoding").refused("any value"),
        key("tokenizer", Kind::Anything, Optional, "Another model's tokenizer").refused("any value"),
        key("load_format", Kind::Anything, Default("auto"), "Weights are always safetensors").inert(),
        key("trust_remote_code", Kind::Flag, Default("true"), "Code from a model folder is never run").inert(),
        key("enable_prefix_caching", Kind::Flag, Default("false"), "Keeps the cache of common beginnings").inert(),
        key("enforce_eager", Kind::Flag, Default("false"), "Without CUDA graphs").inert(),
        key("enable_sleep_mode", Kind::Flag, Default("false"), "Frees the device's memory when idle").inert(),
        key("enable_tower_connector_lora", Kind::Flag, Default("false"), "Adapters in a vision tower").inert(),
        key("enable_chunked_prefill", Kind::Flag, Optional, "Long prompts in pieces").inert(),
        key("async_scheduling", Kind::Flag, Optional, "Schedules while computing").inert(),
        key("disable_log_stats", Kind::Flag, Optional, "Without vLLM's statistics").inert(),
        key("disable_custom_all_reduce", Kind::Flag, Optional, "Without vLLM's own all-reduce").inert(),
        key("enable_expert_parallel", Kind::Flag, Optional, "Experts over devices").inert(),
        key("block_size", AMOUNT, Optional, "Tokens of one block of the cache").inert(),
        key("swap_space", AMOUNT, Optional, "GiB of host memory for swapped sequences").inert(),
        key("cpu_offload_gb", AMOUNT, Optional, "GiB of weights on the host").inert(),
        key("max_num_batched_tokens", AMOUNT, Optional, "Most tokens of one step").inert(),
        key("max_logprobs", AMOUNT, Optional, "Most log-probabilities of one token").inert(),
        key("compilation_config", Kind::Anything, Optional, "vLLM's compilation").inert(),
        key("distributed_executor_backend", Kind::Anything, Optional, "vLLM's executor").inert(),
        key("limit_mm_per_prompt", Kind::Anything, Optional, "Most images of one prompt").inert(),
        key("mm_processor_kwargs", Kind::Anything, Optional, "Settings of image processors").inert(),
    ],
};
