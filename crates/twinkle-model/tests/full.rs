//! The engine with an optimizer and a schedule of a run's own, and with runs that train all weights.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tch::Device;
use tempfile::TempDir;
use tower::{Service, ServiceExt};
use twinkle_core::call::{
    AdamParams, Call, CreateRun, ForwardBackwardOutcome, ForwardOptions, GradientClip, GradientNorm, LoraSpec,
    LossSpec, Operation, OptimizerSpec, OptimizerWork, Position, Reply, RunCall, RunOperation, RunOutcome, RunRecord,
    SamplerTarget, SavedTraining, SchedulerSpec, SessionRecord, StartingPoint,
};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::Component;
use twinkle_core::config::TrainMode;
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RequestId, RunId, SamplingSessionId, SessionId, TenantId};
use twinkle_core::state::{NewOperation, NewRun, StateStore};
use twinkle_core::{Error, ErrorCode};
use twinkle_model::engine::EngineLimits;
use twinkle_model::memory::MemoryLimits;
use twinkle_model::{ModelComponent, ModelContext};
use twinkle_nn::{BaseModel, LoadOptions, Pack, Precision, PublishedAdapters};

#[path = "full_parts/windows.rs"]
mod windows;

const MODEL: &str = "tiny/model";
const RUN: &str = "s:train:0";

/// A component over a fixture model, with folders of its own.
struct House {
    component: ModelComponent,
    checkpoints: CheckpointStore,
    store: StateStore,
    _folder: TempDir,
    sequence: u64,
}

fn load(folder: &std::path::Path, precision: Precision) -> BaseModel {
    BaseModel::load(folder, &LoadOptions { precision, device: Device::Cpu, row_tile: 64 }).unwrap()
}

impl House {
    async fn open(variant: &str, train_mode: TrainMode, precision: Precision) -> Self {
        let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures").join(variant);
        let folder = tempfile::tempdir().unwrap();
        let limits = EngineLimits {
            max_length: 256,
            rows_per_pass: 16,
            max_runs: None,
            memory: MemoryLimits::NONE,
            train_mode,
            max_rank: 16,
            snapshot_after: Duration::from_hours(1),
        };
        let checkpoints = CheckpointStore::new(folder.path().join("checkpoints"));
        let store = StateStore::open_in_memory().await.unwrap();
        let context = ModelContext {
            base_model: MODEL.to_owned(),
            base: Arc::new(load(&fixture, precision)),
            published: PublishedAdapters::new(folder.path().join("live")),
            checkpoints: checkpoints.clone(),
            store: store.clone(),
            snapshots: folder.path().join("snapshots"),
            limits,
        };
        let component = ModelComponent::build(limits, context).await.unwrap();
        Self { component, checkpoints, store, _folder: folder, sequence: 0 }
    }

    /// As the journal does it when the component has made a run: only then may it have snapshots.
    async fn register(&self) {
        let (request, now) = (RequestId::journaled(), jiff::Timestamp::now());
        let session = SessionRecord {
            id: SessionId::new("s"),
            tenant: TenantId::new("tenant"),
            tags: Vec::new(),
            user_metadata: BTreeMap::new(),
            sdk_version: None,
            finished: false,
            created_at: now,
            project_id: None,
            display_name: None,
            client_end: None,
        };
        self.store.create_session(&session).await.unwrap();
        let record = RunRecord {
            id: RunId::new(RUN),
            tenant: TenantId::new("tenant"),
            session: session.id,
            base_model: MODEL.to_owned(),
            lora: LoraSpec::default(),
            user_metadata: BTreeMap::new(),
            closed: false,
            created_at: now,
            last_used_at: now,
        };
        let operation = NewOperation {
            request: request.clone(),
            tenant: TenantId::new("tenant"),
            run: RunId::new(RUN),
            position: Position::default(),
            name: "create_model",
            payload: vec![1],
            fingerprint: [7; 32],
        };
        self.store.insert_run(NewRun { record, operation }).await.unwrap();
        self.store.finish(&request, &Ok(RunOutcome::Created { run: RunId::new(RUN) })).await.unwrap();
    }

