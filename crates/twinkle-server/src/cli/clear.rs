//! `twinkle-server clear`: deletes what a stopped node left.

use clap::{Args, Subcommand};
use tokio::runtime;
use twinkle_core::config::Persistence;
use twinkle_core::error::{Error, Result};

use super::ConfigArgs;
use super::report::{Outcome, failed, print};
use crate::launcher::clear_persistence;
use crate::run_files::{PidFile, RunFiles};

pub(super) const EXAMPLES: &str = "\
Example:
  twinkle-server clear persistence -c node.yaml

Sessions, runs, their snapshots and the journal are gone afterwards, and checkpoints are no longer
listed. The files of checkpoints and the API keys stay. A running node is
not touched: stop it first.";

#[derive(Debug, Subcommand)]
pub(super) enum ClearCommand {
    /// Delete sessions, runs and the journal of a stopped node
    #[command(after_help = EXAMPLES)]
    Persistence(ClearArgs),
}

#[derive(Debug, Args)]
pub(super) struct ClearArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(command: &ClearCommand) -> Outcome {
    let ClearCommand::Persistence(arguments) = command;
    let (config, path) = (arguments.config.load()?, arguments.config.path()?);
    let clear = || -> Result<String> {
        // Held until it is done, so that no node starts in between.
        let _held = PidFile::take(&RunFiles::of(&config, path)?)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::internal(format!("the async runtime could not be started: {error}")))?;
        let cleared = runtime.block_on(clear_persistence(&config.persistence))?;
        let mode = mode(&config.persistence);
        Ok(format!("cleared {cleared} keys from persistence backend (mode={mode})\n"))
    };
    print(&clear().map_err(failed)?);
    Ok(())
}

/// The mode as the YAML names it.
const fn mode(persistence: &Persistence) -> &'static str {
    match persistence {
        Persistence::Memory => "memory",
        Persistence::File { .. } => "file",
        Persistence::Redis { .. } => "redis",
        Persistence::Postgres { .. } => "postgres",
    }
}
