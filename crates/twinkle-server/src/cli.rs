//! The command line of `twinkle-server`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use twinkle_core::config::ServerConfig;

use crate::launcher::{LaunchError, LaunchOptions, TwinkleServer};
use crate::logging::{self, LogLevel};
use crate::openmp;

/// Exit status for a bad command line or configuration.
const USAGE: u8 = 2;

/// Exit status for a node that could not start or failed.
const FAILURE: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  twinkle-server --config configs/quickstart.yaml         start a node; Ctrl-C stops it
  twinkle-server check --config configs/quickstart.yaml   print what the file means
  twinkle-server -c configs/quickstart.yaml --log-level debug

A node that is up answers on its address:
  curl http://127.0.0.1:8000/readyz
  TINKER_BASE_URL=http://127.0.0.1:8000 TINKER_API_KEY=tml-anything python train.py";

/// Hosts a frozen base model on which many tenants train and sample LoRA adapters over HTTP.
#[derive(Debug, Parser)]
#[command(name = "twinkle-server", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    launch: LaunchArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node (what happens without a command, too)
    Launch(LaunchArgs),
    /// Check a configuration and print its normal form, every default filled in
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct LaunchArgs {
    /// The YAML that says what to serve
    #[arg(short, long, value_name = "FILE", env = "TWINKLE_SERVER_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// How much to log on stderr
    #[arg(long, value_name = "LEVEL", value_enum, ignore_case = true, default_value = "info")]
    log_level: LogLevel,
    /// Listen beyond this machine although any API key is accepted
    #[arg(long)]
    insecure: bool,
    /// Accepted for older scripts; both protocols are always served
    #[arg(short = 't', long, value_name = "TYPE", value_parser = ["twinkle", "tinker"], hide_possible_values = true)]
    server_type: Option<String>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The YAML to check
    #[arg(short, long, value_name = "FILE", env = "TWINKLE_SERVER_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command, launch } = Cli::parse();
    match command {
        None => run(launch),
        Some(Command::Launch(launch)) => run(launch),
        Some(Command::Check(arguments)) => check(arguments.config.as_deref()),
    }
}

fn run(arguments: LaunchArgs) -> ExitCode {
    let Some(path) = arguments.config else { return missing_config() };
    openmp::spin_briefly();
    logging::start(arguments.log_level);
    if arguments.server_type.is_some() {
        tracing::info!("`--server-type` has no effect: both protocols are always served");
    }
    let options = LaunchOptions { insecure: arguments.insecure };
    let outcome = TwinkleServer::from_config(&path).and_then(|server| server.with_options(options).run());
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ LaunchError::Config(_)) => complain(&error, USAGE),
        Err(error) => complain(&error, FAILURE),
    }
}

fn check(path: Option<&Path>) -> ExitCode {
    let Some(path) = path else { return missing_config() };
    let config = match ServerConfig::load(path) {
        Ok(config) => config,
        Err(errors) => return complain(&errors, USAGE),
    };
    let text = match serde_json::to_string_pretty(&config) {
        Ok(text) => text,
        Err(error) => return complain(&error, FAILURE),
    };
    // A closed pipe (`| head`) is not worth an error.
    let _ = writeln!(std::io::stdout(), "{text}");
    for key in config.inert_keys() {
        let _ = writeln!(std::io::stderr(), "note: {key}");
    }
    match config.check_supported() {
        Ok(()) => ExitCode::SUCCESS,
        Err(errors) => complain(&errors, USAGE),
    }
}

fn missing_config() -> ExitCode {
    let error = "error: no configuration given\nhint: name one with `--config FILE` or `TWINKLE_SERVER_CONFIG`; `twinkle-server --help` shows an example";
    let _ = writeln!(std::io::stderr(), "{error}");
    ExitCode::from(USAGE)
}

fn complain(error: &dyn std::fmt::Display, status: u8) -> ExitCode {
    let text = error.to_string();
    // Configuration errors already start with `error:` and the place in the file.
    let prefix = if text.starts_with("error:") { "" } else { "error: " };
    let _ = writeln!(std::io::stderr(), "{prefix}{text}");
    ExitCode::from(status)
}
