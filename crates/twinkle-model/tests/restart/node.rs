//! The node of these tests, and what its tenants send.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tch::Device;
use tower::Service;
use twinkle_core::Result;
use twinkle_core::call::{
    AdamParams, Call, CreateRun, ForwardBackwardOutcome, ForwardOptions, LoraSpec, LossSpec, Operation, Position,
    Reply, RunCall, RunOperation, RunOutcome, SessionRecord,
};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{BoxComponent, Component, Health, Lifecycle};
use twinkle_core::config::TrainMode;
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::engine::supervisor::RestartPolicy;
use twinkle_core::futures::{Futures, FuturesOptions, Outcome, Waited};
use twinkle_core::ids::{RequestId, RunId, SessionId, TenantId};
use twinkle_core::middleware::journal::{Journal, JournalOptions};
use twinkle_core::state::StateStore;
use twinkle_model::engine::EngineLimits;
use twinkle_model::memory::MemoryLimits;
use twinkle_model::{ModelComponent, ModelContext};
use twinkle_nn::{BaseModel, LoadOptions, Precision, PublishedAdapters};

use crate::faults::Faulty;

const MODEL: &str = "tiny/model";
pub(crate) const STEPS: u64 = 3;

/// A node of one model: store, journal, component and faulty backend.
pub(crate) struct Node {
    pub(crate) backend: Arc<Faulty>,
    pub(crate) component: ModelComponent,
    pub(crate) futures: Futures,
    pub(crate) journal: Journal,
    pub(crate) store: StateStore,
}

impl Node {
    pub(crate) async fn open(folder: &Path, limits: EngineLimits) -> Self {
        Self::open_on("qwen3", folder, limits).await
    }

    /// On a model of the fixtures.
    pub(crate) async fn open_on(variant: &str, folder: &Path, limits: EngineLimits) -> Self {
        let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures").join(variant);
        let options = LoadOptions { precision: Precision::Float32, device: Device::Cpu, row_tile: 64 };
        let store = StateStore::open(&folder.join("state.sqlite")).await.unwrap();
        let context = ModelContext {
            base_model: MODEL.to_owned(),
            base: Arc::new(BaseModel::load(&fixture, &options).unwrap()),
            published: PublishedAdapters::new(folder.join("live")),
            checkpoints: CheckpointStore::new(folder.join("checkpoints")),
            store: store.clone(),
            snapshots: folder.join("snapshots"),
            limits,
        };
        let backend = Arc::new(Faulty::default());
        let policy = RestartPolicy { first_pause: Duration::from_millis(1), ..RestartPolicy::default() };
        let component = ModelComponent::with_backend(context, Arc::<Faulty>::clone(&backend), policy).unwrap();
        let futures = Futures::new(store.clone(), FuturesOptions::default());
        let inner: BoxComponent = component.clone().boxed();
        let journal = Journal::with_options(store.clone(), futures.clone(), inner, JournalOptions::default());
        Self { backend, component, futures, journal, store }
    }

    /// With a run of each of these tenants.
    pub(crate) async fn with_runs(folder: &Path, limits: EngineLimits, tenants: &[&str]) -> Self {
        Self::with_runs_on("qwen3", folder, limits, tenants).await
    }

    /// The same on a model of the fixtures.
    pub(crate) async fn with_runs_on(variant: &str, folder: &Path, limits: EngineLimits, tenants: &[&str]) -> Self {
        let node = Self::open_on(variant, folder, limits).await;
        for tenant in tenants {
            let session = SessionRecord {
                id: SessionId::new(*tenant),
                tenant: TenantId::new(*tenant),
                tags: vec![],
                user_metadata: BTreeMap::new(),
                sdk_version: None,
                finished: false,
                created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
                project_id: None,
                display_name: None,
                client_end: None,
            };
            node.store.create_session(&session).await.unwrap();
            node.result(tenant, &node.submit(tenant, None, creation(limits.train_mode)).await).await.unwrap();
        }
        node
    }

    pub(crate) async fn submit(&self, tenant: &str, sequence: Option<u64>, operation: RunOperation) -> RequestId {
        let call = RunCall { run: run(tenant), sequence, position: Position::default(), operation };
        let call = Call { tenant: TenantId::new(tenant), operation: Operation::Run(call) };
        match self.journal.clone().call(call).await.unwrap() {
            Reply::Accepted(request) => request,
            other => panic!("{other:?} instead of a request id"),
        }
    }

    /// A forward-backward and an optimizer step for each of `steps`, accepted without waiting for results.
    pub(crate) async fn submit_steps(&self, tenant: &str, steps: std::ops::RangeInclusive<u64>) -> Vec<RequestId> {
        let mut requests = Vec::new();
        for step in steps {
            requests.push(self.submit(tenant, Some(2 * step - 1), forward_backward(step)).await);
            requests.push(self.submit(tenant, Some(2 * step), optim_step(step)).await);
        }
        requests
    }

