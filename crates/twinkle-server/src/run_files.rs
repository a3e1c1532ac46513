//! The pid file and the log of a node, and which process they belong to.
//!
//! A node holds a lock on its pid file for as long as it runs, and the operating system takes the lock away when the
//! process ends, however it ends. So a pid file without a lock is stale, whatever process has its number by now: no
//! signal is ever sent to a stranger.
//!
//! The file's lines are the process id, then, once the node is ready, its address and the most seconds it takes to
//! stop. They lie in the state folder; a node that keeps its state in memory has them in a private temporary folder.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use sha2::{Digest, Sha256};
use twinkle_core::config::{Persistence, ServerConfig};
use twinkle_core::error::{Error, ErrorCode, Result};

/// The pid file's name.
const PID_FILE: &str = "node.pid";

/// The name of the log of a node in the background.
const LOG_FILE: &str = "node.log";

/// How often a lock is tried: somebody who only looks holds it for an instant.
const TRIES: u32 = 5;

/// Where the node of a configuration keeps its pid file and, in the background, its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunFiles {
    /// The pid file.
    pub(crate) pid: PathBuf,
    /// The log.
    pub(crate) log: PathBuf,
}

/// Which process is the node, and, once it is ready, where it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Station {
    /// Its process id.
    pub(crate) process: u32,
    /// Set once it is ready.
    pub(crate) ready: Option<Ready>,
}

/// What a node that is ready tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Where it answers, such as `http://127.0.0.1:8000`.
    pub(crate) url: String,
    /// The most time it takes to stop.
    pub(crate) stops_within: Duration,
}

/// What a look at a pid file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A node that runs.
    Running(Station),
    /// A node that was killed; the file has been removed.
    Stale(u32),
    /// No node.
    Nothing,
}

/// A pid file that this process holds; removed when dropped.
#[derive(Debug)]
pub(crate) struct PidFile {
    file: File,
    path: PathBuf,
}

// === impl RunFiles ===

impl RunFiles {
    /// The files of the node that the configuration in the file `path` describes.
    pub(crate) fn of(config: &ServerConfig, path: &Path) -> Result<Self> {
        let folder = match state_folder(&config.persistence) {
            Some(folder) => folder.to_path_buf(),
            None => private_folder(path)?,
        };
        Ok(Self { pid: folder.join(PID_FILE), log: folder.join(LOG_FILE) })
    }

    /// Makes the folder they lie in.
    pub(crate) fn make_folder(&self) -> Result<()> {
        let Some(folder) = self.pid.parent() else { return Ok(()) };
        fs::create_dir_all(folder)
            .map_err(|error| Error::invalid(format!("the folder `{}` could not be made: {error}", folder.display())))
    }

    /// An error if a node of this configuration runs.
    pub(crate) fn refuse_second(&self) -> Result<()> {
        match self.find()? {
            Found::Running(station) => Err(already_running(&station)),
            Found::Stale(_) | Found::Nothing => Ok(()),
        }
    }

    /// Whether a node runs; a stale pid file is removed.
    pub(crate) fn find(&self) -> Result<Found> {
        let file = match File::open(&self.pid) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(unusable(&self.pid, &error)),
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => match PidFile::read(&self.pid) {
                Some(station) => Ok(Found::Running(station)),
                // Its owner has removed it, and is about to end.
                None if !is_at(&file, &self.pid) => Ok(Found::Nothing),
                None => Err(Error::internal(format!(
                    "the pid file `{}` is held by a process it does not name",
                    self.pid.display()
                ))
                .hint("look again in a moment: a node that is just starting writes it first thing")),
            },
            Err(TryLockError::Error(error)) => Err(unusable(&self.pid, &error)),
            // Held here, so a node that starts at this instant waits for the file to be gone.
            Ok(()) => {
                let station = PidFile::read(&self.pid);
                remove(&self.pid);
                Ok(station.map_or(Found::Nothing, |station| Found::Stale(station.process)))
            }
        }
    }

    /// Whether the node that runs, if any, is still this process.
    pub(crate) fn is_taken_by(&self, process: u32) -> Result<bool> {
        Ok(matches!(self.find()?, Found::Running(station) if station.process == process))
    }
}

// === impl PidFile ===

impl PidFile {
    /// Makes the pid file of this process; an error if another node holds it.
    pub(crate) fn take(files: &RunFiles) -> Result<Self> {
        files.make_folder()?;
        let path = &files.pid;
        for _ in 0..TRIES {
            let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
            let file = opened.map_err(|error| unusable(path, &error))?;
            match file.try_lock() {
                // Removed by its last owner between the two calls: the lock is on a file without a name.
                Ok(()) if !is_at(&file, path) => {}
                Ok(()) => {
                    let mut taken = Self { file, path: path.clone() };
                    // What a killed node left may be longer than what is written now.
                    taken.file.set_len(0).map_err(|error| unusable(path, &error))?;
                    taken.write(&format!("{}\n", std::process::id()))?;
                    return Ok(taken);
                }
                Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(20)),
                Err(TryLockError::Error(error)) => return Err(unusable(path, &error)),
            }
        }
        let shown = path.display();
        Err(Self::read(path).map_or_else(
            || Error::new(ErrorCode::Conflict, format!("the pid file `{shown}` is held by another process")),
            |station| already_running(&station),
        ))
    }

    /// Notes that the node answers.
    pub(crate) fn ready(&mut self, ready: &Ready) -> Result<()> {
        let Ready { url, stops_within } = ready;
        self.write(&format!("{}\n{url}\n{}\n", std::process::id(), stops_within.as_secs()))
    }

    /// What a pid file says, if it is whole; who holds it is another question.
    pub(crate) fn read(path: &Path) -> Option<Station> {
        let text = fs::read_to_string(path).ok()?;
        // The last line is written last.
        let mut lines = text.strip_suffix('\n')?.lines();
        let process = lines.next()?.parse().ok()?;
        let ready = match (lines.next(), lines.next()) {
            (Some(url), Some(seconds)) => {
                Some(Ready { url: url.to_owned(), stops_within: Duration::from_secs(seconds.parse().ok()?) })
            }
            _ => None,
        };
        Some(Station { process, ready })
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let written = self.file.rewind().and_then(|()| self.file.write_all(text.as_bytes()));
        written.map_err(|error| unusable(&self.path, &error))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Before the lock goes with the file, so that nobody finds a stale one.
        remove(&self.path);
    }
}

