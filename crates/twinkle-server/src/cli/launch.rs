//! `twinkle-server [launch]`: starts a node and stays until it is stopped.

use clap::{ArgAction, Args};

use super::report::{Outcome, launch_failure, say};
use super::{ConfigArgs, detach};
use crate::launcher::{LaunchOptions, TwinkleServer};
use crate::logging::{self, LogFilter, LogFormat};
use crate::openmp;

pub(super) const EXAMPLES: &str = "\
Examples:
  twinkle-server launch -c node.yaml
  twinkle-server launch -c node.yaml --no-wait           returns when it is ready, or says why not
  twinkle-server launch -c node.yaml --log-level debug   every request; libraries stay quiet
  twinkle-server launch -c node.yaml --log-level warning,twinkle_model=debug
  twinkle-server launch -c node.yaml --log-format json   one object a line, for jq

SIGTERM or Ctrl-C stops it within a bound that it logs, a second one at once. Nothing acknowledged
is lost.";

#[derive(Debug, Args)]
pub(super) struct LaunchArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Start in the background: return once the node is ready, or with the reason it is not
    #[arg(long = "no-wait")]
    no_wait: bool,
    /// How much to log on stderr: error, warning, info, debug or trace, and more or less for single modules
    #[arg(
        long,
        value_name = "LEVEL[,MODULE=LEVEL…]",
        env = "RUST_LOG",
        hide_env_values = true,
        default_value = "info"
    )]
    log_level: LogFilter,
    /// Lines for people, or one JSON object a line
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Listen beyond this machine although any API key is accepted
    #[arg(long)]
    insecure: bool,
    /// Accepted for older scripts; both protocols are always served
    #[arg(short = 't', long, value_name = "TYPE", value_parser = ["twinkle", "tinker"], hide_possible_values = true)]
    server_type: Option<String>,
    /// Accepted for older scripts; there is no Ray cluster to have a namespace in
    #[arg(long, value_name = "NAME", env = "TWINKLE_RAY_NAMESPACE", hide_env_values = true)]
    namespace: Option<String>,
    /// What `--no-wait` starts.
    #[arg(long = "detached", hide = true, action = ArgAction::SetTrue, conflicts_with = "no_wait")]
    detached: bool,
}

pub(super) fn run(arguments: &LaunchArgs) -> Outcome {
    let path = arguments.config.path()?;
    if arguments.no_wait {
        return detach::run(path);
    }
    openmp::spin_briefly();
    if arguments.detached {
        detach::leave_the_terminal();
    }
    let server = TwinkleServer::from_config(path).map_err(|error| launch_failure(&error))?;
    if let Err(error) = logging::start(&arguments.log_level, arguments.log_format) {
        say(&format_args!("note: {error}"));
    }
    if arguments.server_type.is_some() {
        tracing::info!("`--server-type` has no effect: both protocols are always served");
    }
    if let Some(namespace) = &arguments.namespace {
        tracing::info!(namespace, "`--namespace` has no effect: everything runs in one process");
    }
    let options = LaunchOptions { insecure: arguments.insecure };
    server.with_options(options).run().map_err(|error| launch_failure(&error))
}
