//! `twinkle-server plan`: what a configuration needs in memory, and how fast it would be.

use clap::{Args, ValueEnum};
use tokio::runtime;

use super::ConfigArgs;
use super::report::{Outcome, failed, failure, misuse, print};
use crate::launcher::plan::{NodePlan, Speeds};
use crate::openmp;

pub(super) const EXAMPLES: &str = "\
Examples:
  twinkle-server plan -c node.yaml                 weights, runs, passes, caches, tokens per second
  twinkle-server plan -c node.yaml --format json   the same for jq
  twinkle-server plan -c node.yaml --measure       trains one small batch to see how fast it is

Nothing is served and no weight is read, unless `--measure` is given. A model's folder needs no more
than its `config.json`. What is printed here is what `launch` decides.";

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How to print the plan
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Load each model, train one batch and say what it took, instead of estimating
    #[arg(long)]
    measure: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(arguments: &PlanArgs) -> Outcome {
    openmp::spin_briefly();
    let config = arguments.config.load()?;
    config.check_supported().map_err(|errors| misuse(&errors))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failure(&error))?;
    let plan = runtime.block_on(NodePlan::of(&config)).map_err(failed)?;
    let speeds = if arguments.measure { Speeds::measure(&plan) } else { Speeds::estimate(&plan) };
    let facts = plan.facts(&speeds.map_err(failed)?);
    match arguments.format {
        Format::Text => print(&facts.to_string()),
        Format::Json => print(&(serde_json::to_string_pretty(&facts).map_err(|error| failure(&error))? + "\n")),
    }
    Ok(())
}
