//! Where the keys of a configuration are, and keeping a ring like them while the node runs.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};
use twinkle_core::config::{AuthConfig, Persistence, ServerConfig};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::state::{ApiKeyRecord, StateStore};

use super::file::{KeyFile, Stamp};
use super::ring::KeyRing;
use crate::node::Authentication;

/// How often a source is looked at: a revoked key works at most this much longer.
const EVERY: Duration = Duration::from_secs(2);

/// How to make the first key.
const MAKE_ONE: &str = "make one with `twinkle-server keys create -c FILE`";

/// Where keys are.
#[derive(Clone, Debug)]
pub(crate) enum KeySource {
    /// In a file of their own.
    File(KeyFile),
    /// In the node's store.
    Store(StateStore),
}

/// Which credentials a node of this configuration accepts. With keys, also the task that keeps them up to date.
pub(crate) async fn authentication(
    config: &ServerConfig,
    store: &StateStore,
) -> Result<(Authentication, Option<impl Future<Output = ()> + Send + use<>>)> {
    if !config.auth.is_required() {
        return Ok((Authentication::Open, None));
    }
    let source = KeySource::of(config, async || Ok(store.clone())).await?;
    if let KeySource::File(file) = &source {
        let path = file.path().display();
        if !file.path().exists() {
            return Err(Error::invalid(format!("the keys file `{path}` is not there")).hint(MAKE_ONE));
        }
        if file.is_shared() {
            warn!("others than its owner may use the keys file `{path}`: set its permissions to 0600");
        }
    }
    let watch = Watch::start(source).await?;
    let ring = watch.ring.clone();
    info!(keys = ring.len(), "every request needs an API key");
    if ring.is_empty() {
        warn!("there is no API key yet, so every request is refused: {MAKE_ONE}");
    }
    Ok((Authentication::Keys(ring), Some(watch.run())))
}

impl KeySource {
    /// Where a configuration keeps its keys; `store` opens its store.
    pub(crate) async fn of(config: &ServerConfig, store: impl AsyncFnOnce() -> Result<StateStore>) -> Result<Self> {
        let AuthConfig { keys_file, store: in_store } = &config.auth;
        match (keys_file, in_store) {
            (Some(path), false) => Ok(Self::File(KeyFile::new(path))),
            (None, true) if config.persistence == Persistence::Memory => {
                Err(Error::unsupported("`auth.store` with `persistence.mode: memory` would forget every key")
                    .hint("keep the keys in a file: set `auth.keys_file`"))
            }
            (None, true) => Ok(Self::Store(store().await?)),
            (Some(_), true) => Err(Error::invalid("`auth.keys_file` and `auth.store` are both set")
                .hint("keep all keys in one place: take one of them away")),
            (None, false) => Err(Error::invalid("this configuration does not say where API keys are")
                .hint("add `auth: {keys_file: keys.txt}`; from then on every request needs a key")),
        }
    }

    /// Every key that is there now.
    pub(crate) async fn read(&self) -> Result<Vec<ApiKeyRecord>> {
        match self {
            Self::File(file) => {
                let file = file.clone();
                off_runtime(move || file.read()).await
            }
            Self::Store(store) => store.api_keys().await,
        }
    }

    /// Adds a key; one with its prefix or name is a [`ErrorCode::Conflict`].
    pub(crate) async fn add(&self, key: &ApiKeyRecord) -> Result<()> {
        match self {
            Self::File(file) => {
                let (file, key) = (file.clone(), key.clone());
                off_runtime(move || file.add(&key)).await
            }
            Self::Store(store) => store.insert_api_key(key).await,
        }
    }

    /// Takes the key with this prefix away; `false` when there is none.
    pub(crate) async fn remove(&self, prefix: &str) -> Result<bool> {
        match self {
            Self::File(file) => {
                let (file, prefix) = (file.clone(), prefix.to_owned());
                off_runtime(move || file.remove(&prefix)).await
            }
            Self::Store(store) => store.delete_api_key(prefix).await,
        }
    }

    /// What tells one state of a file from the next; a store has to be asked.
    async fn stamp(&self) -> Result<Option<Stamp>> {
        match self {
            Self::File(file) => {
                let file = file.clone();
                off_runtime(move || Ok(file.stamp())).await
            }
            Self::Store(_) => Ok(None),
        }
    }
}

/// Keeps a ring like its source.
struct Watch {
    ring: KeyRing,
    source: KeySource,
    stamp: Option<Stamp>,
    keys: Vec<ApiKeyRecord>,
}

