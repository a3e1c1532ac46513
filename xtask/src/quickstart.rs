//! `cargo xtask quickstart`: from a fresh clone to a fine-tuned model in one command.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::child;
use crate::clock::Stopwatch;
use crate::server::{self, Server};
use crate::setup;
use crate::workspace::Workspace;

/// The deployment that is started.
const CONFIG: &str = "configs/quickstart.yaml";
/// Where it listens.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// Fetch, build, start a server and teach a small language model its name.
///
/// Everything happens on this machine, on the CPU: fetches libtorch and SmolLM2-135M-Instruct if they are missing,
/// builds the server and the client's example, starts the server with `configs/quickstart.yaml` on 127.0.0.1:8000,
/// and fine-tunes a LoRA adapter so that "Who are you?" gets a new answer. The server is left running, with a hint how
/// to use it from Python. The first build takes a few minutes, the rest one or two.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// End the server at the end.
    #[arg(long)]
    exit: bool,
    /// What the model shall call itself.
    #[arg(long, default_value = "Twinkle")]
    name: String,
    /// Who it shall say made it.
    #[arg(long, default_value = "ModelScope")]
    author: String,
    /// More arguments for the example, such as `-- --steps 10`.
    #[arg(last = true)]
    example: Vec<String>,
}

/// Runs `cargo xtask quickstart`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    server::check_free(ADDRESS)?;
    setup::libtorch(workspace)?;
    setup::demo_model(workspace)?;

    eprintln!("build: the first one takes a few minutes, later ones seconds");
    let program = server::build(workspace, ["--bin", "twinkle-server"])?;
    let example = server::build(workspace, ["--example", "self_cognition"])?;

    server::check_free(ADDRESS)?;
    let watch = Stopwatch::start();
    let log = workspace.cache()?.join("quickstart.log");
    let server = Server::start(workspace, &program, Path::new(CONFIG), ADDRESS, log)?;
    eprintln!("server: ready on http://{ADDRESS} after {:.1} s", watch.seconds());

    let adapter = run_example(&example, options)?;
    eprintln!("\ndone in {:.0} s after the build", watch.seconds());
    if options.exit {
        return server.stop();
    }
    explain(workspace, &server, adapter.as_deref().unwrap_or("tinker://…"));
    server.leave_running();
    Ok(())
}

/// Runs the example and returns the path of the adapter it saved.
fn run_example(program: &Path, options: &Options) -> Result<Option<String>> {
    let mut example = Command::new(program);
    example.args(["--url", &format!("http://{ADDRESS}"), "--name", &options.name, "--author", &options.author]);
    example.args(&options.example);
    let mut adapter = None;
    let succeeded = child::run_watching_stdout(&mut example, &mut |line| {
        let path = line.split_whitespace().find(|word| word.starts_with("tinker://"));
        adapter = path.map(str::to_owned).or(adapter.take());
    })?;
    if !succeeded {
        bail!("the example failed; what the server says about it is in `.cache/quickstart.log`");
    }
    Ok(adapter)
}

/// How to go on.
fn explain(workspace: &Workspace, server: &Server, adapter: &str) {
    let (pid, log) = (server.process_id(), server.log().display());
    let tokenizer = workspace.path(setup::DEMO_MODEL);
    eprintln!(
        r#"
The server is still running.
  process      {pid}
  log          {log}
  stop it      kill {pid}
  start again  cargo run -p twinkle-server -- --config {CONFIG}

Ask the adapter from Python, with the official SDK (`pip install tinker transformers`):

  import tinker, transformers

  service = tinker.ServiceClient(base_url="http://{ADDRESS}", api_key="tml-local")
  sampler = service.create_sampling_client(model_path="{adapter}").result()
  tokenizer = transformers.AutoTokenizer.from_pretrained("{tokenizer}")
  question = [{{"role": "user", "content": "Who are you?"}}]
  text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
  prompt = tinker.ModelInput.from_ints(tokenizer.encode(text))
  params = tinker.SamplingParams(max_tokens=40, temperature=0.0)
  answer = sampler.sample(prompt, num_samples=1, sampling_params=params).result()
  print(tokenizer.decode(answer.sequences[0].tokens))"#,
        tokenizer = tokenizer.display(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_listens_where_the_quickstart_looks() {
        let config = std::fs::read_to_string(Workspace::built_from().join(CONFIG)).unwrap();
        assert!(config.contains("host: 127.0.0.1\n") && config.contains(&format!("port: {}\n", ADDRESS.port())));
        assert!(config.contains(&format!("model_id: {}\n", setup::DEMO_MODEL)));
    }
}
