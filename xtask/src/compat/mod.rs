//! `cargo xtask compat`: every release of the SDK, everything it offers, and what this server makes of it.

mod drive;
mod report;

use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::server::{self, Server};
use crate::setup::{self, Environments};
use crate::workspace::Workspace;

/// The page that is written.
const PAGE: &str = "docs/compat.md";
/// A tiny model with a tokenizer, and the name it is served under.
const MODEL: (&str, &str) = ("tests/golden/fixtures/qwen3", "tiny/qwen3");

/// Drive everything each release of the Tinker SDK offers against a server, and write docs/compat.md.
///
/// Starts a node with a tiny model. What a release offers is found by looking at it, so nothing new is missed: a method,
/// an argument, a loss or a command without a scenario in tests/python/compat fails this command, as does a result
/// that is neither what was asked for nor a refusal in words. Makes the Python environments it needs.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write nothing; fail when the page is out of date or something got worse.
    #[arg(long)]
    check: bool,
    /// Drive only rows whose name contains this, print them, and leave the page as it is.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Drive only these releases, and leave the page as it is.
    #[arg(long, value_delimiter = ',', value_name = "VERSIONS")]
    releases: Vec<String>,
    /// Use this build of the server instead of building one.
    #[arg(long, value_name = "PROGRAM")]
    server: Option<PathBuf>,
}

/// Runs `cargo xtask compat`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let mut releases = setup::made_environments(workspace, Environments::Sdks)?;
    let wanted = |name: &str| {
        name.strip_prefix("tinker-").is_some_and(|release| options.releases.iter().any(|one| one == release))
    };
    releases.retain(|(name, _)| options.releases.is_empty() || wanted(name));
    let cookbook = setup::made_environments(workspace, Environments::Cookbook)?;
    let packages = cookbook.last().context("no requirements of the cookbook, whose torch is needed")?;
    let packages = setup::site_packages(&packages.1)?;
    let program = if let Some(program) = &options.server {
        program.clone()
    } else {
        setup::libtorch(workspace)?;
        server::build(workspace, ["--bin", "twinkle-server"])?
    };
    let folder = tempfile::tempdir_in(workspace.cache()?)?;
    let (node, base_url) = start(workspace, &program, folder.path())?;
    let target = drive::Target { base_url, packages, only: options.only.clone().unwrap_or_default() };
    let seen = drive::all(workspace, &releases, &target)?;
    node.stop()?;
    judge(workspace, options, &seen)
}

/// Starts a node on a free port, with room for the runs of all releases.
fn start(workspace: &Workspace, program: &Path, folder: &Path) -> Result<(Server, String)> {
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let (model, name) = (workspace.path(MODEL.0), MODEL.1);
    let common = "device_group: {name: node, ranks: 1, device_type: CPU}, device_mesh: {device_type: CPU, dp_size: 1}";
    let text = format!(
        "\
http_options: {{host: 127.0.0.1, port: {port}}}
persistence: {{mode: file, file_path: {state}}}
applications:
  - {{name: server, route_prefix: /api/v1, import_path: server, args: {{server_config: {{per_token_model_limit: 1000}}}}}}
  - name: model
    route_prefix: /api/v1/model/{name}
    import_path: model
    args: {{model_id: {model}, backend: transformers, torch_dtype: float32, {common}}}
  - name: sampler
    route_prefix: /api/v1/sampler/{name}
    import_path: sampler
    args: {{model_id: {model}, sampler_type: torch, engine_args: {{enable_lora: true}}, {common}}}
",
        port = address.port(),
        state = folder.join("state").display(),
        model = model.display(),
    );
    let config = folder.join("node.yaml");
    fs::write(&config, text).with_context(|| format!("cannot write `{}`", config.display()))?;
    let log = workspace.cache()?.join("compat.log");
    let server = Server::start(workspace, program, &config, address, log)?;
    Ok((server, format!("http://{address}")))
}

/// Compares with the page and writes it, or says what is wrong.
fn judge(workspace: &Workspace, options: &Options, seen: &report::Seen) -> Result<ExitCode> {
    let path = workspace.path(PAGE);
    let before = fs::read_to_string(&path).unwrap_or_default();
    let mut complaints = seen.complaints();
    complaints.extend(seen.worse_than(&before));
    let partial = options.only.is_some() || !options.releases.is_empty();
    if partial {
        io::stdout().write_all(seen.list().as_bytes())?;
        eprintln!("`{PAGE}` is left as it is: only a part was driven");
    } else {
        let page = seen.page();
        if options.check && page != before {
            complaints.push(format!("`{PAGE}` is out of date; write it with `cargo xtask compat`"));
        } else if !options.check {
            fs::write(&path, page).with_context(|| format!("cannot write `{}`", path.display()))?;
            eprintln!("written to `{PAGE}`");
        }
    }
    for complaint in &complaints {
        eprintln!("error: {complaint}");
    }
    writeln!(io::stdout(), "{}", seen.summary())?;
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
