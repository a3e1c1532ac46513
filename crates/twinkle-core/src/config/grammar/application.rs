//! What belongs to every application, and the `args` of `server` and `processor`.

use super::Need::{Default, Optional, Required};
use super::device::{DEVICE_GROUP, DEVICE_MESH};
use super::node::QUEUE;
use super::{Grammar, Key, Kind, key};
use crate::config::limits::Limits;

const PREFIX: Kind = Kind::Other {
    told: "path",
    schema: r#"{"type": "string", "pattern": "^/$|^/.*[^/]$|\\$\\{"}"#,
    example: "/api/v1",
};
const IMPORT_PATH: Kind = Kind::Other {
    told: "`server`, `model`, `sampler`, `processor`, or a builder's name",
    schema: r#"{"anyOf": [{"enum": ["server", "model", "sampler", "processor"]}, {"type": "string", "pattern": "(^|:)build_(server|gateway|model|sampler|processor)_app$|\\$\\{"}]}"#,
    example: "server",
};
const REPLICAS: Kind = Kind::Other {
    told: "whole number ≥ 1, or `auto`",
    schema: r#"{"type": ["integer", "string"], "minimum": 1, "pattern": "^\\s*[+-]?[0-9]+(\\.0*)?\\s*$|^auto$|\\$\\{"}"#,
    example: "1",
};
const MODEL_NAMES: Kind = Kind::Other {
    told: "list of texts or of `{model_name: text}`",
    schema: r#"{"anyOf": [{"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"model_name": {"type": "string"}}, "required": ["model_name"], "additionalProperties": false}]}}, {"type": "string", "pattern": "\\$\\{"}]}"#,
    example: "[Qwen/Qwen3-4B]",
};

const HUBS: Kind = Kind::Other {
    told: "list of `ms`, `hf`",
    schema: r#"{"anyOf": [{"type": "array", "items": {"type": "string", "enum": ["ms", "hf"]}}, {"type": "string", "pattern": "\\$\\{"}]}"#,
    example: "[ms, hf]",
};
const FOLDERS: Kind = Kind::Other {
    told: "list of texts",
    schema: r#"{"anyOf": [{"type": "array", "items": {"type": "string", "minLength": 1}}, {"type": "string", "pattern": "\\$\\{"}]}"#,
    example: "[/srv/datasets]",
};

pub(super) static APPLICATION: Grammar = Grammar {
    name: "applications[]",
    about: "A component and where it is mounted.",
    keys: &[
        key("name", Kind::Text, Required, "Its name, unique in the file"),
        key("app", Kind::Text, Optional, "The older name of `name`").since("G1"),
        key(
            "route_prefix",
            PREFIX,
            Default("/"),
            "Where it is mounted: starts with `/`, does not end with one, unique in the file. Clients call a model by \
             what follows `/model/`, `/models/` or `/sampler/`, or by its id when nothing does",
        ),
        key("import_path", IMPORT_PATH, Required, "What it is"),
        key("server", IMPORT_PATH, Optional, "The older name of `import_path`").since("G1"),
        key("args", Kind::Args, Optional, "Its settings, by import path; only `server` may leave them out"),
        key("deployments", Kind::Sections(&DEPLOYMENT), Optional, "How it is deployed; only the first entry counts"),
    ],
};

static DEPLOYMENT: Grammar = Grammar {
    name: "deployments[]",
    about: "How many requests an application takes, and what a cluster would be told.",
    keys: &[
        key("name", Kind::Text, Optional, "A label without a meaning"),
        key(
            "max_ongoing_requests",
            Kind::Whole(1, 1_000_000),
            Default("256"),
            "Most requests inside the component at once. Ray Serve's default is 5: here requests wait in the engine's \
             own queue, so that it can batch them",
        ),
        key(
            "max_queued_requests",
            Kind::Whole(-1, 10_000_000),
            Default("4096"),
            "Most requests that wait to enter it; one more is answered with 429 and `Retry-After`. -1 is the default, \
             because nothing grows without a bound",
        ),
        key("num_replicas", REPLICAS, Default("1"), "Copies of the component; excludes `autoscaling_config`. One runs")
            .refused("above 1"),
        key("autoscaling_config", Kind::Section(&AUTOSCALING), Optional, "How many copies there may be"),
        key(
            "graceful_shutdown_timeout_s",
            Kind::Seconds(Limits::SECONDS),
            Default("20"),
            "Seconds the component has to finish its work when the node stops",
        ),
        key("ray_actor_options", Kind::Section(&ACTOR), Optional, "What a cluster reserves, and the environment"),
        key(
            "graceful_shutdown_wait_loop_s",
            Kind::Seconds(Limits::SECONDS),
            Default("2"),
            "Seconds between two looks at a stopping replica",
        )
        .inert(),
        key(
            "health_check_period_s",
            Kind::Seconds(Limits::SECONDS),
            Default("10"),
            "Seconds between two health checks",
        )
        .inert(),
        key("health_check_timeout_s", Kind::Seconds(Limits::SECONDS), Default("30"), "Seconds a health check may take")
            .inert(),
        key("user_config", Kind::Anything, Optional, "Handed to a replica as it is").inert(),
        key("placement_group_bundles", Kind::Anything, Optional, "What a replica reserves together").inert(),
        key("placement_group_strategy", Kind::Anything, Optional, "How that is spread over machines").inert(),
        key("logging_config", Kind::Anything, Optional, "How a replica logs").inert(),
    ],
};

