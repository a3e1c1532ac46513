//! Building the server and running it as a child.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::child;
use crate::clock::Stopwatch;
use crate::setup;
use crate::workspace::Workspace;

/// How long the server may take until it is ready, with a cold disk and busy cores.
const READY_LIMIT: f64 = 120.0;
/// How long it may take to finish what it is doing.
const STOP_LIMIT: f64 = 30.0;
/// Lines of its log that are shown when it fails.
const LOG_TAIL: usize = 20;

/// A running server. It is ended when dropped, unless it was left running.
pub(crate) struct Server {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
    ended: bool,
}

/// Builds one program, `--bin` or `--example` with its name, and returns its path.
///
/// Built as a part of the workspace, it shares with the tests everything beneath it.
pub(crate) fn build(workspace: &Workspace, target: [&str; 2]) -> Result<PathBuf> {
    let mut cargo = child::cargo(workspace);
    cargo.args(["build", "--workspace"]).args(target).arg("--message-format=json-render-diagnostics");
    let shown = child::shown(&cargo);
    let output = cargo.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed");
    }
    let [_, name] = target;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        if message["target"]["name"] == name
            && let Some(program) = message["executable"].as_str()
        {
            return Ok(PathBuf::from(program));
        }
    }
    bail!("`{shown}` built no program called `{name}`")
}

/// Says clearly that the address is taken, before a long build or a server says it late.
pub(crate) fn check_free(address: SocketAddr) -> Result<()> {
    let Err(error) = TcpListener::bind(address) else { return Ok(()) };
    let port = address.port();
    bail!(
        "cannot listen on {address}: {error}\n\
         hint: another program uses it, perhaps an earlier quickstart; find it with `ss -ltnp 'sport = :{port}'`, stop it with `kill <pid>`"
    )
}

impl Server {
    /// Starts `program` with `config` and waits until it is ready. Its output goes to `log`.
    pub(crate) fn start(
        workspace: &Workspace,
        program: &Path,
        config: &Path,
        address: SocketAddr,
        log: PathBuf,
    ) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
        let mut command = Command::new(program);
        command.current_dir(workspace.root()).arg("--config").arg(config);
        if let Some(folder) = setup::library_path() {
            command.env("LD_LIBRARY_PATH", folder);
        }
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = command.spawn().with_context(|| format!("cannot start `{}`", program.display()))?;
        let mut server = Self { process, address, log, ended: false };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Its process id.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Where its output goes.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Leaves it running when this program ends.
    pub(crate) fn leave_running(mut self) {
        self.ended = true;
    }

    /// Asks it to finish, and waits for it.
    pub(crate) fn stop(mut self) -> Result<()> {
        let asked = Command::new("kill").arg(self.process.id().to_string()).status();
        let watch = Stopwatch::start();
        while asked.as_ref().is_ok_and(std::process::ExitStatus::success) && watch.seconds() < STOP_LIMIT {
            if self.process.try_wait()?.is_some() {
                self.ended = true;
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "the server did not end by itself within {STOP_LIMIT} s and was killed; its log is in `{}`",
            self.log.display()
        )
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let watch = Stopwatch::start();
        loop {
            if is_ready(self.address) {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                self.ended = true;
                bail!("the server ended with {status} before it was ready:\n{}", self.log_tail());
            }
            if watch.seconds() > READY_LIMIT {
                bail!("the server was not ready after {READY_LIMIT} s:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended by itself; either way nothing is left running.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Whether `GET /readyz` is answered with 200.
fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let limit = Duration::from_secs(2);
        let mut connection = TcpStream::connect_timeout(&address, limit)?;
        connection.set_read_timeout(Some(limit))?;
        write!(connection, "GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
        let mut status = [0_u8; 12];
        connection.read_exact(&mut status)?;
        Ok(&status == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            connection.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn only_an_answer_of_200_is_ready() {
        assert!(is_ready(answering("HTTP/1.1 200 OK\r\n\r\n")));
        assert!(!is_ready(answering("HTTP/1.1 503 Service Unavailable\r\n\r\n")));
        assert!(!is_ready(answering("")));
    }

    #[test]
    fn a_taken_address_is_named_with_a_way_out() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let message = check_free(address).unwrap_err().to_string();
        assert!(message.contains(&address.to_string()) && message.contains("hint: "), "{message}");
    }
}
