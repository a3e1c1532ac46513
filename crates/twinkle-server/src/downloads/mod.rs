//! Downloads by links that carry their own permission.
//!
//! A link names a checkpoint and a file of it and is signed with a key that only this node knows. Whoever has it may
//! fetch that file until the link expires, without an API key: programs that download files have none to send.
//! The signature is checked before anything is looked up.

mod answer;
mod archive;
mod content;
mod key;
mod link;

use std::sync::Arc;

use http::HeaderMap;
use tokio::sync::Semaphore;
use twinkle_core::call::CheckpointRecord;
use twinkle_core::checkpoint::{CheckpointStore, Manifest};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::state::StateStore;

use answer::respond;
use content::Content;
pub(crate) use key::SigningKey;
pub(crate) use link::{Base, ExpiringUrl, Link, LinkQuery, is_link};

/// Downloads at the same time; each holds a file open.
const MOST_DOWNLOADS: usize = 1_024;

/// Signs links and opens what they name; a cheap handle.
#[derive(Clone)]
pub struct Downloads {
    key: Arc<SigningKey>,
    store: StateStore,
    files: CheckpointStore,
    is_tls: bool,
    places: Arc<Semaphore>,
}

impl Downloads {
    /// Downloads of these checkpoints; `is_tls` says how clients reach this node when no proxy says otherwise.
    pub(crate) fn new(key: SigningKey, store: StateStore, files: CheckpointStore, is_tls: bool) -> Self {
        Self { key: Arc::new(key), store, files, is_tls, places: Arc::new(Semaphore::new(MOST_DOWNLOADS)) }
    }

    /// Whether this node speaks TLS.
    pub(crate) const fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Names of the files of a checkpoint.
    ///
    /// Errors: its files are not there, or its manifest is damaged.
    pub(crate) async fn names(&self, record: &CheckpointRecord) -> Result<Vec<String>> {
        let manifest = self.manifest(record).await?.1;
        Ok(manifest.files.into_keys().collect())
    }

    /// A link to `file` of a checkpoint, from now on.
    pub(crate) fn link(&self, base: &Base, record: &CheckpointRecord, file: &str) -> ExpiringUrl {
        Link::new(record, file).sign(&self.key, base)
    }

    /// What a link names.
    ///
    /// Errors: `NotFound` when the link is not one of this node's or its checkpoint is no more, `Gone` when it has
    /// expired, `Overloaded` when too many download.
    pub(crate) async fn open(&self, link: &Link, query: &LinkQuery) -> Result<Content> {
        link.verify(&self.key, query)?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Error::new(ErrorCode::Overloaded, format!("{MOST_DOWNLOADS} downloads are under way"))
                .retry_after(std::time::Duration::from_secs(5))
        })?;
        let record = self.store.checkpoint_of_anyone(&link.path).await?;
        if !link.is_of(&record) {
            // Another checkpoint has taken the name since the link was made.
            return Err(Error::new(ErrorCode::Gone, format!("checkpoint `{}` was replaced", link.path))
                .hint("ask for a new link"));
        }
        let (directory, manifest) = self.manifest(&record).await?;
        let opened = if link.file == archive::NAME {
            archive::open(&directory, &manifest).await?
        } else {
            content::open(&directory, &manifest, &link.file).await?
        };
        Ok(opened.holding(place))
    }

    async fn manifest(&self, record: &CheckpointRecord) -> Result<(std::path::PathBuf, Manifest)> {
        let (files, tenant, path) = (self.files.clone(), record.tenant.clone(), record.path.clone());
        let looked = tokio::task::spawn_blocking(move || files.look(&tenant, &path)).await;
        let found = looked.map_err(|error| Error::internal(format!("reading a manifest failed: {error}")))??;
        Ok((found.directory().to_owned(), found.manifest().clone()))
    }
}

/// The file name of the archive of a checkpoint.
pub(crate) const ARCHIVE: &str = archive::NAME;

/// Answers a request for a link, in whole or in part as its headers ask.
pub(crate) async fn answer(
    downloads: &Downloads,
    link: &Link,
    query: &LinkQuery,
    headers: &HeaderMap,
) -> Result<axum::response::Response> {
    let content = downloads.open(link, query).await?;
    respond(content, headers).await
}

#[cfg(test)]
mod tests;
