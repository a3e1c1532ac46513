//! The component as the journal uses it: runs in and out of memory, checkpoints, failures that change nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tch::Device;
use tempfile::TempDir;
use tower::{Service, ServiceExt};
use twinkle_core::call::{
    AdamParams, Call, CreateRun, ForwardBackwardOutcome, ForwardOptions, LoraSpec, LossSpec, Operation, Position,
    Reply, RunCall, RunOperation, RunOutcome, SamplerTarget, SavedTraining, StartingPoint,
};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::Component;
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, SamplingSessionId, TenantId};
use twinkle_core::state::StateStore;
use twinkle_core::{Error, ErrorCode};
use twinkle_model::engine::EngineLimits;
use twinkle_model::memory::MemoryLimits;
use twinkle_model::{ModelComponent, ModelContext};
use twinkle_nn::{BaseModel, LoadOptions, Precision, PublishedAdapters};

const MODEL: &str = "tiny/qwen3";

/// A component over a fixture model, with folders of its own.
struct House {
    component: ModelComponent,
    published: PublishedAdapters,
    folder: TempDir,
    sequence: u64,
}

impl House {
    async fn open(max_runs: Option<usize>) -> Self {
        let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/qwen3");
        let options = LoadOptions { precision: Precision::Float32, device: Device::Cpu, row_tile: 64 };
        let folder = tempfile::tempdir().unwrap();
        let limits = EngineLimits {
            max_length: 256,
            rows_per_pass: 512,
            max_runs,
            memory: MemoryLimits::NONE,
            train_mode: twinkle_core::config::TrainMode::Lora,
            max_rank: 16,
            snapshot_after: Duration::from_hours(1),
        };
        let published = PublishedAdapters::new(folder.path().join("live"));
        let context = ModelContext {
            base_model: MODEL.to_owned(),
            base: Arc::new(BaseModel::load(&fixture, &options).unwrap()),
            published: published.clone(),
            checkpoints: CheckpointStore::new(folder.path().join("checkpoints")),
            store: StateStore::open_in_memory().await.unwrap(),
            snapshots: folder.path().join("snapshots"),
            limits,
        };
        let component = ModelComponent::build(limits, context).await.unwrap();
        Self { component, published, folder, sequence: 0 }
    }

    async fn ask(&mut self, tenant: &str, run: &str, operation: RunOperation) -> Result<RunOutcome, Error> {
        self.sequence += 1;
        let position = Position { after: self.sequence, arrival: 0 };
        let call = RunCall { run: RunId::new(run), sequence: Some(self.sequence), position, operation };
        let call = Call { tenant: TenantId::new(tenant), operation: Operation::Run(call) };
        match self.component.ready().await.unwrap().call(call).await? {
            Reply::Run(outcome) => Ok(outcome),
            other => panic!("{other:?}"),
        }
    }

    async fn create(&mut self, run: &str, seed: u64) {
        self.ask("tenant", run, RunOperation::Create(creation(seed, None))).await.unwrap();
    }