/// The folder of a configuration that keeps state on this machine.
fn state_folder(persistence: &Persistence) -> Option<&Path> {
    match persistence {
        Persistence::Memory => None,
        Persistence::File { directory }
        | Persistence::Redis { directory, .. }
        | Persistence::Postgres { directory, .. } => Some(directory),
    }
}

/// A folder of this user and this configuration file, for a node without a state folder.
fn private_folder(config: &Path) -> Result<PathBuf> {
    let config = config
        .canonicalize()
        .map_err(|error| Error::invalid(format!("`{}` cannot be found: {error}", config.display())))?;
    let user = rustix::process::getuid().as_raw();
    let folder = std::env::temp_dir().join(format!("twinkle-{user}"));
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(unusable(&folder, &error)),
        _ => Ok(()),
    }?;
    // The temporary folder belongs to everybody: this name may be somebody else's trap.
    let found = fs::symlink_metadata(&folder).map_err(|error| unusable(&folder, &error))?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        let shown = folder.display();
        return Err(Error::invalid(format!("`{shown}` is not a folder of this user alone"))
            .hint("remove it, or set `TMPDIR` to a folder of yours"));
    }
    let digest = hex::encode(Sha256::digest(config.as_os_str().as_encoded_bytes()));
    Ok(folder.join(&digest[..16]))
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "a pid file could not be removed");
    }
}

fn already_running(station: &Station) -> Error {
    let process = station.process;
    let place = station.ready.as_ref().map_or(String::new(), |ready| format!(" on {}", ready.url));
    Error::new(ErrorCode::Conflict, format!("a node of this configuration already runs{place}: process {process}"))
        .hint("stop it with `twinkle-server stop --config FILE`, or give this one another `persistence.file_path`")
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    Error::invalid(format!("`{}` cannot be used: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> RunFiles {
        RunFiles { pid: folder.join("state").join(PID_FILE), log: folder.join("state").join(LOG_FILE) }
    }

    fn ready() -> Ready {
        Ready { url: "http://127.0.0.1:8000".to_owned(), stops_within: Duration::from_secs(50) }
    }

    #[test]
    fn a_node_is_found_while_it_runs_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        assert_eq!(files.find().unwrap(), Found::Nothing);
        let mut taken = PidFile::take(&files).unwrap();
        let process = std::process::id();
        assert_eq!(files.find().unwrap(), Found::Running(Station { process, ready: None }));
        taken.ready(&ready()).unwrap();
        assert_eq!(files.find().unwrap(), Found::Running(Station { process, ready: Some(ready()) }));
        assert!(files.is_taken_by(process).unwrap() && !files.is_taken_by(process + 1).unwrap());
        drop(taken);
        assert_eq!(files.find().unwrap(), Found::Nothing);
        assert!(!files.pid.exists());
    }

    #[test]
    fn a_second_node_hears_where_the_first_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let mut taken = PidFile::take(&files).unwrap();
        taken.ready(&ready()).unwrap();
        let process = std::process::id();
        let expected = format!("a node of this configuration already runs on http://127.0.0.1:8000: process {process}");
        assert_eq!(PidFile::take(&files).unwrap_err().message, expected);
        assert_eq!(files.refuse_second().unwrap_err().message, expected);
    }

    #[test]
    fn a_file_nobody_holds_is_stale_whoever_has_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        files.make_folder().unwrap();
        fs::write(&files.pid, format!("{}\n", std::process::id())).unwrap();
        assert_eq!(files.find().unwrap(), Found::Stale(std::process::id()));
        assert!(!files.pid.exists());
        PidFile::take(&files).unwrap();
    }

    #[test]
    fn a_file_of_nonsense_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        files.make_folder().unwrap();
        fs::write(&files.pid, "not a number\n").unwrap();
        assert_eq!(files.find().unwrap(), Found::Nothing);
        PidFile::take(&files).unwrap();
    }

    #[test]
    fn half_a_line_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PID_FILE);
        for (text, expected) in [("", None), ("12", None), ("12\n", Some(12)), ("12\nhttp://a\n4", None)] {
            fs::write(&path, text).unwrap();
            assert_eq!(PidFile::read(&path).map(|station| station.process), expected, "{text:?}");
        }
    }

    #[test]
    fn two_configurations_without_a_state_folder_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let yaml = "persistence: {mode: memory}\napplications: []\n";
        let mut pids = Vec::new();
        for name in ["a.yaml", "b.yaml", "a.yaml"] {
            let path = folder.path().join(name);
            fs::write(&path, yaml).unwrap();
            let config = ServerConfig::load(&path).unwrap();
            pids.push(RunFiles::of(&config, &path).unwrap().pid);
        }
        assert_eq!(pids[0], pids[2]);
        assert_ne!(pids[0], pids[1]);
        assert!(pids[0].starts_with(std::env::temp_dir()));
    }
}
