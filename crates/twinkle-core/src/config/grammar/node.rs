//! What belongs to the node: the top level, the listener, keys, telemetry, persistence, the short form.

use super::Need::{Default, Optional, Required};
use super::application::APPLICATION;
use super::{Grammar, Key, Kind, key};
use crate::config::limits::Limits;

pub(super) static ROOT: Grammar = Grammar {
    name: "the file",
    about: "The top level. An empty file is a node without applications.",
    keys: &[
        key("http_options", Kind::Section(&HTTP_OPTIONS), Optional, "Where the node listens"),
        key("auth", Kind::Section(&AUTH), Optional, "Whose requests it answers").since("ours"),
        key("telemetry", Kind::Section(&TELEMETRY), Optional, "Metrics and traces").since("G4"),
        key("telemetry_config", Kind::Section(&TELEMETRY), Optional, "The older name of `telemetry`").since("G3"),
        key("persistence", Kind::Section(&PERSISTENCE), Optional, "Where the node's state is kept").since("G4"),
        key("persistence_config", Kind::Section(&PERSISTENCE), Optional, "The older name of `persistence`").since("G3"),
        key("task_queue", Kind::Section(&QUEUE), Optional, "The `queue_config` of every application that has none")
            .since("G4"),
        key("applications", Kind::Sections(&APPLICATION), Optional, "What the node serves"),
        key("model", Kind::Section(&SHORT_MODEL), Optional, "The model, in the short form").since("short form"),
        key("server", Kind::Section(&SHORT_SERVER), Optional, "The listener, in the short form").since("short form"),
        key("ray", Kind::Section(&SHORT_RAY), Optional, "The devices, in the short form").since("short form"),
        key(
            "server_type",
            Kind::Words(&["twinkle", "tinker"]),
            Default("twinkle"),
            "The protocol of the whole server; both are always served",
        )
        .since("G1, G2")
        .inert(),
        key("ray_namespace", Kind::Text, Default("twinkle_cluster"), "The namespace of a cluster").inert(),
        key(
            "proxy_location",
            Kind::Words(&["EveryNode", "HeadOnly", "Disabled"]),
            Default("EveryNode"),
            "Which machines of a cluster listen; there is one listener",
        )
        .inert(),
    ],
};

static HTTP_OPTIONS: Grammar = Grammar {
    name: "http_options",
    about: "Where the node listens.",
    keys: &[
        key(
            "host",
            Kind::Text,
            Default("localhost"),
            "Address or host name. Any but this machine's own needs API keys (`auth`) or `--insecure`",
        ),
        key("port", Kind::Whole(0, 65_535), Default("8000"), "TCP port; 0 lets the system choose"),
        key("tls", Kind::Section(&TLS), Optional, "Makes it HTTPS; plain HTTP when left out").since("ours"),
        key("root_path", Kind::Text, Optional, "A prefix of every path, for a proxy in front").since("G1–G3").inert(),
        key("request_timeout_s", Kind::Seconds(Limits::SECONDS), Optional, "Longest request, in seconds")
            .since("G1–G3")
            .inert(),
        key(
            "keep_alive_timeout_s",
            Kind::Seconds(Limits::SECONDS),
            Optional,
            "How long an idle connection stays open, in seconds",
        )
        .since("G1–G3")
        .inert(),
        key("num_cpus", Kind::Number(Limits::FROM_ZERO), Optional, "CPUs of a cluster's proxy").since("G1–G3").inert(),
        key("location", Kind::Text, Optional, "The older place of `proxy_location`").since("G1–G3").inert(),
    ],
};

static TLS: Grammar = Grammar {
    name: "tls",
    about: "The files of an HTTPS listener, both PEM.",
    keys: &[
        key("certificate", Kind::Text, Required, "File with the certificate, followed by those between it and a root")
            .since("ours"),
        key("private_key", Kind::Text, Required, "File with the certificate's private key").since("ours"),
    ],
};

static AUTH: Grammar = Grammar {
    name: "auth",
    about: "Where the API keys of tenants are. With neither key the node is open, and listens on this machine only \
            unless it is started with `--insecure`.",
    keys: &[
        key("keys_file", Kind::Text, Optional, "File of API keys").since("ours"),
        key("store", Kind::Flag, Default("false"), "Whether the keys of `twinkle-server keys create` count")
            .since("ours"),
    ],
};

static TELEMETRY: Grammar = Grammar {
    name: "telemetry",
    about: "Export of metrics and traces by OTLP. `/metrics` is served in any case.",
    keys: &[
        key("enabled", Kind::Flag, Default("false"), "Whether anything is exported").since("G3, G4"),
        key("service_name", Kind::Text, Default("twinkle-server"), "The name under which it is exported")
            .since("G3, G4"),
        key(
            "otlp_endpoint",
            Kind::Text,
            Default("http://localhost:4317"),
            "Where an OpenTelemetry collector listens for gRPC",
        )
        .since("G3, G4"),
        key("debug", Kind::Flag, Default("false"), "Print to the console in place of OTLP").since("G3, G4"),
        key("export_interval_ms", Kind::Whole(1, i64::MAX), Default("30000"), "Milliseconds between exports")
            .since("G3, G4"),
        key("resource_attributes", Kind::Texts, Default("{}"), "Attributes of everything exported").since("G3, G4"),
    ],
};