    async fn ask(&mut self, run: &str, operation: RunOperation) -> Result<RunOutcome, Error> {
        self.sequence += 1;
        let position = Position { after: self.sequence, arrival: 0 };
        let call = RunCall { run: RunId::new(run), sequence: Some(self.sequence), position, operation };
        let call = Call { tenant: TenantId::new("tenant"), operation: Operation::Run(call) };
        match self.component.ready().await.unwrap().call(call).await? {
            Reply::Run(outcome) => Ok(outcome),
            other => panic!("{other:?}"),
        }
    }

    async fn forward_backward(&mut self) -> ForwardBackwardOutcome {
        match self.ask(RUN, forward_backward(true)).await.unwrap() {
            RunOutcome::ForwardBackward(found) => found,
            other => panic!("{other:?}"),
        }
    }

    /// The metrics of a step.
    async fn step(&mut self, operation: RunOperation) -> BTreeMap<String, f64> {
        match self.ask(RUN, operation).await.unwrap() {
            RunOutcome::OptimStep { metrics } => metrics,
            other => panic!("{other:?}"),
        }
    }
}

/// Three sequences, more than a pass of these houses takes.
fn forward_backward(backward: bool) -> RunOperation {
    let datum = |length: u32| {
        let tokens: Vec<u32> = (0..length).map(|place| (place * 37 + length) % 250).collect();
        let targets = tokens.iter().skip(1).chain([&3]).map(|token| i64::from(*token)).collect();
        Datum { tokens, loss_inputs: BTreeMap::from([("target_tokens".to_owned(), TensorData::ints(targets))]) }
    };
    RunOperation::ForwardBackward {
        data: vec![datum(7), datum(12), datum(5)],
        loss: LossSpec::named("cross_entropy"),
        backward,
        options: ForwardOptions::default(),
    }
}

fn create(full: bool) -> RunOperation {
    create_from(full, None)
}

fn create_from(full: bool, from: Option<StartingPoint>) -> RunOperation {
    let lora = LoraSpec { rank: 4, seed: 3, full, ..LoraSpec::default() };
    RunOperation::Create(CreateRun {
        session: None,
        accumulation_steps: None,
        base_model: MODEL.to_owned(),
        lora,
        from,
        user_metadata: BTreeMap::new(),
    })
}

fn adam() -> RunOperation {
    RunOperation::OptimStep(AdamParams { learning_rate: 1e-2, weight_decay: 0.1, ..AdamParams::default() })
}

fn settings(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(settings) => settings,
        other => panic!("{other} is no object"),
    }
}

fn optimizer(name: &str, value: Value) -> RunOperation {
    RunOperation::SetOptimizer(OptimizerSpec::named(name, settings(value)).unwrap())
}

/// What `clip_grad_and_step` of the native protocol does.
fn clip_and_step(divide_by: f64) -> RunOperation {
    RunOperation::Optimize(OptimizerWork {
        divide_by,
        clip: Some(GradientClip { max_norm: 1.0, norm: GradientNorm::Two }),
        step: true,
        zero_gradients: true,
        step_scheduler: true,
        ..OptimizerWork::default()
    })
}

fn bits(found: &[ForwardBackwardOutcome]) -> Vec<u32> {
    found
        .iter()
        .flat_map(|found| &found.logprobs)
        .flat_map(|logprobs| &logprobs.values)
        .map(|value| value.to_bits())
        .collect()
}

#[tokio::test]
async fn every_optimizer_of_a_runs_own_goes_on_in_the_same_bits_after_it_was_on_disk() {
    for name in OptimizerSpec::NAMES {
        let mut trained = Vec::new();
        for spills in [false, true] {
            let mut house = House::open("qwen3", TrainMode::Lora, Precision::Float32).await;
            house.register().await;
            house.ask(RUN, create(false)).await.unwrap();
            house.ask(RUN, optimizer(name, json!({ "lr": 0.01, "weight_decay": 0.01 }))).await.unwrap();
            let schedule = SchedulerSpec::named("StepLR", settings(json!({ "step_size": 2, "gamma": 0.5 }))).unwrap();
            house.ask(RUN, RunOperation::SetScheduler(schedule)).await.unwrap();
            let mut found = Vec::new();
            for step in 0..4 {
                found.push(house.forward_backward().await);
                if spills {
                    house.ask(RUN, RunOperation::Spill).await.unwrap();
                }
                let metrics = house.step(clip_and_step(24.0)).await;
                let expected = if step < 2 { 0.01 } else { 0.005 };
                assert!((metrics["learning_rate"] - expected).abs() < 1e-12, "{name} {step}: {metrics:?}");
                assert!(metrics["grad_norm"] > 0.0, "{name} {step}: {metrics:?}");
                assert!(metrics.contains_key("next_learning_rate"), "{name} {step}: {metrics:?}");
            }
            trained.push(bits(&found));
        }
        assert!(trained[0] == trained[1], "{name}");
    }
}

