//! What a server costs and bears without training: start-up, idle memory, requests.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{bench_program, json_of, mebibytes, number};
use crate::server::Server;
use crate::setup;
use crate::workspace::Workspace;

/// A tiny model for runs that only wait.
const IDLE_MODEL: &str = "tests/golden/fixtures/llama3";

/// Start-up time and idle memory of a server with the demo model.
pub(super) fn footprint(workspace: &Workspace, server: &Path) -> Result<String> {
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
pub(super) fn control_plane(workspace: &Workspace, server: &Path) -> Result<String> {
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
pub(super) fn crowd(workspace: &Workspace, server: &Path) -> Result<String> {
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