static AUTOSCALING: Grammar = Grammar {
    name: "autoscaling_config",
    about: "How many copies of a component there may be. One runs, whatever the bounds are.",
    keys: &[
        key("min_replicas", Kind::Whole(0, u32::MAX as i64), Default("1"), "Fewest copies").refused("above 1"),
        key(
            "max_replicas",
            Kind::Whole(1, u32::MAX as i64),
            Default("1"),
            "Most copies; above 1 is noted, and one runs",
        ),
        key("initial_replicas", Kind::Whole(0, u32::MAX as i64), Optional, "Copies at start, between the two").inert(),
        key(
            "target_ongoing_requests",
            Kind::Number(Limits::ABOVE_ZERO),
            Default("2"),
            "Requests inside a copy at which another one is due",
        ),
        key(
            "upscale_delay_s",
            Kind::Seconds(Limits::FROM_ZERO),
            Default("30"),
            "Seconds of load before a copy is added",
        )
        .inert(),
        key(
            "downscale_delay_s",
            Kind::Seconds(Limits::FROM_ZERO),
            Default("600"),
            "Seconds of rest before a copy is removed",
        )
        .inert(),
        key("metrics_interval_s", Kind::Seconds(Limits::FROM_ZERO), Optional, "Seconds between two measurements")
            .inert(),
        key("look_back_period_s", Kind::Seconds(Limits::FROM_ZERO), Optional, "Seconds over which load is averaged")
            .inert(),
        key(
            "smoothing_factor",
            Kind::Number(Limits::FROM_ZERO),
            Optional,
            "How fast the number of copies follows the load",
        )
        .inert(),
        key("upscale_smoothing_factor", Kind::Number(Limits::FROM_ZERO), Optional, "The same for adding").inert(),
        key("downscale_smoothing_factor", Kind::Number(Limits::FROM_ZERO), Optional, "The same for removing").inert(),
        key(
            "upscaling_factor",
            Kind::Number(Limits::FROM_ZERO),
            Optional,
            "The newer name of `upscale_smoothing_factor`",
        )
        .inert(),
        key(
            "downscaling_factor",
            Kind::Number(Limits::FROM_ZERO),
            Optional,
            "The newer name of `downscale_smoothing_factor`",
        )
        .inert(),
    ],
};

static ACTOR: Grammar = Grammar {
    name: "ray_actor_options",
    about: "What a cluster reserves for a component.",
    keys: &[
        key("num_cpus", Kind::Number(Limits::FROM_ZERO), Default("1"), "CPUs").inert(),
        key("num_gpus", Kind::Number(Limits::FROM_ZERO), Default("0"), "GPUs").inert(),
        key("memory", Kind::Number(Limits::FROM_ZERO), Optional, "Bytes of memory").inert(),
        key("resources", Kind::Anything, Optional, "Resources with names of their own").inert(),
        key("accelerator_type", Kind::Anything, Optional, "The model of the accelerator").inert(),
        key("runtime_env", Kind::Section(&RUNTIME_ENV), Optional, "The environment of the component"),
    ],
};

static RUNTIME_ENV: Grammar = Grammar {
    name: "runtime_env",
    about: "The environment of a component.",
    keys: &[
        key(
            "env_vars",
            Kind::Texts,
            Default("{}"),
            "Environment variables. `DEVICE_COUNT_PER_PHYSICAL_NODE` (cards of a machine, for a list of `ranks`) and \
             `TWINKLE_PER_USER_PROCESSOR_LIMIT` are read; the others are noted, because one process has one \
             environment: set them for the node",
        ),
        key("pip", Kind::Anything, Optional, "Python packages").inert(),
        key("uv", Kind::Anything, Optional, "Python packages").inert(),
        key("working_dir", Kind::Anything, Optional, "The folder of the component's code").inert(),
        key("py_modules", Kind::Anything, Optional, "Python modules").inert(),
        key("conda", Kind::Anything, Optional, "A Conda environment").inert(),
        key("container", Kind::Anything, Optional, "A container image").inert(),
        key("config", Kind::Anything, Optional, "How the environment is set up").inert(),
    ],
};

