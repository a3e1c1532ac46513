//! `cargo xtask bench`: runs the programs of `benches/` and writes their results to `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::child;
use crate::server::{self, Server};
use crate::setup;
use crate::workspace::Workspace;

/// Where the results go.
const REPORT: &str = "docs/benchmarks.md";
/// Python with torch, transformers and PEFT, to compare with.
const REFERENCE_PYTHON: &str = ".venvs/reference/bin/python";
/// A tiny model for runs that only wait.
const IDLE_MODEL: &str = "tests/golden/fixtures/llama3";
/// A 0.5B-shaped Qwen2.5 with random weights: its speed is that of the real one.
const RANDOM_MODEL: &str = ".models/random-qwen2.5-0.5b";

/// Measure speed, memory and latency, and write `docs/benchmarks.md`.
///
/// Training is measured against Hugging Face transformers + PEFT, interleaved on the same weights and batch; that needs
/// a Python with torch 2.11, transformers and peft in `.venvs/reference`. Close other programs first: everything shares
/// the machine's cores.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measure only these.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PIECES")]
    only: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Piece {
    /// Start to ready, and idle memory.
    Footprint,
    /// Requests per second and latency of routes without a model.
    ControlPlane,
    /// Samples at once, beside thousands of held polls.
    Crowd,
    /// Trained tokens per second and peak memory.
    Training,
}

/// Runs `cargo xtask bench`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let chosen = |piece: Piece| options.only.is_empty() || options.only.contains(&piece);
    setup::libtorch(workspace)?;
    setup::demo_model(workspace)?;
    let server = server::build(workspace, "twinkle-server", &["--bin", "twinkle-server"])?;
    let mut report = String::from(
        "# Measurements\n\nWritten by `cargo xtask bench`. Compare ratios, not numbers, with those of another machine.\n",
    );
    write!(report, "\nMachine: {}\n", machine())?;
    if chosen(Piece::Footprint) {
        report += &footprint(workspace, &server)?;
    }
    if chosen(Piece::ControlPlane) {
        report += &control_plane(workspace, &server)?;
    }
    if chosen(Piece::Crowd) {
        report += &crowd(workspace, &server)?;
    }
    if chosen(Piece::Training) {
        report += &training(workspace, &server)?;
    }
    if !options.only.is_empty() {
        eprintln!("\n{report}\n`{REPORT}` is left as it is: only a part was measured");
        return Ok(());
    }
    let path = workspace.path(REPORT);
    fs::write(&path, &report).with_context(|| format!("cannot write `{}`", path.display()))?;
    eprintln!("\n{report}\nwritten to `{REPORT}`");
    Ok(())
}

/// Start-up time and idle memory of a server with the demo model.
fn footprint(workspace: &Workspace, server: &Path) -> Result<String> {
    let program = bench_program(workspace, "footprint")?;
    let model = workspace.path(setup::DEMO_MODEL);
    let result = json_of(Command::new(program).arg("--server").arg(server).arg("--model-dir").arg(model), workspace)?;
    Ok(format!(
        "\n## Footprint\n\nSmolLM2-135M-Instruct, bf16, trained and sampled from the same mapped weights.\n\n\
         | start to ready | idle memory of its own | mapped weights touched |\n| ---: | ---: | ---: |\n| {:.2} s | {} | {} |\n",
        number(&result, "start_to_ready_seconds")?,
        mebibytes(&result, "idle_own_memory_bytes")?,
        mebibytes(&result, "idle_mapped_files_bytes")?,
    ))
}

