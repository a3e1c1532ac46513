//! The table of all metrics: name, unit, kind, labels, meaning. `docs/metrics.md` is written from it.
//!
//! The first part has upstream's names, so that its dashboards work here; the rest is our own.

use super::labels::{Attempt, Component, Exported, FinishedTask, Gpu, HttpAnswer, HttpRoute, Model, Task, Whole};
use super::metric::{Counter, Description, Durations, Gauge, Metric, Scope, Share, Sizes, UpDown};

/// Declares the metrics and lists them in [`METRICS`]. The doc comment is the description that is exported.
macro_rules! metrics {
    ($($(#[doc = $text:literal])+ $name:ident: $kind:ident<$labels:ty> = $scope:ident $exported:literal [$unit:literal] $appears:literal;)*) => {
        $(
            $(#[doc = $text])+
            pub static $name: $kind<$labels> = $kind::new(Description {
                name: $exported,
                unit: $unit,
                text: concat!($($text),+),
                scope: Scope::$scope,
                appears: $appears,
            });
        )*

        /// Every metric, in the order of the documentation.
        pub static METRICS: &[&dyn Metric] = &[$(&$name),*];
    };
}

metrics! {
    // --- upstream's names
    /// Answered HTTP requests; `method` is the route, as upstream has it.
    HTTP_REQUESTS: Counter<HttpAnswer> = Server "twinkle.http.requests.total" ["{request}"] "";
    /// From the head of a request to the head of its answer; a long poll counts with its wait.
    HTTP_DURATION: Durations<HttpRoute> = Server "twinkle.http.request.duration_seconds" ["s"] "";
    /// Finished operations.
    TASKS: Counter<FinishedTask> = Server "twinkle.tasks.total" ["{operation}"] "with the first operation";
    /// From the start of an operation to its stored result.
    TASK_EXECUTION: Durations<Task> = Server "twinkle.task.execution_seconds" ["s"] "with the first operation";
    /// From the acceptance of an operation to its start: its turn in the run, and a place in the component.
    TASK_WAIT: Durations<Task> = Server "twinkle.task.wait_seconds" ["s"] "with the first operation";
    /// Requests refused because a tenant was over its quota.
    RATE_LIMIT_REJECTIONS: Counter<Component> = Server "twinkle.rate_limit.rejections.total" ["{request}"] "";
    /// Calls that wait for a place in a component.
    QUEUE_DEPTH: UpDown<Component> = Server "twinkle.queue.depth" ["{request}"] "";
    /// Tenants whose quota is partly used up.
    RATE_LIMITER_TENANTS: UpDown<Component> = Server "twinkle.rate_limiter.active_tokens" ["{tenant}"] "where a quota is configured";
    /// Sessions that are open.
    SESSIONS: Gauge<Whole> = Server "twinkle.sessions.active" ["{session}"] "";
    /// Training runs that are open.
    MODELS: Gauge<Whole> = Server "twinkle.models.active" ["{model}"] "";
    /// Sampling sessions that are open.
    SAMPLING_SESSIONS: Gauge<Whole> = Server "twinkle.sampling_sessions.active" ["{session}"] "";
    /// Accepted operations without a result.
    FUTURES: Gauge<Whole> = Server "twinkle.futures.active" ["{operation}"] "";
    /// Share of all processors in use, by every program of the machine.
    CPU_UTILIZATION: Share<Whole> = Resource "twinkle.system.cpu.utilization" ["1"] "";
    /// Memory in use, by every program of the machine.
    SYSTEM_MEMORY: Gauge<Whole> = Resource "twinkle.system.memory.usage_bytes" ["By"] "";
    /// Resident memory of this process.
    PROCESS_MEMORY: Gauge<Whole> = Resource "twinkle.process.memory.usage_bytes" ["By"] "";
    /// Share of the time in which the GPU was busy.
    GPU_UTILIZATION: Share<Gpu> = Resource "twinkle.gpu.utilization" ["1"] "where there is an NVIDIA driver";
    /// Memory of the GPU in use, by every program of the machine.
    GPU_MEMORY: Gauge<Gpu> = Resource "twinkle.gpu.memory.usage_bytes" ["By"] "where there is an NVIDIA driver";

    // --- the node
    /// Connections that are open.
    CONNECTIONS: UpDown<Whole> = Server "twinkle.connections.open" ["{connection}"] "";
    /// Exports to the collector that failed; serving goes on.
    EXPORT_FAILURES: Counter<Exported> = Server "twinkle.telemetry.export_failures.total" ["{export}"] "with the first failure";
    /// Bytes of models fetched from a hub.
    DOWNLOADED: Counter<Whole> = Server "twinkle.hub.download_bytes.total" ["By"] "with the first download";

    // --- journal and store
    /// From the offer of an operation to the journal until it is durable: what a client waits for an acknowledgement.
    JOURNAL_COMMIT: Durations<Component> = Server "twinkle.journal.commit_seconds" ["s"] "with the first training operation";
    /// One transaction of the state store, its fsync included.
    STORE_COMMIT: Durations<Whole> = Server "twinkle.store.commit_seconds" ["s"] "with the first write";
    /// Writes that shared one transaction.
    STORE_GROUP: Sizes<Whole> = Server "twinkle.store.group_size" ["{write}"] "with the first write";

    // --- engines
    /// From the engine's line to the engine: the fair schedule's wait.
    ENGINE_WAIT: Durations<Task> = Server "twinkle.engine.wait_seconds" ["s"] "with the first operation";
    /// One operation on the engine thread: its share of the passes it was in.
    ENGINE_TURN: Durations<Task> = Server "twinkle.engine.turn_seconds" ["s"] "with the first training operation";
    /// One pass over packed rows (training), or one step over the batch (sampling).
    ENGINE_PASS: Durations<Component> = Server "twinkle.engine.pass_seconds" ["s"] "with the first pass";
    /// Rows of a training pass, one a token.
    PASS_ROWS: Sizes<Component> = Server "twinkle.engine.pass_rows" ["{row}"] "with the first training pass";
    /// Runs that shared a training pass.
    PASS_RUNS: Sizes<Component> = Server "twinkle.engine.pass_runs" ["{run}"] "with the first training pass";
    /// Engines that failed and were started again.
    ENGINE_RESTARTS: Counter<Component> = Server "twinkle.engine.restarts.total" ["{restart}"] "with the first restart";
    /// Training runs whose tensors are in memory.
    RUNS_RESIDENT: Gauge<Model> = Server "twinkle.runs.resident" ["{run}"] "with the first training operation";
    /// Training runs that wait on disk.
    RUNS_SPILLED: Gauge<Model> = Server "twinkle.runs.spilled" ["{run}"] "with the first training operation";
    /// Tokens of forward and backward passes.
    TOKENS_TRAINED: Counter<Model> = Server "twinkle.tokens.trained.total" ["{token}"] "with the first forward";
    /// Snapshots of runs.
    SNAPSHOTS: Counter<Attempt> = Server "twinkle.snapshots.total" ["{snapshot}"] "with the first snapshot";
    /// The size of a snapshot on disk.
    SNAPSHOT_BYTES: Sizes<Whole> = Server "twinkle.snapshot.size_bytes" ["By"] "with the first snapshot";
    /// One snapshot, its fsync included.
    SNAPSHOT_DURATION: Durations<Whole> = Server "twinkle.snapshot.duration_seconds" ["s"] "with the first snapshot";
    /// Sampling requests' prompt tokens.
    TOKENS_PROMPT: Counter<Model> = Server "twinkle.tokens.prompt.total" ["{token}"] "with the first sample";
    /// Tokens drawn.
    TOKENS_GENERATED: Counter<Model> = Server "twinkle.tokens.generated.total" ["{token}"] "with the first sample";
    /// Sequences that are being decoded.
    SEQUENCES_RUNNING: Gauge<Model> = Server "twinkle.sampler.sequences.running" ["{sequence}"] "with the first sample";
    /// Sequences that wait for a place in the batch.
    SEQUENCES_WAITING: Gauge<Model> = Server "twinkle.sampler.sequences.waiting" ["{sequence}"] "with the first sample";
    /// Memory of all KV caches.
    KV_CACHE_USED: Gauge<Model> = Server "twinkle.kv_cache.used_bytes" ["By"] "with the first sample";
    /// Rows that all KV caches together may have, one a token.
    KV_CACHE_LIMIT: Gauge<Model> = Server "twinkle.kv_cache.limit_tokens" ["{token}"] "where there is a sampler";
}
