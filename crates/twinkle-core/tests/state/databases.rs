//! A real `PostgreSQL` and a real Redis for a test, when they are installed.
//!
//! Where one is not, the test is skipped and says so: on stderr, and in the file that `TWINKLE_TEST_SKIPS` names, from
//! which `cargo xtask test` counts.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

/// How long a database may take to start on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(1);
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// Names the file in which skipped tests are noted.
const SKIPS_VARIABLE: &str = "TWINKLE_TEST_SKIPS";

/// A database server of this test; ended when dropped. Its data outlive a kill.
#[derive(Debug)]
pub(crate) struct Database {
    kind: Kind,
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

#[derive(Debug)]
enum Kind {
    Postgres { programs: PathBuf, user: Option<&'static str> },
    Redis { program: PathBuf },
}

impl Database {
    /// An empty `PostgreSQL` server, or `None` where it is not installed.
    pub(crate) fn postgres() -> Option<Self> {
        let Some(programs) = postgres_programs() else {
            skipped("PostgreSQL is not installed: no `initdb` in PATH or /usr/lib/postgresql");
            return None;
        };
        // PostgreSQL refuses to run as root.
        let user = is_root().then(|| if user_exists("postgres") { "postgres" } else { "nobody" });
        let folder = tempfile::Builder::new().prefix("twinkle-postgres-").tempdir().expect("a temporary folder");
        if let Some(user) = user {
            run(Command::new("chown").arg(user).arg(folder.path()));
        }
        let data = folder.path().join("data");
        let mut initdb = as_user(user, &programs.join("initdb"));
        initdb.args(["-U", "twinkle", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(data);
        run(&mut initdb);
        Some(Self::started(Kind::Postgres { programs, user }, folder))
    }

    /// An empty Redis server that syncs every write, or `None` where it is not installed.
    pub(crate) fn redis() -> Option<Self> {
        let Some(program) = in_path("redis-server") else {
            skipped("Redis is not installed: no `redis-server` in PATH");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("twinkle-redis-").tempdir().expect("a temporary folder");
        Some(Self::started(Kind::Redis { program }, folder))
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        match self.kind {
            Kind::Postgres { .. } => format!("postgres://twinkle@127.0.0.1:{}/postgres", self.port),
            Kind::Redis { .. } => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    /// Ends it as a crash would: SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is killed");
            process.wait().expect("it ends");
        }
    }

    /// Starts it again with the data it left.
    pub(crate) fn start_again(&mut self) {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            // After a kill the old processes take a moment to vanish, and until then a new server refuses to start.
            let mut process = self.spawn();
            loop {
                assert!(Instant::now() < deadline, "the database did not start:\n{}", self.log());
                if process.try_wait().expect("its state").is_some() {
                    break;
                }
                if self.is_ready(process.id()) {
                    self.process = Some(process);
                    return;
                }
                std::thread::sleep(CHECK_EVERY);
            }
            std::thread::sleep(CHECK_EVERY);
        }
    }

    fn started(kind: Kind, folder: TempDir) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).expect("a port");
        let mut database = Self { kind, folder, port: port.port(), process: None };
        database.start_again();
        database
    }

    fn spawn(&self) -> Child {
        let port = self.port.to_string();
        let mut command = match &self.kind {
            Kind::Postgres { programs, user } => {
                let mut command = as_user(*user, &programs.join("postgres"));
                command.arg("-D").arg(self.folder.path().join("data")).args(["-p", &port, "-h", "127.0.0.1", "-k", ""]);
                command
            }
            Kind::Redis { program } => {
                let mut command = Command::new(program);
                command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(self.folder.path());
                command.args(["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]);
                command
            }
        };
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).expect("a log");
        command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        command.spawn().expect("the database is started")
    }

    fn is_ready(&self, process: u32) -> bool {
        match &self.kind {
            Kind::Postgres { .. } => self.postgres_is_ready(process).unwrap_or(false),
            Kind::Redis { .. } => self.redis_answers().unwrap_or(false),
        }
    }

    /// The first line of its file is the process, the last one its state.
    fn postgres_is_ready(&self, process: u32) -> std::io::Result<bool> {
        let file = fs::read_to_string(self.folder.path().join("data/postmaster.pid"))?;
        let mut lines = file.lines().map(str::trim);
        Ok(lines.next() == Some(&process.to_string()) && lines.next_back() == Some("ready"))
    }

    fn redis_answers(&self) -> std::io::Result<bool> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        connection.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // PostgreSQL's immediate end, which leaves no shared memory behind; Redis ends at once as well.
        let _ = Command::new("kill").args(["-QUIT", &process.id().to_string()]).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && process.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(CHECK_EVERY);
        }
        let _ = process.kill();
        let _ = process.wait();
    }
}

fn skipped(reason: &str) {
    eprintln!("skipped: {reason}");
    let Some(path) = std::env::var_os(SKIPS_VARIABLE) else { return };
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let noted = File::options().create(true).append(true).open(path).and_then(|mut file| {
        // One write, so that tests that run side by side do not mix their lines.
        file.write_all(format!("{name}: {reason}\n").as_bytes())
    });
    noted.expect("the skipped test is noted");
}

fn postgres_programs() -> Option<PathBuf> {
    if let Some(folder) = in_path("initdb").and_then(|program| program.parent().map(Path::to_owned)) {
        return Some(folder);
    }
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|folder| folder.join("initdb").is_file())
        .collect();
    versions.sort();
    versions.pop()
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn user_exists(user: &str) -> bool {
    Command::new("id")
        .arg(user)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// `setpriv` becomes the program, so that killing the process kills the database.
fn as_user(user: Option<&str>, program: &Path) -> Command {
    let Some(user) = user else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]).arg(program);
    command.current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("a program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