/// Load on routes that need no model; the load generator shares the cores with the server.
fn control_plane(workspace: &Workspace, server: &Path) -> Result<String> {
    let program = bench_program(workspace, "control_plane")?;
    let folder = tempfile::tempdir_in(workspace.cache()?)?;
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let config = folder.path().join("node.yaml");
    let state = folder.path().join("state");
    let model = workspace.path(IDLE_MODEL);
    let text = format!(
        "http_options: {{host: 127.0.0.1, port: {}}}\npersistence: {{mode: file, file_path: {}}}\n\
         applications:\n  - {{name: server, route_prefix: /api/v1, import_path: server}}\n  \
         - name: model\n    route_prefix: /api/v1/model/idle\n    import_path: model\n    \
         args: {{model_id: {}, backend: transformers, device_group: {{name: model, ranks: 1, device_type: cpu}}}}\n",
        address.port(),
        state.display(),
        model.display()
    );
    fs::write(&config, text).with_context(|| format!("cannot write `{}`", config.display()))?;
    let server = Server::start(workspace, server, &config, address, folder.path().join("node.log"))?;
    let mut table = String::from(
        "\n## Control plane\n\nClosed loop over HTTP/1.1, the load generator on the same cores; `create_session` is durable \
         (fsync) before it is answered. A connection pauses after each answer. Idle polls are connections whose `retrieve_future` is held meanwhile.\n\n\
         | route | connections | pause | idle polls | requests/s | p50 | p99 |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let crowd =
        ["healthz", "heartbeat"].into_iter().flat_map(|route| ["0", "50"].map(|pause| (route, "512", "2000", pause)));
    let alone = ["healthz", "heartbeat", "create-session"]
        .into_iter()
        .flat_map(|route| [(route, "64", "0", "0"), (route, "1", "0", "0")]);
    for (route, connections, idle_polls, pause) in alone.chain(crowd) {
        let mut load = Command::new(&program);
        load.args(["--address", &address.to_string(), "--route", route, "--connections", connections]);
        load.args(["--idle-polls", idle_polls, "--base-model", "idle", "--pause-ms", pause]);
        let result = json_of(&mut load, workspace)?;
        writeln!(
            table,
            "| `{}` | {connections} | {pause} ms | {idle_polls} | {:.0} | {:.2} ms | {:.2} ms |",
            route.replace('-', "_"),
            number(&result, "requests_per_second")?,
            number(&result, "p50_ms")?,
            number(&result, "p99_ms")?,
        )?;
    }
    server.stop()?;
    Ok(table)
}

/// Bursts of samples, each waited for by a poll of its own or in bulk.
fn crowd(workspace: &Workspace, server: &Path) -> Result<String> {
    let program = bench_program(workspace, "control_plane")?;
    let folder = tempfile::tempdir_in(workspace.cache()?)?;
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let config = folder.path().join("node.yaml");
    let (state, model) = (folder.path().join("state"), workspace.path(IDLE_MODEL));
    let application = |kind: &str, more: &str| {
        format!(
            "  - name: {kind}\n    route_prefix: /api/v1/{kind}/idle\n    import_path: {kind}\n    \
             args: {{model_id: {}, {more}, device_group: {{name: {kind}, ranks: 1, device_type: cpu}}}}\n",
            model.display()
        )
    };
    let text = format!(
        "http_options: {{host: 127.0.0.1, port: {}}}\npersistence: {{mode: file, file_path: {}}}\n\
         task_queue: {{rps_limit: 0, tps_limit: 0}}\napplications:\n  \
         - {{name: server, route_prefix: /api/v1, import_path: server}}\n{}{}",
        address.port(),
        state.display(),
        application("model", "backend: transformers"),
        application("sampler", "sampler_type: torch"),
    );
    fs::write(&config, text).with_context(|| format!("cannot write `{}`", config.display()))?;
    let server = Server::start(workspace, server, &config, address, folder.path().join("node.log"))?;
    let mut table = String::from(
        "\n## Samples at once\n\nA tiny model (64 wide), one prompt and four tokens a sample, all submitted at the same time over connections of \
         their own. Each result is polled for (`retrieve_future`), or completions are asked for in bulk (`retrieve_futures`) and each \
         result is then fetched. Latency is from submission to result; `healthz` is asked every 5 ms meanwhile.\n\n\
         | samples | waits | idle polls | samples/s | p50 | p99 | `healthz` p99 | max |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for (samples, idle_polls) in [("512", "0"), ("512", "2000"), ("2000", "0")] {
        for bulk in [false, true] {
            let mut burst = Command::new(&program);
            burst.args(["--address", &address.to_string(), "--base-model", "idle", "--burst", samples]);
            burst.args(["--idle-polls", idle_polls]);
            if bulk {
                burst.arg("--bulk");
            }
            let result = json_of(&mut burst, workspace)?;
            writeln!(
                table,
                "| {samples} | {} | {idle_polls} | {:.0} | {:.0} ms | {:.0} ms | {:.1} ms | {:.1} ms |",
                if bulk { "in bulk" } else { "one by one" },
                number(&result, "samples_per_second")?,
                number(&result, "p50_ms")?,
                number(&result, "p99_ms")?,
                number(&result, "healthz_p99_ms")?,
                number(&result, "healthz_max_ms")?,
            )?;
        }
    }
    server.stop()?;
    Ok(table)
}

/// Training against transformers + PEFT.
fn training(workspace: &Workspace, server: &Path) -> Result<String> {
    let python = workspace.path(REFERENCE_PYTHON);
    if !python.exists() {
        bail!(
            "`{REFERENCE_PYTHON}` is missing, with which training is compared\n\
             hint: make it with torch 2.11.0, transformers 5.23.0 and peft 0.21.0, or measure the rest with `--only footprint,control-plane`"
        );
    }
    let program = bench_program(workspace, "training")?;
    let mut make = Command::new(&python);
    make.current_dir(workspace.root()).args([
        "benches/reference/make_model.py",
        "--shape",
        "qwen2.5-0.5b",
        "--out",
        RANDOM_MODEL,
    ]);
    if !child::run_to_stderr(&mut make)? {
        bail!("`{}` failed", child::shown(&make));
    }
    let mut table = String::from(
        "\n## Training\n\nLoRA rank 16, bf16, 8 × 256 tokens a step, one forward-backward and one AdamW step; both sides in turn, \
         medians. PEFT is transformers + PEFT in one process.\n\n\
         | model | tokens/s | PEFT | ratio | peak memory | PEFT | ratio |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for model in [RANDOM_MODEL, setup::DEMO_MODEL] {
        let mut compare = Command::new(&program);
        compare.arg("--server").arg(server).arg("--python").arg(&python).arg("--model-dir").arg(workspace.path(model));
        let result = json_of(&mut compare, workspace)?;
        let (ours, theirs) = (&result["ours"], &result["transformers_peft"]);
        writeln!(
            table,
            "| {} | {:.0} | {:.0} | {:.2} | {} | {} | {:.2} |",
            result["model"].as_str().unwrap_or(model),
            number(ours, "tokens_per_second")?,
            number(theirs, "tokens_per_second")?,
            number(&result, "speed_ratio")?,
            mebibytes(ours, "peak_rss_bytes")?,
            mebibytes(theirs, "peak_rss_bytes")?,
            number(&result, "memory_ratio")?,
        )?;
    }
    Ok(table)
}

fn bench_program(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    server::build(workspace, "twinkle-benches", &["--bin", name])
}

/// Runs a program that prints one JSON object as its last line.
fn json_of(command: &mut Command, workspace: &Workspace) -> Result<Value> {
    let shown = child::shown(command);
    eprintln!("{shown}");
    command.current_dir(workspace.root()).stderr(Stdio::inherit());
    if let Some(folder) = setup::library_path() {
        command.env("LD_LIBRARY_PATH", folder);
    }
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("`{shown}` printed no JSON"))
}

fn number(result: &Value, key: &str) -> Result<f64> {
    result[key].as_f64().with_context(|| format!("a result without `{key}`"))
}

fn mebibytes(result: &Value, key: &str) -> Result<String> {
    Ok(format!("{:.0} MiB", number(result, key)? / f64::from(1 << 20)))
}

/// What the numbers were measured on.
pub(crate) fn machine() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{}, {cores} cores", model.map_or("unknown processor", |(_, name)| name))
}