#[tokio::test]
async fn the_parts_of_a_step_are_the_step() {
    let mut trained = Vec::new();
    for apart in [false, true] {
        let mut house = House::open("qwen3", TrainMode::Lora, Precision::Float32).await;
        house.ask(RUN, create(false)).await.unwrap();
        house.ask(RUN, optimizer("SGD", json!({ "lr": 0.5, "momentum": 0.9 }))).await.unwrap();
        let schedule = SchedulerSpec::named("ExponentialLR", settings(json!({ "gamma": 0.9 }))).unwrap();
        house.ask(RUN, RunOperation::SetScheduler(schedule)).await.unwrap();
        let mut found = Vec::new();
        for _ in 0..3 {
            found.push(house.forward_backward().await);
            if !apart {
                house.step(clip_and_step(24.0)).await;
                continue;
            }
            let clip = Some(GradientClip { max_norm: 1.0, norm: GradientNorm::Two });
            for work in [
                OptimizerWork { divide_by: 24.0, clip, ..OptimizerWork::default() },
                OptimizerWork { step: true, ..OptimizerWork::default() },
                OptimizerWork { zero_gradients: true, ..OptimizerWork::default() },
                OptimizerWork { step_scheduler: true, ..OptimizerWork::default() },
            ] {
                house.step(RunOperation::Optimize(work)).await;
            }
        }
        trained.push(bits(&found));
    }
    assert!(trained[0] == trained[1]);
}

#[tokio::test]
async fn tinkers_step_is_refused_by_another_optimizer_and_changes_nothing() {
    let mut house = House::open("qwen3", TrainMode::Lora, Precision::Float32).await;
    house.ask(RUN, create(false)).await.unwrap();
    house.ask(RUN, optimizer("SGD", json!({ "lr": 0.1 }))).await.unwrap();
    let before = house.forward_backward().await;
    let error = house.ask(RUN, adam()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict, "{error}");
    assert_eq!(house.forward_backward().await, before);
    house.ask(RUN, optimizer("AdamW", json!({}))).await.unwrap();
    house.step(adam()).await;
}

#[tokio::test]
async fn a_run_that_trains_all_weights_learns_and_survives_the_disk_in_the_same_bits() {
    let cases = [
        ("llama3_tied", Precision::BFloat16),
        ("qwen2", Precision::Float32),
        ("qwen3_moe", Precision::Float32),
        ("qwen3_5_moe", Precision::BFloat16),
    ];
    for (variant, precision) in cases {
        let mut trained = Vec::new();
        for spills in [false, true] {
            let mut house = House::open(variant, TrainMode::Full, precision).await;
            house.register().await;
            house.ask(RUN, create(true)).await.unwrap();
            let mut found = Vec::new();
            for _ in 0..4 {
                found.push(house.forward_backward().await);
                if spills {
                    house.ask(RUN, RunOperation::Spill).await.unwrap();
                }
                let metrics = house.step(adam()).await;
                assert!(metrics["grad_norm"] > 0.0, "{metrics:?}");
            }
            let losses: Vec<f64> = found.iter().map(|found| found.metrics["loss:sum"]).collect();
            assert!(losses[3] < 0.7 * losses[0], "{variant}: {losses:?}");
            trained.push(bits(&found));
        }
        assert!(trained[0] == trained[1], "{variant}");
    }
}

