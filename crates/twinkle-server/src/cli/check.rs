//! `twinkle-server check`: whether a configuration is right, and what it means.

use clap::{Args, ValueEnum};

use super::ConfigArgs;
use super::report::{Outcome, failure, misuse, print, say};

pub(super) const EXAMPLES: &str = "\
Examples:
  twinkle-server check -c node.yaml                 every default filled in, every alias resolved
  twinkle-server check -c node.yaml --format json   the same for jq
  twinkle-server check -c node.yaml >/dev/null      only whether it is right: exit code 0 or 2

Nothing is started or fetched. Keys that are understood and have no effect are noted on stderr.";

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How to print the normal form
    #[arg(long, value_enum, default_value = "yaml", env = "TWINKLE_PRINT_FORMAT", hide_env_values = true)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Yaml,
    Json,
}

pub(super) fn run(arguments: &CheckArgs) -> Outcome {
    let config = arguments.config.load()?;
    let text = match arguments.format {
        Format::Yaml => serde_yaml::to_string(&config).map_err(|error| failure(&error))?,
        Format::Json => serde_json::to_string_pretty(&config).map_err(|error| failure(&error))? + "\n",
    };
    print(&text);
    for warning in config.warnings() {
        say(&format_args!("warning: {warning}"));
    }
    for key in config.inert_keys() {
        say(&format_args!("note: {key}"));
    }
    config.check_supported().map_err(|errors| misuse(&errors))
}
