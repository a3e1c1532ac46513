//! Finds the adapter a request names: none, a live one, or one saved on disk.
//!
//! Saved ones are verified and loaded off the engine thread and the async runtime, one at a time, and kept in a small
//! cache. A running sequence keeps the version it started with alive, whatever happens here.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use twinkle_core::call::{SamplingSource, WeightVersion};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::ids::{CheckpointPath, SamplingSessionId, TenantId};
use twinkle_core::{Error, Result};
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, Publication, Published, PublishedAdapters, peft};

/// Saved adapters kept in memory.
const MOST_CACHED: usize = 32;
/// Memory they may take together; the newest stays even if it is larger.
const MOST_CACHED_BYTES: usize = 1 << 30;
/// Tells whether a checkpoint was replaced: written last, renamed into place.
const MANIFEST: &str = "manifest.json";

/// The adapters of one sampler. A cheap handle.
#[derive(Clone)]
pub struct Adapters(Arc<Inner>);

struct Inner {
    base: Arc<BaseModel>,
    published: PublishedAdapters,
    checkpoints: CheckpointStore,
    limits: AdapterLimits,
    /// Most recently used first.
    cache: Mutex<VecDeque<Cached>>,
    /// One load at a time: a burst of requests for a new checkpoint reads it once.
    loading: tokio::sync::Mutex<()>,
}

/// Which adapters may be sampled.
#[derive(Clone, Debug)]
pub struct AdapterLimits {
    /// The public name of the base model they were trained on.
    pub base_model: String,
    /// Whether any may.
    pub enabled: bool,
    /// Largest rank.
    pub max_rank: u32,
}

/// What a request reads: the base model, and perhaps an adapter on it.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// `None` for the base model alone.
    pub adapter: Option<Arc<Adapter>>,
    /// Which they are.
    pub version: WeightVersion,
}

impl Weights {
    /// An adapter that this operation of its run saved or published.
    fn of(adapter: Arc<Adapter>, operation: Option<u64>, optimizer_steps: Option<u64>) -> Self {
        let hash = hex::encode(&adapter.content_hash()[..8]);
        let version = WeightVersion { adapter: Some(hash), operation, optimizer_steps };
        Self { adapter: Some(adapter), version }
    }
}

#[derive(Clone)]
struct Cached {
    tenant: TenantId,
    path: CheckpointPath,
    directory: PathBuf,
    stamp: Stamp,
    bytes: usize,
    /// The operation that saved it.
    operation: u64,
    /// How many optimizer steps its run had taken; an earlier version did not write it down.
    optimizer_steps: Option<u64>,
    adapter: Arc<Adapter>,
}

/// When and how long the manifest was written; a replaced checkpoint has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(SystemTime, u64);

impl Stamp {
    fn of(directory: &Path) -> Option<Self> {
        let manifest = fs::metadata(directory.join(MANIFEST)).ok()?;
        Some(Self(manifest.modified().ok()?, manifest.len()))
    }
}

