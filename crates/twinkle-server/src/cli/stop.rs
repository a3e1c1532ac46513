//! `twinkle-server stop`: ends the node of a configuration and waits for it.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::time::Instant;
use twinkle_core::config::ServerConfig;
use twinkle_core::error::{Error, Result};

use super::ConfigArgs;
use super::report::{Outcome, failed, misuse, say};
use crate::run_files::{Found, RunFiles, Station};

/// The time between two looks at whether the node has ended.
const LOOK: Duration = Duration::from_millis(50);

/// The time between two signals of `--now`.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a node that is still starting may take to end: it has accepted nothing.
const STARTING: Duration = Duration::from_secs(30);

/// Added to the node's own bound, for the process to end after its last line.
const MARGIN: Duration = Duration::from_secs(5);

pub(super) const EXAMPLES: &str = "\
Examples:
  twinkle-server stop -c node.yaml         lets work finish or parks it, and waits for the end
  twinkle-server stop -c node.yaml --now   parks what runs at once

Operations that were accepted continue after the next start. Exit code 1: no node runs, or it did
not end in time.";

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Do not let running operations finish: they are executed again after the next start
    #[arg(long)]
    now: bool,
}

pub(super) fn run(arguments: &StopArgs) -> Outcome {
    let path = arguments.config.path()?;
    let config = ServerConfig::load(path).map_err(|errors| misuse(&errors))?;
    match stop(&config, path, arguments.now) {
        Ok(told) => {
            say(&told);
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

/// What happened, for a person.
fn stop(config: &ServerConfig, path: &Path, now: bool) -> Result<String> {
    let files = RunFiles::of(config, path)?;
    let Station { process, ready } = match files.find()? {
        Found::Running(station) => station,
        Found::Nothing => {
            return Err(Error::not_found(format!("no node of `{}` is running", path.display()))
                .hint(format!("a running one would have the pid file `{}`", files.pid.display())));
        }
        Found::Stale(process) => return Err(stale(&files, process)),
    };
    let limit = ready.map_or(STARTING, |ready| ready.stops_within) + MARGIN;
    let began = Instant::now();
    signal(process, Signal::TERM)?;
    let mut told = began;
    while files.is_taken_by(process)? {
        if began.elapsed() > limit {
            let seconds = limit.as_secs();
            return Err(Error::internal(format!("process {process} has not ended within {seconds} s"))
                .hint(format!("`kill -9 {process}` loses nothing that was acknowledged")));
        }
        // A second signal means: now. Again and again, because two that arrive at once are one.
        if now && told.elapsed() > AGAIN {
            signal(process, Signal::TERM)?;
            told = Instant::now();
        }
        sleep(LOOK);
    }
    Ok(format!("process {process} stopped after {:.1} s", began.elapsed().as_secs_f64()))
}

/// No node holds the pid file, so the number in it names nobody, or somebody else.
fn stale(files: &RunFiles, process: u32) -> Error {
    let file = files.pid.display();
    let lives = pid(process).is_ok_and(|pid| !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH)));
    if lives {
        return Error::not_found(format!("no node is running: process {process} of `{file}` is another program now"))
            .hint("the node was killed and its number given away; nothing was stopped, and the file was removed");
    }
    Error::not_found(format!("no node is running: process {process} of `{file}` has ended without a goodbye"))
        .hint("it was killed, or the machine restarted; the file was removed, and accepted operations continue after the next start")
}

fn signal(process: u32, signal: Signal) -> Result<()> {
    kill_process(pid(process)?, signal).or_else(|error| match error {
        // It ended by itself just now, which is what was wanted.
        rustix::io::Errno::SRCH => Ok(()),
        rustix::io::Errno::PERM => Err(Error::unsupported(format!("process {process} belongs to another user"))
            .hint("run `stop` as the user who started the node")),
        error => Err(Error::internal(format!("process {process} cannot be told to stop: {error}"))),
    })
}

fn pid(process: u32) -> Result<Pid> {
    i32::try_from(process)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::invalid(format!("`{process}` is not a process id")))
}
