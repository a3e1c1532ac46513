//! The command line of `twinkle-server`: one file for each subcommand.
//!
//! Exit codes: 0 when it was done, 1 when it could not be done, 2 for a bad command line or configuration.
//! Data goes to stdout, everything said to a person to stderr.

mod check;
mod clear;
mod detach;
mod keys;
mod launch;
mod merge;
mod plan;
#[cfg(test)]
mod reference;
mod report;
mod routes;
mod schema;
mod stop;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  twinkle-server --config configs/quickstart.yaml             start a node; Ctrl-C stops it
  twinkle-server --config configs/quickstart.yaml --no-wait   start it in the background
  twinkle-server stop --config configs/quickstart.yaml        stop it, wherever it was started
  twinkle-server check --config configs/quickstart.yaml       print what the file means
  twinkle-server plan --config configs/quickstart.yaml        say what it needs in memory
  twinkle-server routes --config configs/quickstart.yaml      list what it would answer

A node that is up answers on its address:
  curl http://127.0.0.1:8000/readyz
  TINKER_BASE_URL=http://127.0.0.1:8000 TINKER_API_KEY=tml-anything python train.py

Exit codes: 0 done, 1 failed, 2 bad command line or configuration.
docs/operations.md is the manual of a running node.";

/// Hosts a frozen base model on which many tenants train and sample LoRA adapters over HTTP.
#[derive(Debug, Parser)]
#[command(name = "twinkle-server", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    launch: launch::LaunchArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node (what happens without a command, too)
    #[command(after_help = launch::EXAMPLES)]
    Launch(launch::LaunchArgs),
    /// Stop the node of a configuration and wait until it has ended
    #[command(after_help = stop::EXAMPLES)]
    Stop(stop::StopArgs),
    /// Check a configuration and print its normal form, every default filled in
    #[command(visible_aliases = ["check-config", "print-config"], after_help = check::EXAMPLES)]
    Check(check::CheckArgs),
    /// Say what a configuration needs in memory and how fast it would be, without serving it
    #[command(after_help = plan::EXAMPLES)]
    Plan(plan::PlanArgs),
    /// List every method and path a node of this configuration answers
    #[command(after_help = routes::EXAMPLES)]
    Routes(routes::RoutesArgs),
    /// Print the JSON Schema of configuration files
    #[command(after_help = schema::EXAMPLES)]
    Schema,
    /// Make, list and revoke API keys, also while a node runs
    #[command(subcommand, after_help = keys::EXAMPLES)]
    Keys(keys::KeysCommand),
    /// Add an adapter to its model: a full Hugging Face checkpoint
    #[command(after_help = merge::MERGE_EXAMPLES)]
    Merge(merge::MergeArgs),
    /// Write an adapter in another layout
    #[command(after_help = merge::CONVERT_EXAMPLES)]
    Convert(merge::ConvertArgs),
    /// Delete what a stopped node left
    #[command(subcommand)]
    Clear(clear::ClearCommand),
}

/// The configuration a subcommand is about.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// The YAML that says what to serve
    #[arg(short, long, value_name = "FILE", env = "TWINKLE_SERVER_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command, launch } = Cli::parse();
    // One TLS provider for every library, before any of them looks for one; it fails only where one is there already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = match command {
        None => launch::run(&launch),
        Some(Command::Launch(launch)) => launch::run(&launch),
        Some(Command::Stop(arguments)) => stop::run(&arguments),
        Some(Command::Check(arguments)) => check::run(&arguments),
        Some(Command::Plan(arguments)) => plan::run(&arguments),
        Some(Command::Routes(arguments)) => routes::run(&arguments),
        Some(Command::Schema) => schema::run(),
        Some(Command::Keys(command)) => keys::run(&command),
        Some(Command::Merge(arguments)) => merge::run(&arguments),
        Some(Command::Convert(arguments)) => merge::convert(&arguments),
        Some(Command::Clear(command)) => clear::run(&command),
    };
    outcome.err().unwrap_or(ExitCode::SUCCESS)
}
