//! `persistence`: where the node's state is kept.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::choices::choices;
use super::section::Section;

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
    /// In a Redis server.
    Redis {
        /// Where it listens.
        url: String,
        /// Put before every key.
        key_prefix: String,
    },
}

impl Default for Persistence {
    /// A file: an operation is durable before it is acknowledged, also in a deployment that says nothing about it.
    fn default() -> Self {
        Self::File { directory: PathBuf::from("twinkle-state") }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Memory,
    File,
    Redis,
}
choices!(Mode { Memory = "memory", File = "file", Redis = "redis" });

impl Persistence {
    pub(super) fn read(section: Option<Section<'_>>) -> Self {
        let Some(mut section) = section else { return Self::default() };
        let place = section.place();
        let mode = section.choice::<Mode>("mode");
        let file_path = section.text("file_path");
        let redis_url = section.text("redis_url");
        let key_prefix = section.text("key_prefix");
        let report = section.report();
        section.finish();

        match mode.as_ref().map(|mode| mode.value) {
            Some(Mode::Memory) => Self::Memory,
            Some(Mode::Redis) => {
                let url = redis_url.map(|url| url.value).unwrap_or_default();
                if url.is_empty() {
                    report.problem(place, "`redis_url` is missing in `persistence`: `mode: redis` needs it");
                }
                report.unavailable(place, "`persistence` with `mode: redis`");
                Self::Redis { url, key_prefix: key_prefix.map(|prefix| prefix.value).unwrap_or_default() }
            }
            Some(Mode::File) | None => {
                if let Some(path) = file_path.filter(|path| !path.value.is_empty()) {
                    return Self::File { directory: state_directory(Path::new(&path.value)) };
                }
                if mode.is_some() {
                    report.problem(place, "`file_path` is missing in `persistence`: `mode: file` needs it");
                }
                Self::default()
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
