//! A sampler of one fixture model.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tch::Device;
use tempfile::TempDir;
use tower::Service;
use twinkle_core::Result;
use twinkle_core::call::{Call, Operation, Reply, SampleOutcome, SampleRequest, SamplingParams, SamplingSource, Stop};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{Component, Lifecycle};
use twinkle_core::config::{ApplicationArgs, SamplerArgs, ServerConfig};
use twinkle_core::ids::TenantId;
use twinkle_nn::{BaseModel, LoadOptions, Precision, PublishedAdapters};
use twinkle_sampler::memory::CacheBudget;
use twinkle_sampler::{SamplerComponent, SamplerContext};

/// For the caches of all sequences, where a test says nothing of them.
const CACHE_BYTES: u64 = 1 << 30;

pub(crate) const VARIANTS: [&str; 5] = ["llama3", "llama3_tied", "qwen2", "qwen2_untied", "qwen3"];

/// Models whose layers are not all alike: linear attention in the published layout and in the text model's own, experts,
/// and both. Their fixtures have one adapter.
pub(crate) const MIXED: [&str; 5] = ["qwen3_5", "qwen3_5_vl", "qwen3_moe", "qwen3_moe_mixed", "qwen3_5_moe"];

pub(crate) struct House {
    pub(crate) variant: String,
    pub(crate) base: Arc<BaseModel>,
    pub(crate) published: PublishedAdapters,
    pub(crate) checkpoints: CheckpointStore,
    pub(crate) sampler: SamplerComponent,
    folder: TempDir,
}

pub(crate) fn fixture(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures").join(variant)
}

impl House {
    pub(crate) async fn open(variant: &str) -> Self {
        Self::open_with(variant, "enable_lora: true").await
    }

    /// With these `engine_args`.
    pub(crate) async fn open_with(variant: &str, engine_args: &str) -> Self {
        let base = load(variant);
        let caches = CacheBudget::new(&base.cost(), CACHE_BYTES);
        Self::over(variant, engine_args, (base, caches), tempfile::tempdir().unwrap()).await
    }

    /// With so much for its caches.
    pub(crate) async fn open_within(variant: &str, caches: CacheBudget) -> Self {
        Self::over(variant, "enable_lora: true", (load(variant), caches), tempfile::tempdir().unwrap()).await
    }

    /// The same state folder with nothing in memory, as after a restart of the server.
    pub(crate) async fn restarted(self) -> Self {
        self.sampler.drain(Duration::from_secs(10)).await;
        let caches = CacheBudget::new(&self.base.cost(), CACHE_BYTES);
        Self::over(&self.variant, "enable_lora: true", (self.base, caches), self.folder).await
    }

    async fn over(
        variant: &str,
        engine_args: &str,
        (base, caches): (Arc<BaseModel>, CacheBudget),
        folder: TempDir,
    ) -> Self {
        let context = SamplerContext {
            base: Arc::clone(&base),
            published: PublishedAdapters::new(folder.path().join("live")),
            checkpoints: CheckpointStore::new(folder.path().join("checkpoints")),
            tokenizer: fixture(variant),
            caches,
        };
        let (published, checkpoints) = (context.published.clone(), context.checkpoints.clone());
        let sampler = SamplerComponent::build(arguments(variant, engine_args), context).await.unwrap();
        Self { variant: variant.to_owned(), base, published, checkpoints, sampler, folder }
    }

    pub(crate) fn state_folder(&self) -> &Path {
        self.folder.path()
    }

    /// The future of a request; dropping it aborts the request.
    pub(crate) fn ask(&self, request: SampleRequest) -> BoxFuture<'static, Result<SampleOutcome>> {
        self.ask_as("tenant", request)
    }

    pub(crate) fn ask_as(&self, tenant: &str, request: SampleRequest) -> BoxFuture<'static, Result<SampleOutcome>> {
        let call = Call { tenant: TenantId::new(tenant), operation: Operation::Sample(Box::new(request)) };
        let reply = self.sampler.clone().call(call);
        Box::pin(async {
            match reply.await? {
                Reply::Sample(outcome) => Ok(outcome),
                other => panic!("not the answer to a sample: {other:?}"),
            }
        })
    }
}

fn load(variant: &str) -> Arc<BaseModel> {
    let options = LoadOptions { precision: Precision::Float32, device: Device::Cpu, row_tile: 64 };
    Arc::new(BaseModel::load(&fixture(variant), &options).unwrap())
}

fn arguments(variant: &str, engine_args: &str) -> SamplerArgs {
    let text = format!(
        "applications:\n\
         - name: server\n  route_prefix: /api/v1\n  import_path: server\n\
         - name: sampler\n  route_prefix: /api/v1/sampler/test/{variant}\n  import_path: sampler\n  args:\n\
         \x20   model_id: {}\n    engine_args: {{{engine_args}}}\n\
         \x20   device_group: {{name: sampler, ranks: 1, device_type: CPU}}\n",
        fixture(variant).display()
    );
    let config = ServerConfig::parse("test.yaml", &text).unwrap();
    let sampler = config.applications.into_iter().find_map(|application| match application.args {
        ApplicationArgs::Sampler(args) => Some(*args),
        _ => None,
    });
    sampler.unwrap()
}

/// Temperature 1, no truncation, sixteen tokens, no stop.
pub(crate) fn request(prompt: &[u32]) -> SampleRequest {
    let params = SamplingParams {
        max_tokens: Some(16),
        seed: Some(7),
        stop: Stop::Never,
        temperature: 1.0,
        top_k: None,
        top_p: 1.0,
    };
    SampleRequest::new(SamplingSource::Base, prompt.to_vec(), params)
}

pub(crate) fn greedy(prompt: &[u32]) -> SampleRequest {
    let mut request = request(prompt);
    request.params.temperature = 0.0;
    request
}

/// A prompt of this many tokens inside every fixture's vocabulary.
pub(crate) fn prompt(length: usize, start: u32) -> Vec<u32> {
    (0..length as u32).map(|index| (start + index * 37) % 290).collect()
}
