//! Runs registered on disk, resident in memory, active in a pass: many more than fit, and nothing is lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tch::Device;
use tempfile::TempDir;
use tower::{Service, ServiceExt};
use twinkle_core::call::{
    AdamParams, Call, CreateRun, ForwardBackwardOutcome, ForwardOptions, LoraSpec, LossSpec, Operation, Position,
    Reply, RunCall, RunOperation, RunOutcome, RunRecord, SessionRecord,
};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{Component, Lifecycle};
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::ids::{RequestId, RunId, SessionId, TenantId};
use twinkle_core::state::{NewOperation, NewRun, StateStore};
use twinkle_core::{Error, ErrorCode};
use twinkle_model::engine::EngineLimits;
use twinkle_model::memory::MemoryLimits;
use twinkle_model::{ModelComponent, ModelContext};
use twinkle_nn::{BaseModel, LoadOptions, PassShape, Precision, PublishedAdapters, Recompute};

const MODEL: &str = "tiny/qwen2";
/// Tenants share the runs evenly.
const TENANTS: usize = 40;
const RANK: u32 = 2;
/// Tokens of the datum that every run trains on.
const LENGTH: usize = 9;

/// A component over a fixture model.
struct House {
    component: ModelComponent,
    store: StateStore,
    base: Arc<BaseModel>,
    sequence: u64,
    most_in_memory: u64,
    _folder: TempDir,
}

impl House {
    async fn open(max_runs: Option<usize>, memory: MemoryLimits) -> Self {
        let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/qwen2");
        let options = LoadOptions { precision: Precision::Float32, device: Device::Cpu, row_tile: 64 };
        let base = Arc::new(BaseModel::load(&fixture, &options).unwrap());
        let folder = folder();
        let limits = EngineLimits {
            max_length: 256,
            rows_per_pass: 512,
            max_runs,
            memory,
            train_mode: twinkle_core::config::TrainMode::Lora,
            max_rank: 16,
            snapshot_after: Duration::from_hours(1),
        };
        let store = StateStore::open_in_memory().await.unwrap();
        for number in 0..TENANTS {
            store.create_session(&session(number)).await.unwrap();
        }
        let context = ModelContext {
            base_model: MODEL.to_owned(),
            base: Arc::clone(&base),
            published: PublishedAdapters::new(folder.path().join("live")),
            checkpoints: CheckpointStore::new(folder.path().join("checkpoints")),
            store: store.clone(),
            snapshots: folder.path().join("snapshots"),
            limits,
        };
        let component = ModelComponent::build(limits, context).await.unwrap();
        Self { component, store, base, sequence: 0, most_in_memory: 0, _folder: folder }
    }

    /// Puts an operation in line.
    async fn submit(&mut self, run: usize, operation: RunOperation) -> BoxFuture<'static, Result<RunOutcome, Error>> {
        self.sequence += 1;
        let position = Position { after: self.sequence, arrival: 0 };
        if let RunOperation::Create(create) = &operation {
            self.register(run, create, position).await;
        }
        let call = RunCall { run: run_id(run), sequence: Some(self.sequence), position, operation };
        let call = Call { tenant: tenant(run), operation: Operation::Run(call) };
        let answer = self.component.ready().await.unwrap().call(call);
        Box::pin(async move {
            match answer.await? {
                Reply::Run(outcome) => Ok(outcome),
                other => panic!("{other:?}"),
            }
        })
    }

    /// As the journal does it before and after the component has made a run: only then may it have snapshots.
    async fn register(&self, run: usize, create: &CreateRun, position: Position) {
        let (request, id, now) = (RequestId::journaled(), run_id(run), jiff::Timestamp::now());
        let record = RunRecord {
            id: id.clone(),
            tenant: tenant(run),
            session: SessionId::new(format!("s{}", run % TENANTS)),
            base_model: MODEL.to_owned(),
            lora: create.lora.clone(),
            user_metadata: BTreeMap::new(),
            closed: false,
            created_at: now,
            last_used_at: now,
        };
        let operation = NewOperation {
            request: request.clone(),
            tenant: tenant(run),
            run: id.clone(),
            position,
            name: "create_model",
            payload: vec![1],
            fingerprint: [7; 32],
        };
        self.store.insert_run(NewRun { record, operation }).await.unwrap();
        self.store.finish(&request, &Ok(RunOutcome::Created { run: id })).await.unwrap();
    }

    async fn ask(&mut self, run: usize, operation: RunOperation) -> Result<RunOutcome, Error> {
        let answer = self.submit(run, operation).await.await;
        let in_memory = self.component.status()["runs_in_memory"].as_u64().unwrap();
        self.most_in_memory = self.most_in_memory.max(in_memory);
        answer
    }

    /// The same operation for all of these runs, fifty at a time.
    async fn ask_all(&mut self, runs: &[usize], operation: impl Fn(usize) -> RunOperation) -> Vec<RunOutcome> {
        let mut outcomes = Vec::with_capacity(runs.len());
        for active in runs.chunks(50) {
            let mut answers = Vec::with_capacity(active.len());
            for run in active {
                answers.push(self.submit(*run, operation(*run)).await);
            }
            outcomes.extend(join_all(answers).await.into_iter().map(Result::unwrap));
            let in_memory = self.component.status()["runs_in_memory"].as_u64().unwrap();
            self.most_in_memory = self.most_in_memory.max(in_memory);
        }
        outcomes
    }

    /// Bytes of a run as the tests make it.
    fn run_bytes(&self) -> u64 {
        let cost = self.base.cost();
        cost.run_bytes(cost.adapter_parameters(&lora(0, RANK)).unwrap())
    }
}