    pub(crate) async fn result(&self, tenant: &str, request: &RequestId) -> Result<RunOutcome> {
        match self.futures.wait(&TenantId::new(tenant), request, Duration::from_mins(1)).await {
            Waited::Done(result) => match result.as_ref() {
                Ok(Outcome::Run(outcome)) => Ok(outcome.clone()),
                Ok(other) => panic!("{other:?} is no training result"),
                Err(error) => Err(error.clone()),
            },
            other => panic!("{other:?} instead of a result of `{request}`"),
        }
    }

    pub(crate) async fn results(&self, tenant: &str, requests: &[RequestId]) -> Vec<Result<RunOutcome>> {
        let mut results = Vec::new();
        for request in requests {
            results.push(self.result(tenant, request).await);
        }
        results
    }

    /// What the run computes now, to the last bit.
    pub(crate) async fn logprobs(&self, tenant: &str) -> ForwardBackwardOutcome {
        let RunOperation::ForwardBackward { data, loss, .. } = forward_backward(1) else { unreachable!() };
        let forward = RunOperation::ForwardBackward { data, loss, backward: false, options: ForwardOptions::default() };
        match self.result(tenant, &self.submit(tenant, None, forward).await).await {
            Ok(RunOutcome::ForwardBackward(outcome)) => outcome,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        self.component.status()
    }

    /// As the launcher stops a node: the journal first, which gives up waiting after its limit; then the component.
    pub(crate) async fn stop_during_an_operation(&self, open: std::sync::mpsc::Sender<()>) {
        self.journal.drain(Duration::from_millis(10)).await;
        let component = self.component.clone();
        let draining = tokio::spawn(async move { component.drain(Duration::ZERO).await });
        while self.component.health() != Health::Draining {
            tokio::task::yield_now().await;
        }
        drop(open);
        draining.await.unwrap();
    }

    pub(crate) async fn stop(self) {
        self.component.drain(Duration::from_secs(10)).await;
        self.store.close().await;
    }
}

pub(crate) fn run(tenant: &str) -> RunId {
    RunId::of_session(&SessionId::new(tenant), 0)
}

/// Snapshots practically never, or after every operation.
pub(crate) fn limits(snapshot_after: Duration) -> EngineLimits {
    let memory = MemoryLimits::NONE;
    EngineLimits {
        max_length: 256,
        rows_per_pass: 512,
        max_runs: None,
        memory,
        train_mode: TrainMode::Lora,
        max_rank: 16,
        snapshot_after,
    }
}

pub(crate) const NEVER: Duration = Duration::from_hours(1);

pub(crate) fn creation(mode: TrainMode) -> RunOperation {
    let full = mode == TrainMode::Full;
    let lora = LoraSpec { rank: 4, seed: 3, full, ..LoraSpec::default() };
    RunOperation::Create(CreateRun {
        session: None,
        accumulation_steps: None,
        base_model: MODEL.to_owned(),
        lora,
        from: None,
        user_metadata: BTreeMap::new(),
    })
}

pub(crate) fn forward_backward(step: u64) -> RunOperation {
    let tokens = vec![5, 9, 31, 7, 120, 44, 3 + step as u32];
    let targets = vec![9, 31, 7, 120, 44, 3 + step as i64, 250];
    let loss_inputs = BTreeMap::from([("target_tokens".to_owned(), TensorData::ints(targets))]);
    RunOperation::ForwardBackward {
        data: vec![Datum { tokens, loss_inputs }],
        loss: LossSpec::named("cross_entropy"),
        backward: true,
        options: ForwardOptions::default(),
    }
}

/// Each step of a run has a learning rate of its own, by which a test names it.
pub(crate) fn rate(step: u64) -> f64 {
    1e-2 * step as f64
}

pub(crate) fn optim_step(step: u64) -> RunOperation {
    RunOperation::OptimStep(AdamParams { learning_rate: rate(step), ..AdamParams::default() })
}

/// Every result of an undisturbed run whose steps are these, and its logprobs afterwards. Steps that are left out are
/// submitted as forward-backward only.
pub(crate) async fn undisturbed(without_step: Option<u64>) -> (Vec<Result<RunOutcome>>, ForwardBackwardOutcome) {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_runs(folder.path(), limits(NEVER), &["alice"]).await;
    let mut results = Vec::new();
    for step in 1..=STEPS {
        let request = node.submit("alice", None, forward_backward(step)).await;
        results.push(node.result("alice", &request).await);
        if without_step != Some(step) {
            let request = node.submit("alice", None, optim_step(step)).await;
            results.push(node.result("alice", &request).await);
        }
    }
    let logprobs = node.logprobs("alice").await;
    node.stop().await;
    (results, logprobs)
}