static PERSISTENCE: Grammar = Grammar {
    name: "persistence",
    about: "Where sessions, runs, journals and checkpoints are kept. What the section leaves out is taken from \
            `TWINKLE_PERSISTENCE_MODE`, `_FILE_PATH`, `_REDIS_URL`, `_POSTGRES_URL` and `_KEY_PREFIX`; with a section \
            in the file, the environment does not choose the mode.",
    keys: &[
        key(
            "mode",
            Kind::Words(&["memory", "file", "redis", "postgres"]),
            Default("file"),
            "Where the records are: `memory` loses them when the node stops, `file` is a folder of this machine, \
             `redis` and `postgres` are servers",
        )
        .since("G3, G4"),
        key(
            "file_path",
            Kind::Text,
            Default("twinkle-state"),
            "The folder of the database (`mode: file`), and of snapshots and checkpoints in every lasting mode; made \
             when absent. A path that ends in `.json`, `.db` or `.sqlite` means the folder around it. Required when \
             `mode: file` is written out",
        )
        .since("G3, G4"),
        key("redis_url", Kind::Text, Optional, "Where Redis listens; required by `mode: redis`").since("G3, G4"),
        key("key_prefix", Kind::Text, Default(""), "Sets several nodes apart in one Redis or one database")
            .since("G3, G4"),
        key(
            "postgres_url",
            Kind::Text,
            Optional,
            "Where PostgreSQL listens, with user and database; required by `mode: postgres`",
        )
        .since("ours"),
    ],
};

pub(super) static QUEUE: Grammar = Grammar {
    name: "queue_config",
    about: "What one tenant may send to one application. A rate of 0 is no limit. Rates are refilled continuously: \
            one window's worth may come at once.",
    keys: QUEUE_KEYS,
};

const QUEUE_KEYS: &[Key] = &[
    key("enabled", Kind::Flag, Default("true"), "Whether any of these limits holds").since("G3, G4"),
    key("rps_limit", Kind::Number(Limits::FROM_ZERO), Default("100"), "Requests per window; 0 for no limit")
        .since("G3, G4"),
    key("tps_limit", Kind::Number(Limits::FROM_ZERO), Default("16000"), "Input tokens per window; 0 for no limit")
        .since("G3, G4"),
    key("window_seconds", Kind::Seconds(Limits::SOME_SECONDS), Default("1"), "Length of the window, in seconds")
        .since("G3, G4"),
    key("max_input_tokens", Kind::Whole(1, i64::MAX), Default("16000"), "Most input tokens of one request")
        .since("G3, G4"),
    key(
        "queue_timeout",
        Kind::Seconds(Limits::SECONDS),
        Default("300"),
        "Seconds a request waits for its turn at most",
    )
    .since("G3, G4"),
    key(
        "execution_timeout",
        Kind::Seconds(Limits::SECONDS),
        Default("120"),
        "Seconds a request runs at most; 0 for no limit",
    )
    .since("G3, G4"),
    key(
        "token_cleanup_multiplier",
        Kind::Number(Limits::FROM_ZERO),
        Default("10"),
        "Idle tenants are forgotten after this many windows",
    )
    .since("G3, G4"),
    key(
        "token_cleanup_interval",
        Kind::Seconds(Limits::SECONDS),
        Default("60"),
        "Seconds between two sweeps of idle tenants",
    )
    .since("G3, G4"),
];

static SHORT_MODEL: Grammar = Grammar {
    name: "model",
    about: "The short form: a file with `model`, and perhaps `server` and `ray`, in place of `applications` stands for \
            a server, a model, a sampler and a processor application under `/api/v1`.",
    keys: &[
        key("model_id", Kind::Text, Required, "Where the model's files are, as in the `args` of a model")
            .since("short form"),
        key("use_megatron", Kind::Flag, Default("false"), "Which engine trains").since("short form").refused("`true`"),
        key(
            "torch_dtype",
            Kind::Words(&["bfloat16", "float16", "float32"]),
            Default("bfloat16"),
            "Number format of the frozen weights and of the computation",
        )
        .since("short form")
        .refused("`float16`"),
        key("tensor_parallel_size", Kind::Whole(1, 65_536), Default("1"), "Devices over which every layer is split")
            .since("short form")
            .refused("above 1"),
        key(
            "pipeline_parallel_size",
            Kind::Whole(1, 65_536),
            Default("1"),
            "Devices over which the layers are divided",
        )
        .since("short form")
        .refused("above 1"),
    ],
};

static SHORT_SERVER: Grammar = Grammar {
    name: "server",
    about: "The listener of the short form.",
    keys: &[
        key("host", Kind::Text, Default("0.0.0.0"), "As in `http_options`").since("short form"),
        key("port", Kind::Whole(0, 65_535), Default("8000"), "As in `http_options`").since("short form"),
        key("num_replicas", Kind::Whole(1, 65_536), Default("1"), "Copies of the model")
            .since("short form")
            .refused("above 1"),
    ],
};

static SHORT_RAY: Grammar = Grammar {
    name: "ray",
    about: "The devices of the short form. No Ray is needed.",
    keys: &[key("num_gpus", Kind::Whole(0, 65_536), Default("1"), "CUDA devices of the model; 0 runs it on the CPU")
        .since("short form")
        .refused("above 1")],
};
