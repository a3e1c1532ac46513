//! `persistence`: where the node's state is kept.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::choices::choices;
use super::section::{Located, Section};

/// Where the node's files are when the operator does not say.
const DEFAULT_DIRECTORY: &str = "twinkle-state";

/// Where the node's state is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub enum Persistence {
    /// Nowhere: it is gone when the node stops.
    Memory,
    /// In a folder of this machine.
    File {
        /// The folder; made when absent.
        directory: PathBuf,
    },
    /// The records in a Redis server.
    Redis {
        /// Where it listens.
        url: String,
        /// Put before every key.
        key_prefix: String,
        /// The folder of snapshots and checkpoints; made when absent.
        directory: PathBuf,
    },
    /// The records in a PostgreSQL database.
    Postgres {
        /// Where it listens, with user and database.
        url: String,
        /// The folder of snapshots and checkpoints; made when absent.
        directory: PathBuf,
    },
}

impl Default for Persistence {
    /// A file: an operation is durable before it is acknowledged, also in a deployment that says nothing about it.
    fn default() -> Self {
        Self::File { directory: PathBuf::from(DEFAULT_DIRECTORY) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Memory,
    File,
    Redis,
    Postgres,
}
choices!(Mode { Memory = "memory", File = "file", Redis = "redis", Postgres = "postgres" });

impl Persistence {
    pub(super) fn read(section: Option<Section<'_>>) -> Self {
        let Some(mut section) = section else { return Self::default() };
        let place = section.place();
        let mode = section.choice::<Mode>("mode");
        let file_path = section.text("file_path").filter(|path| !path.value.is_empty());
        let redis_url = section.text("redis_url");
        let postgres_url = section.text("postgres_url");
        let key_prefix = section.text("key_prefix");
        let report = section.report();
        section.finish();

        let needed = |key: &str, mode: &str, url: Option<Located<String>>| {
            let url = url.map(|url| url.value).unwrap_or_default();
            if url.is_empty() {
                let message = format!("`persistence.{key}` is required when `persistence.mode` is `{mode}`");
                report.problem(place, message);
            }
            url
        };
        let directory = file_path.as_ref().map(|path| state_directory(Path::new(&path.value)));
        let has_directory = directory.is_some();
        let directory = directory.unwrap_or_else(|| PathBuf::from(DEFAULT_DIRECTORY));
        match mode.as_ref().map(|mode| mode.value) {
            Some(Mode::Memory) => Self::Memory,
            Some(Mode::Redis) => {
                let key_prefix = key_prefix.map(|prefix| prefix.value).unwrap_or_default();
                Self::Redis { url: needed("redis_url", "redis", redis_url), key_prefix, directory }
            }
            Some(Mode::Postgres) => Self::Postgres { url: needed("postgres_url", "postgres", postgres_url), directory },
            Some(Mode::File) | None => {
                if mode.is_some() && !has_directory {
                    needed("file_path", "file", None);
                }
                Self::File { directory }
            }
        }
    }
}

/// The folder of a path that names a folder, or a file of an earlier generation such as `state.json`.
fn state_directory(path: &Path) -> PathBuf {
    let is_file =
        path.extension().is_some_and(|extension| ["sqlite", "db", "json"].iter().any(|known| extension == *known));
    if !is_file {
        return path.to_owned();
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