impl Watch {
    /// Reads the source; when it cannot be read that is an error, for the node has not started yet.
    async fn start(source: KeySource) -> Result<Self> {
        // The stamp first: a change in between is then seen as one.
        let stamp = source.stamp().await?;
        let keys = source.read().await?;
        Ok(Self { ring: KeyRing::new(&keys), source, stamp, keys })
    }

    async fn run(mut self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.look().await {
                Ok(()) => {}
                Err(error) if error.code == ErrorCode::Draining => return,
                // Whoever is editing the file will finish; locking every tenant out meanwhile helps nobody.
                Err(error) => warn!(%error, "the API keys could not be read again: those known so far stay valid"),
            }
        }
    }

    /// Takes over what has changed.
    async fn look(&mut self) -> Result<()> {
        let stamp = self.source.stamp().await?;
        if matches!(self.source, KeySource::File(_)) && stamp == self.stamp {
            return Ok(());
        }
        // Also when it cannot be read: the same complaint every two seconds would fill the log.
        self.stamp = stamp;
        let keys = self.source.read().await?;
        if keys != self.keys {
            self.ring.replace(&keys);
            self.keys = keys;
            info!(keys = self.ring.len(), "the API keys have changed");
        }
        Ok(())
    }
}

/// Files are not read on the async runtime.
async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("reading the API keys failed: {error}")))?
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;
    use twinkle_core::ids::TenantId;

    use super::super::key::ApiKey;
    use super::*;

    /// A configuration that keeps its state in memory.
    fn config(keys_file: Option<&str>, store: bool) -> ServerConfig {
        let yaml = "
persistence: {mode: memory}
applications: [{name: server, route_prefix: /api/v1, import_path: server}]
";
        let mut config = ServerConfig::parse("node.yaml", yaml).unwrap();
        config.auth = AuthConfig { keys_file: keys_file.map(Into::into), store };
        config
    }

    #[tokio::test]
    async fn keys_that_cannot_be_kept_or_found_are_refused_at_the_start() {
        let store = StateStore::open_in_memory().await.unwrap();
        let (open, watch) = authentication(&config(None, false), &store).await.unwrap();
        assert!(matches!(open, Authentication::Open) && watch.is_none());
        for (keys_file, in_store, expected) in [
            (Some("/nowhere/keys.txt"), false, "the keys file `/nowhere/keys.txt` is not there"),
            (None, true, "`auth.store` with `persistence.mode: memory` would forget every key"),
            (Some("keys.txt"), true, "`auth.keys_file` and `auth.store` are both set"),
        ] {
            let refusal = authentication(&config(keys_file, in_store), &store).await.err().unwrap();
            assert_eq!(refusal.message, expected);
        }
    }

    #[tokio::test]
    async fn a_change_of_the_file_changes_the_ring_and_damage_does_not() {
        let folder = TempDir::new().unwrap();
        let file = KeyFile::new(&folder.path().join("keys.txt"));
        let (alice, bob) = (ApiKey::fresh(), ApiKey::fresh());
        let record = alice.record(Some("alice"), None);
        file.add(&record).unwrap();
        let mut watch = Watch::start(KeySource::File(file.clone())).await.unwrap();
        let ring = watch.ring.clone();
        assert_eq!(ring.tenant_of(alice.reveal()), Some(TenantId::new("alice")));

        file.add(&bob.record(Some("bob"), None)).unwrap();
        watch.look().await.unwrap();
        assert_eq!(ring.tenant_of(bob.reveal()), Some(TenantId::new("bob")));
        file.remove(&record.prefix).unwrap();
        watch.look().await.unwrap();
        assert_eq!(ring.tenant_of(alice.reveal()), None);

        fs::write(file.path(), "half a li").unwrap();
        assert!(watch.look().await.is_err());
        assert!(ring.tenant_of(bob.reveal()).is_some(), "a damaged file locked a tenant out");
        fs::remove_file(file.path()).unwrap();
        watch.look().await.unwrap();
        assert!(ring.is_empty());
    }

    #[tokio::test]
    async fn keys_of_the_store_are_followed_too() {
        let store = StateStore::open_in_memory().await.unwrap();
        let mut watch = Watch::start(KeySource::Store(store.clone())).await.unwrap();
        let ring = watch.ring.clone();
        let alice = ApiKey::fresh();
        let record = alice.record(Some("alice"), None);
        store.insert_api_key(&record).await.unwrap();
        watch.look().await.unwrap();
        assert_eq!(ring.tenant_of(alice.reveal()), Some(TenantId::new("alice")));
        store.delete_api_key(&record.prefix).await.unwrap();
        watch.look().await.unwrap();
        assert!(ring.is_empty());
    }
}
