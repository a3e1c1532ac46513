//! Opening and closing a store of every kind.

use std::path::{Path, PathBuf};

use super::StateStore;
use super::backend::Backend;
use super::postgres::Postgres;
use super::redis::Redis;
use super::sqlite::Sqlite;
use super::writer::WriterHandle;
use crate::error::Result;

/// Where a store keeps its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateLocation {
    /// Nowhere: they go with the last handle.
    Memory,
    /// In a file of this machine.
    File(PathBuf),
    /// In a schema of a `PostgreSQL` database.
    Postgres {
        /// `postgres://user:password@host:port/database`.
        url: String,
        /// Names the schema; empty for the default one.
        key_prefix: String,
    },
    /// In a Redis server.
    Redis {
        /// `redis://user:password@host:port/number`.
        url: String,
        /// Put before every key.
        key_prefix: String,
    },
}

impl From<&Path> for StateLocation {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<&PathBuf> for StateLocation {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl StateStore {
    /// Opens the store at `location`, making it when it is missing.
    ///
    /// Refuses one that another server has open, that belongs to another program, that was written by a newer
    /// version, or that is damaged.
    pub async fn open(location: impl Into<StateLocation>) -> Result<Self> {
        match location.into() {
            StateLocation::Memory => Self::open_in_memory().await,
            StateLocation::File(path) => {
                let (sqlite, readers) = Sqlite::open(&path).await?;
                Ok(Self { writer: WriterHandle::spawn(Backend::Sqlite(sqlite)), readers })
            }
            StateLocation::Postgres { url, key_prefix } => {
                let (postgres, readers) = Postgres::open(&url, &key_prefix).await?;
                Ok(Self { writer: WriterHandle::spawn(Backend::Postgres(Box::new(postgres))), readers })
            }
            StateLocation::Redis { url, key_prefix } => {
                let (redis, readers) = Redis::open(&url, &key_prefix).await?;
                Ok(Self { writer: WriterHandle::spawn(Backend::Redis(Box::new(redis))), readers })
            }
        }
    }

    /// A store that is forgotten at the end: it lives in a private temporary folder, which goes with its last
    /// handle, and is never synced.
    pub async fn open_in_memory() -> Result<Self> {
        let (sqlite, readers) = Sqlite::open_temporary().await?;
        Ok(Self { writer: WriterHandle::spawn(Backend::Sqlite(sqlite)), readers })
    }

    /// Commits what is waiting and releases the store, so that it can be opened again.
    ///
    /// Every handle on this store answers an error afterwards.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
