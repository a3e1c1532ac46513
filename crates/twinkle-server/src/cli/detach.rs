//! `--no-wait`: the node runs on without a terminal, and this process ends once it is ready or has failed.
//!
//! The node is this program again, in a session of its own. It tells that it is ready through its pid file, which is
//! also what `stop` reads.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use twinkle_core::config::ServerConfig;
use twinkle_core::error::{Error, Result};

use super::report::{Outcome, failed, failure, misuse, say, silent_failure};
use crate::run_files::{PidFile, RunFiles, Station};

/// The time between two looks at whether the node is ready.
const LOOK: Duration = Duration::from_millis(50);

/// A log above this size is put aside before a new one is begun, in bytes.
const LARGE_LOG: u64 = 64 << 20;

/// How much of the end of a failed node's log is shown, in bytes.
const SHOWN: u64 = 4 << 10;

pub(super) fn run(path: &Path) -> Outcome {
    let config = ServerConfig::load(path).map_err(|errors| misuse(&errors))?;
    config.check_supported().map_err(|errors| misuse(&errors))?;
    let files = RunFiles::of(&config, path).map_err(failed)?;
    let (mut node, log_began) = spawn(&files).map_err(failed)?;
    loop {
        match node.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                say(&format_args!("{}", end_of_log(&files.log, log_began).trim_end()));
                say(&format_args!("the node ended before it was ready; its log is {}", files.log.display()));
                return Err(silent_failure(status.code()));
            }
            Err(error) => return Err(failure(&format_args!("the started node cannot be watched: {error}"))),
        }
        if let Some(Station { process, ready: Some(ready) }) = PidFile::read(&files.pid)
            && process == node.id()
        {
            say(&format_args!("ready on {}, process {process}", ready.url));
            say(&format_args!("log:  {}", files.log.display()));
            say(&format_args!("stop: twinkle-server stop --config {}", path.display()));
            return Ok(());
        }
        sleep(LOOK);
    }
}

/// Gives up the terminal, so that closing it does not end the node.
pub(super) fn leave_the_terminal() {
    if let Err(error) = rustix::process::setsid() {
        say(&format_args!("note: the node stays in the session that started it: {error}"));
    }
}

/// Starts this program again with the same arguments; answers where in the log its own lines begin.
fn spawn(files: &RunFiles) -> Result<(Child, u64)> {
    files.make_folder()?;
    files.refuse_second()?;
    let (log, began) = open_log(&files.log)
        .map_err(|error| Error::invalid(format!("the log `{}` cannot be written: {error}", files.log.display())))?;
    let cannot = |error| Error::internal(format!("the node could not be started in the background: {error}"));
    let errors = log.try_clone().map_err(cannot)?;
    let node = Command::new(std::env::current_exe().map_err(cannot)?)
        .args(std::env::args_os().skip(1).map(detached))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(cannot)?;
    Ok((node, began))
}

fn detached(argument: OsString) -> OsString {
    if argument == "--no-wait" { "--detached".into() } else { argument }
}

/// The log to append to, and its length; a large one is renamed to `<name>.1` first.
fn open_log(path: &Path) -> std::io::Result<(File, u64)> {
    if std::fs::metadata(path).is_ok_and(|log| log.len() > LARGE_LOG) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        std::fs::rename(path, aside)?;
    }
    let log = OpenOptions::new().create(true).append(true).open(path)?;
    let length = log.metadata()?.len();
    Ok((log, length))
}

/// What the node said after `began`, at most [`SHOWN`] bytes of it.
fn end_of_log(path: &Path, began: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut log = File::open(path)?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(began.max(length.saturating_sub(SHOWN))))?;
        let mut bytes = Vec::new();
        log.take(SHOWN).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("the log cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_node_is_shown_with_its_own_lines_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.log");
        std::fs::write(&path, "an earlier node\n").unwrap();
        let (_, began) = open_log(&path).unwrap();
        std::fs::write(&path, format!("an earlier node\n{}\nthe last words\n", "x".repeat(9_000))).unwrap();
        let shown = end_of_log(&path, began);
        assert!(shown.ends_with("the last words\n") && shown.len() <= 4_096, "{}", shown.len());
        assert!(!shown.contains("earlier"));
    }

    #[test]
    fn the_started_node_gets_every_other_argument_as_it_is() {
        let given = ["launch", "--no-wait", "--config", "no-wait.yaml", "--insecure"];
        let passed: Vec<OsString> = given.into_iter().map(|argument| detached(argument.into())).collect();
        assert_eq!(passed, ["launch", "--detached", "--config", "no-wait.yaml", "--insecure"]);
    }
}