const MODELS_MEANING: &str = "Public names of the models clients may ask for; every served model when left out";

pub(super) static SERVER_ARGS: Grammar = Grammar {
    name: "args of a server",
    about: "Sessions, runs, checkpoints, and the routes of both protocols.",
    keys: &[
        key("server_config", Kind::Section(&SERVER_CONFIG), Optional, "Lifetimes and limits over all models"),
        key("supported_models", MODEL_NAMES, Optional, MODELS_MEANING).since("G3, G4"),
        key("http_options", Kind::Anything, Optional, "Where other components find the listener").inert(),
        key("route_prefix", Kind::Text, Default("/api/v1"), "Where other components find the server").inert(),
    ],
};

static SERVER_CONFIG: Grammar = Grammar {
    name: "server_config",
    about: "Lifetimes and limits over all models.",
    keys: &[
        key(
            "expiration_timeout",
            Kind::Seconds(Limits::SOME_SECONDS),
            Default("86400"),
            "Seconds after which an unused record is dropped",
        ),
        key("cleanup_interval", Kind::Seconds(Limits::SOME_SECONDS), Default("3600"), "Seconds between two sweeps"),
        key(
            "per_token_model_limit",
            Kind::Whole(1, u32::MAX as i64),
            Default("30"),
            "Most live runs of one tenant over all models",
        )
        .since("G3, G4"),
        key(
            "metrics_update_interval",
            Kind::Seconds(Limits::SOME_SECONDS),
            Default("15"),
            "Seconds between two readings of the gauges of sessions, models and futures",
        )
        .since("G3, G4"),
        key("supported_models", MODEL_NAMES, Optional, MODELS_MEANING).since("G3, G4"),
        key(
            "hub_uploads",
            HUBS,
            Optional,
            "Hubs that tenants may upload checkpoints to; an empty list is none. `TWINKLE_HUB_UPLOADS` when left out, and \
             both hubs when that is not set",
        )
        .since("ours"),
        key(
            "actor_name",
            Kind::Anything,
            Default("twinkle_server_state"),
            "The name of the actor that holds the state",
        )
        .inert(),
    ],
};

pub(super) static PROCESSOR_ARGS: Grammar = Grammar {
    name: "args of a processor",
    about: "Chat templates and tokenization, without a device.",
    keys: PROCESSOR_KEYS,
};

const PROCESSOR_KEYS: &[Key] = &[
    key(
        "ncpu_proc_per_node",
        Kind::Whole(1, 4096),
        Optional,
        "Most requests worked on at once; the number of cores when left out",
    ),
    key("processor_config", Kind::Section(&PROCESSOR_CONFIG), Optional, "Limits of the tenants' processors"),
    key("queue_config", Kind::Section(&QUEUE), Optional, "What one tenant may send; `task_queue` when left out")
        .since("G3, G4"),
    key("device_group", Kind::Section(&DEVICE_GROUP), Optional, "The processes of a cluster").inert(),
    key("device_mesh", Kind::Section(&DEVICE_MESH), Optional, "How they share the work").inert(),
    key("nproc_per_node", Kind::Whole(1, 4096), Default("1"), "Processes of one machine").since("G1–G3").inert(),
];

static PROCESSOR_CONFIG: Grammar = Grammar {
    name: "processor_config",
    about: "Limits of the tenants' processors.",
    keys: &[
        key(
            "processor_timeout",
            Kind::Seconds(Limits::SOME_SECONDS),
            Default("1800"),
            "Seconds of silence after which a tenant's processors are dropped",
        ),
        key(
            "per_token_processor_limit",
            Kind::Whole(1, u32::MAX as i64),
            Default("20"),
            "Most processors of one tenant; `TWINKLE_PER_USER_PROCESSOR_LIMIT` when left out",
        ),
        key(
            "data_folders",
            FOLDERS,
            Optional,
            "Folders whose data sets every tenant may read, relative ones below the current directory. \
             `TWINKLE_DATA_DIRS` when left out, and `datasets` when that is not set",
        )
        .since("ours"),
    ],
};