impl Adapters {
    /// The adapters of `base`: those in `published` and those in `checkpoints`.
    #[must_use]
    pub fn new(
        base: Arc<BaseModel>,
        published: PublishedAdapters,
        checkpoints: CheckpointStore,
        limits: AdapterLimits,
    ) -> Self {
        let (cache, loading) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { base, published, checkpoints, limits, cache, loading }))
    }

    /// The weights of `source` as they are now.
    ///
    /// # Errors
    /// `NotFound` when it is not there or not the tenant's, `InvalidArgument` when it is damaged or does not fit,
    /// `Unsupported` when this sampler serves no adapters.
    pub async fn resolve(&self, tenant: &TenantId, source: &SamplingSource) -> Result<Weights> {
        let weights = match source {
            SamplingSource::Base => return Ok(Weights::default()),
            _ if !self.0.limits.enabled => {
                return Err(Error::unsupported("this sampler serves the base model only")
                    .hint("set `engine_args.enable_lora: true`"));
            }
            SamplingSource::Live(session) => self.live(session).await?,
            SamplingSource::Checkpoint(path) => self.load(tenant, path).await?,
            SamplingSource::Shared { owner, path } => self.load(owner, path).await?,
        };
        let rank = weights.adapter.as_ref().map_or(0, |adapter| adapter.layout().spec().rank);
        if rank > self.0.limits.max_rank {
            let most = self.0.limits.max_rank;
            return Err(Error::invalid(format!("the adapter has rank {rank}, this sampler serves up to {most}"))
                .hint("raise `engine_args.max_lora_rank`"));
        }
        Ok(weights)
    }

    /// A live adapter: usually in memory, else read back from where the trainer saved it.
    async fn live(&self, session: &SamplingSessionId) -> Result<Weights> {
        let weights = |live: Published| {
            // One that an earlier version of this program saved does not tell which it is.
            let known = Some(live.publication).filter(|publication| *publication != Publication::default());
            let operation = known.map(|publication| publication.position.after);
            Weights::of(live.adapter, operation, known.map(|publication| publication.optimizer_steps))
        };
        if let Some(live) = self.0.published.get(session) {
            return Ok(weights(live));
        }
        let _turn = self.0.loading.lock().await;
        let (inner, session) = (Arc::clone(&self.0), session.clone());
        spawn_blocking(move || {
            let base = &inner.base;
            inner.published.get_or_load(&session, base.config(), base.kind(), base.device())
        })
        .await
        .map_err(|_| Error::internal("loading an adapter was interrupted"))?
        .map(weights)
    }

    async fn load(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<Weights> {
        if let Some(weights) = self.cached(tenant, path) {
            return Ok(weights);
        }
        let _turn = self.0.loading.lock().await;
        if let Some(weights) = self.cached(tenant, path) {
            return Ok(weights);
        }
        let (inner, tenant, path) = (Arc::clone(&self.0), tenant.clone(), path.clone());
        let loaded = spawn_blocking(move || inner.read(tenant, path))
            .await
            .map_err(|_| Error::internal("loading an adapter was interrupted"))??;
        let weights = loaded.weights();
        self.keep(loaded);
        Ok(weights)
    }

    /// A cached adapter whose checkpoint is still there, unchanged.
    fn cached(&self, tenant: &TenantId, path: &CheckpointPath) -> Option<Weights> {
        let mut cache = self.0.cache.lock();
        let place = cache.iter().position(|cached| cached.tenant == *tenant && cached.path == *path)?;
        let cached = cache.remove(place)?;
        if Stamp::of(&cached.directory) != Some(cached.stamp) {
            return None;
        }
        let weights = cached.weights();
        cache.push_front(cached);
        Some(weights)
    }

    fn keep(&self, mut loaded: Cached) {
        let mut cache = self.0.cache.lock();
        // The same weights under two names are held once.
        if let Some(twin) = cache.iter().find(|cached| cached.adapter.content_hash() == loaded.adapter.content_hash())
            && twin.adapter.layout().spec() == loaded.adapter.layout().spec()
        {
            loaded.adapter = Arc::clone(&twin.adapter);
        }
        cache.push_front(loaded);
        while cache.len() > MOST_CACHED
            || (cache.len() > 1 && cache.iter().map(|cached| cached.bytes).sum::<usize>() > MOST_CACHED_BYTES)
        {
            cache.pop_back();
        }
    }
}

impl Cached {
    fn weights(&self) -> Weights {
        Weights::of(Arc::clone(&self.adapter), Some(self.operation), self.optimizer_steps)
    }
}

impl Inner {
    fn read(&self, tenant: TenantId, path: CheckpointPath) -> Result<Cached> {
        let checkpoint = self.checkpoints.open(&tenant, &path)?;
        let trained_on = &checkpoint.manifest().base_model;
        if *trained_on != self.limits.base_model {
            return Err(Error::invalid(format!(
                "`{path}` belongs to base model `{trained_on}`, not to `{}`",
                self.limits.base_model
            )));
        }
        let (operation, optimizer_steps) =
            (checkpoint.manifest().position.after, checkpoint.manifest().optimizer_steps);
        let directory = checkpoint.directory().to_owned();
        let stamp =
            Stamp::of(&directory).ok_or_else(|| Error::not_found(format!("there is no checkpoint `{path}`")))?;
        let (spec, parameters) = peft::read(&directory, self.base.config())?;
        let layout = Arc::new(AdapterLayout::new(self.base.config(), &spec)?);
        let adapter = Adapter::from_parameters(&layout, &parameters, self.base.kind(), self.base.device());
        let bytes = layout.parameter_count() * self.base.kind().elt_size_in_bytes();
        tracing::debug!(%tenant, %path, rank = spec.rank, bytes, "adapter loaded");
        let adapter = Arc::new(adapter);
        Ok(Cached { tenant, path, directory, stamp, bytes, operation, optimizer_steps, adapter })
    }
}