    /// One forward-backward and one step; returns what the forward-backward found.
    async fn train(&mut self, run: &str) -> ForwardBackwardOutcome {
        let found = self.ask("tenant", run, forward_backward()).await.unwrap();
        let settings = AdamParams { learning_rate: 1e-2, ..AdamParams::default() };
        self.ask("tenant", run, RunOperation::OptimStep(settings)).await.unwrap();
        match found {
            RunOutcome::ForwardBackward(found) => found,
            other => panic!("{other:?}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn creation(seed: u64, from: Option<StartingPoint>) -> CreateRun {
    let lora = LoraSpec { rank: 4, seed, ..LoraSpec::default() };
    CreateRun {
        session: None,
        accumulation_steps: None,
        base_model: MODEL.to_owned(),
        lora,
        from,
        user_metadata: BTreeMap::new(),
    }
}

fn forward_backward() -> RunOperation {
    let tokens = vec![5, 9, 31, 7, 120, 44, 3];
    let targets = vec![9, 31, 7, 120, 44, 3, 250];
    let loss_inputs = BTreeMap::from([("target_tokens".to_owned(), TensorData::ints(targets))]);
    RunOperation::ForwardBackward {
        data: vec![Datum { tokens, loss_inputs }],
        loss: LossSpec::named("cross_entropy"),
        backward: true,
        options: ForwardOptions::default(),
    }
}

fn checkpoint(name: &str) -> CheckpointPath {
    CheckpointPath::new(RunId::new("s:train:0"), CheckpointKind::Weights, name).unwrap()
}

fn save(name: &str) -> RunOperation {
    RunOperation::SaveState {
        path: checkpoint(name),
        ttl_seconds: None,
        overwrite: false,
        user_metadata: BTreeMap::new(),
        training: SavedTraining::default(),
    }
}

/// Three runs in turn, with gradients accumulated over the change: every loss and logprob they found.
async fn three_runs_in_turn(max_runs: Option<usize>) -> Vec<ForwardBackwardOutcome> {
    let mut house = House::open(max_runs).await;
    let runs = ["s:train:0", "s:train:1", "s:train:2"];
    for (seed, run) in runs.iter().enumerate() {
        house.create(run, seed as u64).await;
    }
    let mut found = Vec::new();
    for _ in 0..3 {
        for run in runs {
            house.ask("tenant", run, forward_backward()).await.unwrap();
        }
        for run in runs {
            found.push(house.train(run).await);
        }
    }
    found
}

#[tokio::test]
async fn runs_that_wait_on_disk_come_back_in_the_same_bits() {
    assert_eq!(three_runs_in_turn(Some(1)).await, three_runs_in_turn(None).await);
}

#[tokio::test]
async fn a_run_from_a_checkpoint_continues_as_if_it_had_never_stopped() {
    let mut house = House::open(None).await;
    house.create("s:train:0", 3).await;
    house.train("s:train:0").await;
    house.ask("tenant", "s:train:0", save("middle")).await.unwrap();
    let from = StartingPoint { path: checkpoint("middle"), with_optimizer: true, owner: None };
    house.ask("tenant", "s:train:1", RunOperation::Create(creation(99, Some(from)))).await.unwrap();
    for _ in 0..2 {
        let (original, continued) = (house.train("s:train:0").await, house.train("s:train:1").await);
        assert_eq!(original, continued);
    }
}

#[tokio::test]
async fn without_its_optimizer_a_checkpoint_gives_the_weights_only() {
    let mut house = House::open(None).await;
    house.create("s:train:0", 3).await;
    house.train("s:train:0").await;
    house.ask("tenant", "s:train:0", save("middle")).await.unwrap();
    let from = StartingPoint { path: checkpoint("middle"), with_optimizer: false, owner: None };
    house.ask("tenant", "s:train:1", RunOperation::Create(creation(99, Some(from)))).await.unwrap();
    assert_eq!(house.train("s:train:0").await, house.train("s:train:1").await, "the weights are the same");
    assert_ne!(house.train("s:train:0").await, house.train("s:train:1").await, "the moments are not");
}

#[tokio::test]
async fn a_published_adapter_is_in_memory_at_once_and_on_disk_soon() {
    let mut house = House::open(None).await;
    house.create("s:train:0", 3).await;
    let session = SamplingSessionId::new("s:sample:0");
    let publish = RunOperation::SaveForSampler {
        target: SamplerTarget::Live(session.clone()),
        ttl_seconds: None,
        user_metadata: BTreeMap::new(),
    };
    house.ask("tenant", "s:train:0", publish).await.unwrap();
    let published = house.published.get(&session).expect("published");
    // The next operation runs after the copy was written.
    house.train("s:train:0").await;
    assert!(house.path("live/s:sample:0/adapter_model.safetensors").exists());
    assert_eq!(house.published.get(&session).unwrap().adapter.content_hash(), published.adapter.content_hash());
}

#[tokio::test]
async fn later_inflight_weights_take_the_place_of_the_earlier_ones() {
    let mut house = House::open(None).await;
    house.create("s:train:0", 3).await;
    let weights = SamplingSessionId::new("s:sample:inflight-0");
    let publish = |number: u32| RunOperation::SaveForSampler {
        target: SamplerTarget::Inflight {
            session: SamplingSessionId::new(format!("s:sample:{number}")),
            weights: weights.clone(),
        },
        ttl_seconds: None,
        user_metadata: BTreeMap::new(),
    };
    house.ask("tenant", "s:train:0", publish(0)).await.unwrap();
    let first = house.published.get(&weights).expect("published");
    house.train("s:train:0").await;
    house.ask("tenant", "s:train:0", publish(1)).await.unwrap();
    assert!(house.path("live/s:sample:inflight-0/adapter_model.safetensors").exists(), "on disk before the answer");
    let second = house.published.get(&weights).expect("published");
    assert_ne!(first.adapter.content_hash(), second.adapter.content_hash());
    assert_eq!(second.publication.optimizer_steps, first.publication.optimizer_steps + 1);
    assert!(house.published.get(&SamplingSessionId::new("s:sample:1")).is_none(), "the session holds none of its own");
}

#[tokio::test]
async fn mistakes_are_answered_and_change_nothing() {
    let mut house = House::open(None).await;
    house.create("s:train:0", 3).await;
    let mut untouched = House::open(None).await;
    untouched.create("s:train:0", 3).await;

    let bad = |change: &dyn Fn(&mut Datum, &mut LossSpec)| {
        let RunOperation::ForwardBackward { mut data, mut loss, backward, options } = forward_backward() else {
            unreachable!()
        };
        change(&mut data[0], &mut loss);
        RunOperation::ForwardBackward { data, loss, backward, options }
    };
    let targets = |values: Vec<i64>| ("target_tokens".to_owned(), TensorData::ints(values));
    let operations = [
        (bad(&|_, loss| loss.name = "cross_entropi".into()), "did you mean `cross_entropy`"),
        (bad(&|datum, _| datum.tokens[2] = 99_999), "outside the vocabulary"),
        (bad(&|datum, _| datum.loss_inputs.extend([targets(vec![1, 2])])), "aligned to the model input"),
        (bad(&|datum, _| datum.tokens.clear()), "no tokens"),
        (bad(&|datum, _| datum.tokens = vec![1; 300]), "more than the model's limit of 256"),
        (RunOperation::OptimStep(AdamParams { learning_rate: f64::NAN, ..AdamParams::default() }), "`learning_rate`"),
        (RunOperation::LoadState { path: checkpoint("absent"), with_optimizer: true, owner: None }, "absent"),
    ];
    for (operation, expected) in operations {
        let name = operation.name();
        let error = house.ask("tenant", "s:train:0", operation).await.unwrap_err();
        assert!(error.code.is_users_fault(), "{name}: {error}");
        assert!(error.to_string().contains(expected), "{name}: `{error}` lacks `{expected}`");
    }
    assert_eq!(house.train("s:train:0").await, untouched.train("s:train:0").await);
    assert_eq!(house.train("s:train:0").await, untouched.train("s:train:0").await);
}

#[tokio::test]
async fn another_tenants_run_does_not_exist() {
    let mut house = House::open(None).await;
    house.create("s:train:0", 3).await;
    let foreign = house.ask("stranger", "s:train:0", forward_backward()).await.unwrap_err();
    let absent = house.ask("tenant", "s:train:7", forward_backward()).await.unwrap_err();
    assert_eq!(foreign.code, ErrorCode::NotFound);
    assert_eq!(foreign.message.replace("s:train:0", "RUN"), absent.message.replace("s:train:7", "RUN"));
}

#[tokio::test]
async fn a_damaged_checkpoint_is_refused_and_named() {
    let mut house = House::open(None).await;
    house.create("s:train:0", 3).await;
    house.ask("tenant", "s:train:0", save("good")).await.unwrap();
    let mut files = Vec::new();
    find_files(&house.path("checkpoints"), &mut files);
    let weights = files.iter().find(|path| path.ends_with("adapter_model.safetensors")).unwrap();
    let mut bytes = std::fs::read(weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights, bytes).unwrap();
    let load = RunOperation::LoadState { path: checkpoint("good"), with_optimizer: true, owner: None };
    let error = house.ask("tenant", "s:train:0", load).await.unwrap_err();
    assert!(error.to_string().contains("adapter_model.safetensors"), "{error}");
    house.train("s:train:0").await;
}

fn find_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { find_files(&path, files) } else { files.push(path) }
    }
}