#[tokio::test]
async fn the_base_answers_without_what_a_run_has_learned() {
    for (full, mode) in [(false, TrainMode::Lora), (true, TrainMode::Full)] {
        let mut house = House::open("qwen3", mode, Precision::Float32).await;
        house.ask(RUN, create(full)).await.unwrap();
        let forward = |disable_lora: bool| {
            let RunOperation::ForwardBackward { data, loss, .. } = forward_backward(false) else { unreachable!() };
            let options = ForwardOptions { disable_lora, ..ForwardOptions::default() };
            RunOperation::ForwardBackward { data, loss, backward: false, options }
        };
        let before = house.ask(RUN, forward(false)).await.unwrap();
        house.forward_backward().await;
        house.step(adam()).await;
        assert_ne!(house.ask(RUN, forward(false)).await.unwrap(), before, "{mode:?}");
        assert_eq!(house.ask(RUN, forward(true)).await.unwrap(), before, "{mode:?}");
    }
}

#[tokio::test]
async fn a_checkpoint_of_all_weights_is_a_model_and_training_goes_on_from_it() {
    for variant in ["llama3_tied", "qwen3_moe", "qwen3_5_moe"] {
        checkpoint_goes_on(variant).await;
    }
}

async fn checkpoint_goes_on(variant: &str) {
    let mut house = House::open(variant, TrainMode::Full, Precision::Float32).await;
    house.ask(RUN, create(true)).await.unwrap();
    house.forward_backward().await;
    house.step(adam()).await;
    let path = CheckpointPath::new(RunId::new(RUN), CheckpointKind::Weights, "one").unwrap();
    let save = RunOperation::SaveState {
        path: path.clone(),
        ttl_seconds: None,
        overwrite: false,
        user_metadata: BTreeMap::new(),
        training: SavedTraining::default(),
    };
    house.ask(RUN, save).await.unwrap();
    let expected = house.forward_backward().await;
    house.step(adam()).await;
    let then = house.forward_backward().await;
    house.ask(RUN, RunOperation::Unload).await.unwrap();

    let from = StartingPoint { path: path.clone(), with_optimizer: true, owner: None };
    house.ask(RUN, create_from(true, Some(from))).await.unwrap();
    assert_eq!(house.forward_backward().await, expected);
    house.step(adam()).await;
    assert_eq!(house.forward_backward().await, then);

    let checkpoint = house.checkpoints.open(&TenantId::new("tenant"), &path).unwrap();
    let model = load(checkpoint.directory(), Precision::Float32);
    let RunOperation::ForwardBackward { data, .. } = forward_backward(false) else { panic!("another operation") };
    for (datum, logprobs) in data.iter().zip(&expected.logprobs) {
        let hidden = model.forward(&Pack::single(&datum.tokens, None), &[]).unwrap();
        let logits = model.logits(&hidden, &vec![None; datum.tokens.len()]).unwrap();
        let scored = logits.log_softmax(-1, tch::Kind::Float);
        for (row, logprob) in logprobs.values.iter().enumerate() {
            let target = datum.tokens.get(row + 1).copied().unwrap_or(3);
            let found = scored.double_value(&[row as i64, i64::from(target)]);
            assert!((found - f64::from(*logprob)).abs() < 1e-4, "row {row}: {found}, not {logprob}");
        }
    }
    assert!(checkpoint.directory().join("tokenizer.json").exists());
}

#[tokio::test]
async fn all_weights_are_trained_by_one_run_where_the_application_says_so() {
    let mut full = House::open("qwen2", TrainMode::Full, Precision::Float32).await;
    let error = full.ask(RUN, create(false)).await.unwrap_err();
    assert!(error.to_string().contains("trains all weights"), "{error}");
    full.ask(RUN, create(true)).await.unwrap();
    let error = full.ask("s:train:1", create(true)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    assert!(error.message.contains("already held by another training task (`s:train:0`)"), "{error}");
    let live = RunOperation::SaveForSampler {
        target: SamplerTarget::Live(SamplingSessionId::new("s:sample:0")),
        ttl_seconds: None,
        user_metadata: BTreeMap::new(),
    };
    assert_eq!(full.ask(RUN, live).await.unwrap_err().code, ErrorCode::Unsupported);
    full.forward_backward().await;
    full.ask(RUN, RunOperation::Unload).await.unwrap();
    full.ask("s:train:1", create(true)).await.unwrap();

    let mut lora = House::open("qwen2", TrainMode::Lora, Precision::Float32).await;
    let error = lora.ask(RUN, create(true)).await.unwrap_err();
    assert!(error.to_string().contains("full fine-tuning"), "{error}");
}
