//! A server process with its own port, state folder and model.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// How long a server may take until it is ready: generous, because two cores may be busy compiling.
const READY_LIMIT: Duration = Duration::from_mins(1);

/// What to serve.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The server binary.
    pub binary: PathBuf,
    /// A model folder with a tokenizer.
    pub model: PathBuf,
    /// The model's public name.
    pub name: String,
    /// `float32` or `bfloat16`.
    pub dtype: String,
    /// Where model and sampler compute: `CPU` or `CUDA`.
    pub device: String,
    /// Whether routes lie where the first generation of Twinkle's clients looks for them.
    pub first_generation: bool,
    /// Environment variables of the server.
    pub environment: Vec<(String, String)>,
    /// Keys of `persistence`, such as `mode: redis, redis_url: 'redis://localhost'`.
    pub persistence: String,
    /// Further lines at the top level of the configuration.
    pub settings: String,
    /// `args` of the `server` application, such as `{server_config: {per_token_model_limit: 2}}`.
    pub server_args: String,
    /// A further line of the `model` application's `args`.
    pub model_args: String,
    /// A further line of the `sampler` application.
    pub sampler_settings: String,
    /// A further line of the `sampler` application's `args`.
    pub sampler_args: String,
}

impl NodeOptions {
    /// Serves a golden fixture model in fp32 under the name `tiny/<variant>`.
    #[must_use]
    pub fn fixture(binary: &str, variant: &str) -> Self {
        Self {
            binary: PathBuf::from(binary),
            model: workspace_root().join("tests/golden/fixtures").join(variant),
            name: format!("tiny/{variant}"),
            dtype: "float32".to_owned(),
            device: "CPU".to_owned(),
            first_generation: false,
            environment: Vec::new(),
            persistence: "mode: file".to_owned(),
            settings: String::new(),
            server_args: "{}".to_owned(),
            model_args: String::new(),
            sampler_settings: String::new(),
            sampler_args: String::new(),
        }
    }
}

/// A running server; killed when dropped. Its state folder outlives a restart.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
    folder: TempDir,
    port: u16,
    process: Child,
}

impl Node {
    /// Starts a server with an empty state folder and waits until it is ready.
    pub async fn start(options: NodeOptions) -> Result<Self> {
        let folder = TempDir::new()?;
        let port = free_port()?;
        fs::write(folder.path().join("node.yaml"), configuration(&options, port, folder.path()))?;
        let process = spawn(&options, folder.path())?;
        let mut node = Self { options, folder, port, process };
        node.wait_until_ready().await?;
        Ok(node)
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The served model's public name.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.options.name
    }

    /// The folder with the node's configuration, log and state.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The server's process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Ends the server as a power cut would: SIGKILL, no goodbye.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Starts the server again on the same port with the state it left.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.options, self.folder.path())?;
        self.wait_until_ready().await
    }

    /// What the server has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("node.log")).unwrap_or_default()
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let client = reqwest::Client::new();
        let url = format!("{}/readyz", self.base_url());
        let deadline = tokio::time::Instant::now() + READY_LIMIT;
        loop {
            if let Ok(response) = client.get(&url).send().await
                && response.status().is_success()
            {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("the server ended with {status} before it was ready:\n{}", self.log());
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the server was not ready after {READY_LIMIT:?}:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already; either way nothing is left running.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(options: &NodeOptions, folder: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(folder.join("node.log"))?;
    Command::new(&options.binary)
        .arg("--config")
        .arg(folder.join("node.yaml"))
        .envs(options.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", options.binary.display()))
}

fn configuration(options: &NodeOptions, port: u16, folder: &Path) -> String {
    let NodeOptions { model, name, dtype, persistence, settings, server_args, model_args, .. } = options;
    let NodeOptions { sampler_settings, sampler_args, device, .. } = options;
    let (model, state) = (model.display(), folder.join("state"));
    let state = state.display();
    let [at_server, at_model, at_sampler, at_processor] = if options.first_generation {
        ["/server", "/models", "/samplers", "/processors"]
    } else {
        ["/api/v1", "/api/v1/model", "/api/v1/sampler", "/api/v1/processor"]
    };
    format!(
        "\
http_options: {{host: 127.0.0.1, port: {port}}}
persistence: {{{persistence}, file_path: {state}}}
{settings}
applications:
  - name: server
    route_prefix: {at_server}
    import_path: server
    args: {server_args}
  - name: model
    route_prefix: {at_model}/{name}
    import_path: model
    args:
      model_id: {model}
      backend: transformers
      torch_dtype: {dtype}
      device_group: {{name: model, ranks: 1, device_type: {device}}}
      device_mesh: {{device_type: {device}, dp_size: 1}}
      {model_args}
  - name: sampler
    route_prefix: {at_sampler}/{name}
    import_path: sampler
    {sampler_settings}
    args:
      model_id: {model}
      sampler_type: torch
      engine_args: {{enable_lora: true}}
      {sampler_args}
      device_group: {{name: sampler, ranks: 1, device_type: {device}}}
      device_mesh: {{device_type: {device}, dp_size: 1}}
  - name: processor
    route_prefix: {at_processor}
    import_path: processor
    args:
      ncpu_proc_per_node: 1
      device_group: {{name: processor, ranks: 1, device_type: CPU}}
      device_mesh: {{device_type: CPU, dp_size: 1}}
"
    )
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The repository's root.
pub(crate) fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new(".")).to_path_buf()
}
