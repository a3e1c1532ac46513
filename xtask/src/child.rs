//! Running other programs.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// `cargo` in the checkout, without what the outer `cargo xtask` put into the environment: some build
/// scripts watch those variables, and a plain `cargo build` afterwards would build their crates again.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace.root());
    for (name, value) in env::vars_os() {
        let set_by_cargo = name.to_string_lossy().starts_with("CARGO_PKG_")
            || ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_BIN_NAME", "CARGO_CRATE_NAME"]
                .iter()
                .any(|known| name == *known)
            || (name == "LIBTORCH" && Path::new(&value) == Workspace::built_from().join(".libtorch/torch"));
        if set_by_cargo {
            command.env_remove(&name);
        }
    }
    command
}

/// The Python that fetches things: `$PYTHON`, or `python3`.
pub(crate) fn python() -> Command {
    Command::new(env::var_os("PYTHON").unwrap_or_else(|| "python3".into()))
}

/// Runs a program whose whole output goes to stderr, as talk; returns whether it succeeded.
pub(crate) fn run_to_stderr(command: &mut Command) -> Result<bool> {
    let shown = shown(command);
    command.stdout(std::io::stderr());
    Ok(command.status().with_context(|| format!("cannot start `{shown}`"))?.success())
}

/// Runs a program, passing its output through line by line and showing each line to `watch` as well.
/// Returns whether it succeeded.
pub(crate) fn run_watched(command: &mut Command, watch: &mut dyn FnMut(&str)) -> Result<bool> {
    watched(command.stderr(Stdio::piped()), watch)
}

/// [`run_watched`] for stdout alone; stderr stays the terminal, so that progress bars work.
pub(crate) fn run_watching_stdout(command: &mut Command, watch: &mut dyn FnMut(&str)) -> Result<bool> {
    watched(command.stderr(Stdio::inherit()), watch)
}

fn watched(command: &mut Command, watch: &mut dyn FnMut(&str)) -> Result<bool> {
    let shown = shown(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let (lines, received) = std::sync::mpsc::sync_channel::<Vec<u8>>(256);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        if let Some(stdout) = stdout {
            let lines = lines.clone();
            scope.spawn(move || pass_through(stdout, std::io::stdout(), &lines));
        }
        if let Some(stderr) = stderr {
            let lines = lines.clone();
            scope.spawn(move || pass_through(stderr, std::io::stderr(), &lines));
        }
        drop(lines);
        for line in received {
            watch(&without_colours(&line));
        }
    });
    Ok(child.wait().with_context(|| format!("lost `{shown}`"))?.success())
}

fn pass_through(from: impl Read, mut to: impl Write, lines: &std::sync::mpsc::SyncSender<Vec<u8>>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        // A closed terminal must not stop the counting.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        let _ = lines.send(std::mem::take(&mut line));
    }
}

/// The text of a line, without terminal colours.
fn without_colours(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(start) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        let end = after.find(|letter: char| letter.is_ascii_alphabetic()).map_or(after.len(), |end| end + 1);
        rest = &after[end..];
    }
    plain.push_str(rest);
    plain.trim_end().to_owned()
}

/// The command line, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    if let Some(program) = Path::new(&words[0]).file_name() {
        words[0] = program.to_string_lossy().into_owned();
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_removed_and_text_is_kept() {
        assert_eq!(without_colours(b"\x1b[32;1m     Summary\x1b[0m 3 passed\n"), "     Summary 3 passed");
        assert_eq!(without_colours("schön [1]".as_bytes()), "schön [1]");
    }

    #[test]
    fn both_streams_are_watched_and_failure_is_told() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let succeeded = run_watched(&mut command, &mut |line| lines.push(line.to_owned())).unwrap();
        lines.sort();
        assert_eq!((lines, succeeded), (vec!["err".to_owned(), "out".to_owned()], false));
    }
}
