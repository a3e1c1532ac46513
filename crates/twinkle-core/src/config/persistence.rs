//! `persistence`: where the node's state is kept.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::choices::{Choices, choices};
use super::diagnostic::Report;
use super::section::{Located, Section};
use super::tree::Place;
use crate::error::suggestion;

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
        #[serde(serialize_with = "without_password")]
        url: String,
        /// Put before every key.
        key_prefix: String,
        /// The folder of snapshots and checkpoints; made when absent.
        directory: PathBuf,
    },
    /// The records in a `PostgreSQL` database.
    Postgres {
        /// Where it listens, with user and database.
        #[serde(serialize_with = "without_password")]
        url: String,
        /// Sets several nodes apart in one database.
        key_prefix: String,
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
    /// Reads the section; what it leaves out is looked for in `TWINKLE_PERSISTENCE_*`.
    ///
    /// The file wins: with a section in the file, the environment does not choose the mode.
    pub(super) fn read(
        section: Option<Section<'_>>,
        environment: &dyn Fn(&str) -> Option<String>,
        report: &Report,
    ) -> Self {
        let mut place = Place::default();
        let mut mode = None;
        let mut settings = Settings::default();
        if let Some(mut section) = section {
            place = section.place();
            mode = section.choice::<Mode>("mode");
            settings = Settings::read(&mut section);
            Settings::note_unused(&mut section, mode.as_ref().map(|mode| mode.value));
            section.finish();
        } else if let Some(word) = environment(&variable("mode")).filter(|word| !word.is_empty()) {
            mode = Mode::of(&word).map(|value| Located { value, place });
            if mode.is_none() {
                let message = format!("unknown mode `{word}` in the environment variable `{}`", variable("mode"));
                report.problem_with_hint(place, message, suggestion(&word, "values", Mode::WORDS));
            }
        }
        let Settings { file_path, redis_url, postgres_url, key_prefix } = settings.or(environment);

        let needed = |key: &str, mode: &str, value: Option<String>| {
            value.unwrap_or_else(|| {
                let message = format!("`persistence.{key}` is required when `persistence.mode` is `{mode}`");
                report.problem(place, message);
                String::new()
            })
        };
        let directory = file_path.as_deref().map(|path| state_directory(Path::new(path)));
        let lasting = directory.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DIRECTORY));
        match mode.map(|mode| mode.value) {
            Some(Mode::Memory) => Self::Memory,
            Some(Mode::Redis) => Self::Redis {
                url: needed("redis_url", "redis", redis_url),
                key_prefix: key_prefix.unwrap_or_default(),
                directory: lasting,
            },
            Some(Mode::Postgres) => Self::Postgres {
                url: needed("postgres_url", "postgres", postgres_url),
                key_prefix: key_prefix.unwrap_or_default(),
                directory: lasting,
            },
            Some(Mode::File) if directory.is_none() => {
                needed("file_path", "file", None);
                Self::default()
            }
            Some(Mode::File) | None => Self::File { directory: lasting },
        }
    }
}

/// What the modes need, each from the file or from the environment.
#[derive(Default)]
struct Settings {
    file_path: Option<String>,
    redis_url: Option<String>,
    postgres_url: Option<String>,
    key_prefix: Option<String>,
}

impl Settings {
    fn read(section: &mut Section<'_>) -> Self {
        let mut text = |key| section.text(key).map(|text| text.value).filter(|text| !text.is_empty());
        Self {
            file_path: text("file_path"),
            redis_url: text("redis_url"),
            postgres_url: text("postgres_url"),
            key_prefix: text("key_prefix"),
        }
    }

    /// Lists what another mode would use.
    fn note_unused(section: &mut Section<'_>, mode: Option<Mode>) {
        const ANOTHER_MODE: &str = "another `mode` uses it";
        if mode == Some(Mode::Memory) {
            section.inert("file_path", ANOTHER_MODE);
        }
        if mode != Some(Mode::Redis) {
            section.inert("redis_url", ANOTHER_MODE);
        }
        if !matches!(mode, Some(Mode::Redis | Mode::Postgres)) {
            section.inert("key_prefix", ANOTHER_MODE);
        }
        if mode != Some(Mode::Postgres) {
            section.inert("postgres_url", ANOTHER_MODE);
        }
    }

    /// Fills what is absent from the environment.
    fn or(self, environment: &dyn Fn(&str) -> Option<String>) -> Self {
        let given = |key| environment(&variable(key)).filter(|text| !text.is_empty());
        Self {
            file_path: self.file_path.or_else(|| given("file_path")),
            redis_url: self.redis_url.or_else(|| given("redis_url")),
            postgres_url: self.postgres_url.or_else(|| given("postgres_url")),
            key_prefix: self.key_prefix.or_else(|| given("key_prefix")),
        }
    }
}

/// The environment variable of a key of `persistence`.
fn variable(key: &str) -> String {
    format!("TWINKLE_PERSISTENCE_{}", key.to_uppercase())
}

/// A URL as it may be printed: `redis://user:***@host`.
fn without_password<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let hidden = url.split_once("://").and_then(|(scheme, rest)| {
        let (credentials, host) = rest.rsplit_once('@')?;
        let (user, _) = credentials.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{host}"))
    });
    serializer.serialize_str(hidden.as_deref().unwrap_or(url))
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