/// In memory where there is such a place: a snapshot is synced to the disk, and there will be thousands.
fn folder() -> TempDir {
    let in_memory = Path::new("/dev/shm");
    if in_memory.is_dir() { tempfile::tempdir_in(in_memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn run_id(run: usize) -> RunId {
    RunId::new(format!("s{}:train:{run}", run % TENANTS))
}

fn tenant(run: usize) -> TenantId {
    TenantId::new(format!("tenant-{}", run % TENANTS))
}

fn session(number: usize) -> SessionRecord {
    SessionRecord {
        id: SessionId::new(format!("s{number}")),
        tenant: tenant(number),
        tags: Vec::new(),
        user_metadata: BTreeMap::new(),
        sdk_version: None,
        finished: false,
        created_at: jiff::Timestamp::now(),
        project_id: None,
        display_name: None,
        client_end: None,
    }
}

fn lora(seed: u64, rank: u32) -> LoraSpec {
    LoraSpec { rank, seed, train_mlp: false, train_unembed: false, ..LoraSpec::default() }
}

fn create(seed: u64, rank: u32) -> RunOperation {
    RunOperation::Create(CreateRun {
        session: None,
        accumulation_steps: None,
        base_model: MODEL.to_owned(),
        lora: lora(seed, rank),
        from: None,
        user_metadata: BTreeMap::new(),
    })
}

fn forward(length: usize, backward: bool) -> RunOperation {
    let tokens: Vec<u32> = (0..length as u32).map(|place| (place * 29 + 5) % 250).collect();
    let targets = tokens.iter().map(|token| i64::from((token + 7) % 250)).collect();
    let loss_inputs = BTreeMap::from([("target_tokens".to_owned(), TensorData::ints(targets))]);
    RunOperation::ForwardBackward {
        data: vec![Datum { tokens, loss_inputs }],
        loss: LossSpec::named("cross_entropy"),
        backward,
        options: ForwardOptions::default(),
    }
}

fn step() -> RunOperation {
    RunOperation::OptimStep(AdamParams { learning_rate: 1e-2, ..AdamParams::default() })
}

fn found(outcome: RunOutcome) -> ForwardBackwardOutcome {
    match outcome {
        RunOutcome::ForwardBackward(found) => found,
        other => panic!("{other:?}"),
    }
}

/// What a run of this seed finds after one step, when it is alone.
async fn alone(seed: u64) -> ForwardBackwardOutcome {
    let mut house = House::open(None, MemoryLimits::NONE).await;
    for operation in [create(seed, RANK), forward(LENGTH, true), step()] {
        house.ask(0, operation).await.unwrap();
    }
    found(house.ask(0, forward(LENGTH, false)).await.unwrap())
}

#[tokio::test]
async fn a_thousand_runs_with_fifty_in_memory_lose_nothing() {
    const RUNS: usize = 1_000;
    const SEEDS: usize = 5;
    let mut house = House::open(Some(50), MemoryLimits::NONE).await;
    let in_order: Vec<usize> = (0..RUNS).collect();
    // 387 and 1000 have no common divisor: every run once, far from its neighbours.
    let mixed: Vec<usize> = (0..RUNS).map(|place| place * 387 % RUNS).collect();
    house.ask_all(&in_order, |run| create((run % SEEDS) as u64, RANK)).await;
    house.ask_all(&mixed, |_| forward(LENGTH, true)).await;
    house.ask_all(&in_order, |_| step()).await;
    let outcomes = house.ask_all(&mixed, |_| forward(LENGTH, false)).await;

    let mut expected = Vec::new();
    for seed in 0..SEEDS {
        expected.push(alone(seed as u64).await);
    }
    for (run, outcome) in mixed.iter().zip(outcomes) {
        assert!(found(outcome) == expected[run % SEEDS], "run {run} is not what it would be alone");
    }
    assert!(expected[0] != expected[1], "seeds matter");
    assert!(house.most_in_memory <= 50, "{} runs were in memory", house.most_in_memory);
}

#[tokio::test]
async fn runs_are_bounded_by_their_bytes() {
    let bytes = House::open(None, MemoryLimits::NONE).await.run_bytes();
    let limits = MemoryLimits { runs: bytes * 7 / 2, ..MemoryLimits::NONE };
    let mut house = House::open(None, limits).await;
    let runs: Vec<usize> = (0..8).collect();
    for run in &runs {
        house.ask(*run, create(1, RANK)).await.unwrap();
    }
    for operation in [forward(LENGTH, true), step()] {
        for run in &runs {
            house.ask(*run, operation.clone()).await.unwrap();
        }
    }
    let expected = alone(1).await;
    for outcome in house.ask_all(&runs, |_| forward(LENGTH, false)).await {
        assert!(found(outcome) == expected);
    }
    assert_eq!(house.most_in_memory, 3, "three and a half fit");
}

#[tokio::test]
async fn a_run_that_never_fits_is_refused_with_numbers_and_the_others_go_on() {
    let bytes = House::open(None, MemoryLimits::NONE).await.run_bytes();
    let mut house = House::open(None, MemoryLimits { runs: bytes * 2, ..MemoryLimits::NONE }).await;
    house.ask(0, create(1, RANK)).await.unwrap();
    house.ask(0, forward(LENGTH, true)).await.unwrap();
    let error = house.ask(1, create(1, 16)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert!(error.message.contains("the run needs") && error.message.contains("KiB"), "{error}");
    house.ask(0, step()).await.unwrap();
    let after = found(house.ask(0, forward(LENGTH, false)).await.unwrap());
    assert!(after == alone(1).await);
}

#[tokio::test]
async fn a_pass_is_recomputed_to_fit_and_one_that_never_fits_is_refused_with_numbers() {
    let cost = House::open(None, MemoryLimits::NONE).await.base.cost();
    let shape = |rows| PassShape::training(rows, rows, RANK as usize);
    let most = Recompute { layers: cost.config().layer_count - 1 };
    let pass = cost.pass_bytes(shape(64), most);
    assert!(cost.pass_bytes(shape(64), Recompute::NOTHING) > pass, "something is to be saved");

    let mut outcomes = Vec::new();
    for limit in [pass, u64::MAX] {
        let mut house = House::open(None, MemoryLimits { pass: limit, ..MemoryLimits::NONE }).await;
        house.ask(0, create(1, RANK)).await.unwrap();
        if limit == pass {
            let error = house.ask(0, forward(200, true)).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::ResourceExhausted);
            let expected = "a pass over 200 tokens, the longest sequence of 200, needs";
            assert!(error.message.contains(expected), "{error}");
            assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("memory_limit")), "{error:?}");
        }
        house.ask(0, forward(64, true)).await.unwrap();
        house.ask(0, step()).await.unwrap();
        outcomes.push(found(house.ask(0, forward(64, false)).await.unwrap()));
    }
    assert!(outcomes[0] == outcomes[1], "the bits do not depend on what is recomputed");
}
