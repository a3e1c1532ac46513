//! What a run computes has the same bits alone and beside any others: in any order of arrival, any packing, any mix of
//! ranks, modules, losses, lengths and optimizer settings. And whatever fails beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use proptest::prelude::*;
use tch::Device;
use tempfile::TempDir;
use tower::{Service, ServiceExt};
use twinkle_core::Result;
use twinkle_core::call::{
    AdamParams, Call, CreateRun, ForwardBackwardOutcome, ForwardOptions, GraphArgument, GraphInput, GraphNode,
    LoraSpec, LossGraph, LossSpec, NodeKind, Operation, Position, Reply, RunCall, RunOperation, RunOutcome,
};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::engine::supervisor::RestartPolicy;
use twinkle_core::ids::{RunId, TenantId};
use twinkle_core::state::StateStore;
use twinkle_model::backend::{Backend, Transformers};
use twinkle_model::engine::EngineLimits;
use twinkle_model::losses::native::is_native;
use twinkle_model::memory::MemoryLimits;
use twinkle_model::pass::{Found, Participant, Way};
use twinkle_model::run::Run;
use twinkle_model::{ModelComponent, ModelContext};
use twinkle_nn::{BaseModel, LoadOptions, Precision, PublishedAdapters};

const MODEL: &str = "tiny";
/// A pass for everything that one run of these tests can have waiting.
const LARGE_PASS: usize = 4096;

fn load(fixture: &str, precision: Precision) -> Arc<BaseModel> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures").join(fixture);
    let options = LoadOptions { precision, device: Device::Cpu, row_tile: 64 };
    Arc::new(BaseModel::load(&folder, &options).unwrap())
}

/// One of each kind of layer: attention, experts, linear attention.
const VARIANTS: [(&str, Precision); 6] = [
    ("qwen3", Precision::Float32),
    ("qwen3", Precision::BFloat16),
    ("llama3_tied", Precision::BFloat16),
    ("qwen3_moe", Precision::BFloat16),
    ("qwen3_5", Precision::Float32),
    ("qwen3_5_moe", Precision::BFloat16),
];

static BASES: LazyLock<[Arc<BaseModel>; VARIANTS.len()]> =
    LazyLock::new(|| VARIANTS.map(|(fixture, precision)| load(fixture, precision)));

/// The real backend behind a gate, which counts and can be told to fail.
#[derive(Default)]
struct Gated {
    is_open: Mutex<bool>,
    opened: Condvar,
    /// Runs and rows of each pass.
    passes: Mutex<Vec<Vec<TenantId>>>,
    /// Passes with this tenant panic.
    poison: Mutex<Option<TenantId>>,
}

impl Gated {
    fn open(&self) {
        *self.is_open.lock() = true;
        self.opened.notify_all();
    }
}

impl Backend for Gated {
    fn probe(&self, base: &BaseModel) -> Result<()> {
        Transformers.probe(base)
    }

    fn pass(&self, base: &BaseModel, participants: &mut [Participant<'_>], way: Way) -> Result<Vec<Vec<Found>>> {
        let mut is_open = self.is_open.lock();
        while !*is_open {
            self.opened.wait(&mut is_open);
        }
        drop(is_open);
        let tenants: Vec<TenantId> = participants.iter().map(|participant| participant.run.tenant.clone()).collect();
        let is_poisoned = self.poison.lock().as_ref().is_some_and(|poison| tenants.contains(poison));
        self.passes.lock().push(tenants);
        let found = Transformers.pass(base, participants, way)?;
        assert!(!is_poisoned, "scripted panic");
        Ok(found)
    }

    fn optimizer_step(&self, run: &mut Run, settings: &AdamParams) -> Result<f64> {
        Transformers.optimizer_step(run, settings)
    }
}

struct House {
    component: ModelComponent,
    backend: Arc<Gated>,
    sequence: u64,
    _folder: TempDir,
}

type Answer = tokio::task::JoinHandle<Result<Reply>>;

impl House {
    async fn new(base: &Arc<BaseModel>, rows_per_pass: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let limits = EngineLimits {
            max_length: 512,
            rows_per_pass,
            max_runs: None,
            memory: MemoryLimits::NONE,
            train_mode: twinkle_core::config::TrainMode::Lora,
            max_rank: 16,
            snapshot_after: Duration::from_hours(1),
        };
        let context = ModelContext {
            base_model: MODEL.to_owned(),
            base: Arc::clone(base),
            published: PublishedAdapters::new(folder.path().join("live")),
            checkpoints: CheckpointStore::new(folder.path().join("checkpoints")),
            store: StateStore::open_in_memory().await.unwrap(),
            snapshots: folder.path().join("snapshots"),
            limits,
        };
        let backend = Arc::new(Gated::default());
        let shared = Arc::<Gated>::clone(&backend);
        let component = ModelComponent::with_backend(context, shared, RestartPolicy::default()).unwrap();
        Self { component, backend, sequence: 0, _folder: folder }
    }

    /// Puts an operation in line.
    async fn submit(&mut self, tenant: usize, operation: RunOperation) -> Answer {
        self.sequence += 1;
        let position = Position { after: self.sequence, arrival: 0 };
        let run = RunId::new(format!("tenant-{tenant}:train:0"));
        let call = RunCall { run, sequence: Some(self.sequence), position, operation };
        let call = Call { tenant: name(tenant), operation: Operation::Run(call) };
        tokio::spawn(self.component.ready().await.unwrap().call(call))
    }
}

fn name(tenant: usize) -> TenantId {
    TenantId::new(format!("tenant-{tenant}"))
}

/// Everything a tenant does.
#[derive(Clone, Debug)]
struct Script {
    lora: LoraSpec,
    operations: Vec<RunOperation>,
}

impl Script {
    fn creation(&self) -> RunOperation {
        let lora = self.lora.clone();
        let create = CreateRun {
            session: None,
            accumulation_steps: None,
            base_model: MODEL.to_owned(),
            lora,
            from: None,
            user_metadata: BTreeMap::new(),
        };
        RunOperation::Create(create)
    }
}

/// Every tenant's results, in the order of its operations; `order` says whose operation arrives next.
async fn results(
    base: &Arc<BaseModel>,
    rows_per_pass: usize,
    scripts: &[(usize, &Script)],
    order: &[usize],
    poison: Option<usize>,
) -> (Vec<Vec<Result<RunOutcome>>>, Arc<Gated>) {
    let mut house = House::new(base, rows_per_pass).await;
    *house.backend.poison.lock() = poison.map(name);
    let mut answers: Vec<Vec<Answer>> = Vec::new();
    for (tenant, script) in scripts {
        answers.push(vec![house.submit(*tenant, script.creation()).await]);
    }
    let mut next = vec![0; scripts.len()];
    let every = scripts.iter().map(|(_, script)| script.operations.len()).sum::<usize>();
    let turns = order.iter().copied().chain(0..).map(|turn| turn % scripts.len());
    for place in turns {
        if next.iter().sum::<usize>() == every {
            break;
        }
        let (tenant, script) = scripts[place];
        if let Some(operation) = script.operations.get(next[place]) {
            next[place] += 1;
            answers[place].push(house.submit(tenant, operation.clone()).await);
        }
    }
    house.backend.open();
    let mut results = Vec::new();
    for answers in answers {
        let mut of_tenant = Vec::new();
        for answer in answers {
            of_tenant.push(answer.await.unwrap().map(|reply| match reply {
                Reply::Run(outcome) => outcome,
                other => panic!("{other:?}"),
            }));
        }
        results.push(of_tenant);
    }
    (results, Arc::clone(&house.backend))
}

async fn alone(base: &Arc<BaseModel>, tenant: usize, script: &Script) -> Vec<Result<RunOutcome>> {
    results(base, LARGE_PASS, &[(tenant, script)], &[], None).await.0.remove(0)
}

fn logprobs_of(loss: &str) -> bool {
    !matches!(loss, "cross_entropy" | "custom") && !is_native(loss)
}

/// `Σ exp(t / 2)`: it needs all logprobs of the request before it has a derivative.
fn custom_graph() -> LossGraph {
    let node = |op, name: &str, target: &str, args| GraphNode {
        op,
        name: name.to_owned(),
        target: target.to_owned(),
        args,
        kwargs: BTreeMap::new(),
    };
    let of = |name: &str| GraphArgument::Node(name.to_owned());
    let returned = GraphArgument::Tuple(vec![of("total"), GraphArgument::Dict(BTreeMap::new())]);
    LossGraph {
        name: "halves".to_owned(),
        inputs: vec![GraphInput { name: "logprobs".to_owned(), rank: 1 }],
        nodes: vec![
            node(NodeKind::Placeholder, "logprobs", "logprobs", vec![]),
            node(NodeKind::CallMethod, "half", "mul", vec![of("logprobs"), GraphArgument::Float(0.5)]),
            node(NodeKind::CallMethod, "grown", "exp", vec![of("half")]),
            node(NodeKind::CallMethod, "total", "sum", vec![of("grown")]),
            node(NodeKind::Output, "output", "output", vec![returned]),
        ],
    }
}

fn datum(length: usize, seed: u64, loss: &str) -> Datum {
    // A small generator, so that a failing case is shown by a few numbers.
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let tokens: Vec<u32> = (0..length).map(|_| next(250) as u32).collect();
    let targets: Vec<i64> = (0..length).map(|_| next(250) as i64).collect();
    let mut loss_inputs = BTreeMap::from([("target_tokens".to_owned(), TensorData::ints(targets))]);
    if logprobs_of(loss) {
        let logprobs = (0..length).map(|_| -3.0 - next(400) as f32 / 100.0).collect();
        let advantages = (0..length).map(|_| (next(200) as f32 - 100.0) / 100.0).collect();
        loss_inputs.insert("logprobs".to_owned(), TensorData::floats(logprobs));
        loss_inputs.insert("advantages".to_owned(), TensorData::floats(advantages));
        if loss == "gspo" {
            loss_inputs.insert("sequence_ratio_mask".to_owned(), TensorData::floats(vec![1.0; length]));
        }
    } else if loss == "cross_entropy" {
        // Prompt tokens do not count.
        let weights = (0..length).map(|place| if place < length / 3 { 0.0 } else { 0.5 }).collect();
        loss_inputs.insert("weights".to_owned(), TensorData::floats(weights));
    } else if matches!(loss, "GRPOLoss" | "GSPOLoss" | "DPOLoss") {
        for (name, least) in [("old_logps", -7.0), ("ref_logps", -7.0), ("advantages", -1.0)] {
            let values = (0..length).map(|_| least + next(200) as f32 / 100.0).collect();
            loss_inputs.insert(name.to_owned(), TensorData::floats(values));
        }
    } else if loss == "GKDLoss" {
        let table = |values: Vec<i64>| TensorData { shape: vec![length, 3], ..TensorData::ints(values) };
        let teacher = (0..3 * length).map(|_| -(next(400) as f32) / 100.0).collect();
        let teacher = TensorData { shape: vec![length, 3], ..TensorData::floats(teacher) };
        let targets = (0..3 * length).map(|_| next(250) as i64).collect();
        loss_inputs.insert("target_tokens".to_owned(), table(targets));
        loss_inputs.insert("teacher_logprobs".to_owned(), teacher);
    } else if loss == "InfonceLoss" {
        loss_inputs.insert("label".to_owned(), TensorData::floats(vec![(seed % 2) as f32]));
    }
    Datum { tokens, loss_inputs }
}

fn forward_backward(loss: &str, lengths: &[usize], seed: u64, backward: bool) -> RunOperation {
    // Pairs for those that need them, the first of an odd number.
    let (lengths, first) = match loss {
        "DPOLoss" | "InfonceLoss" => ([lengths, lengths].concat(), seed | 1),
        _ => (lengths.to_vec(), seed),
    };
    let data = lengths.iter().zip(first..).map(|(length, seed)| datum(*length, seed, loss)).collect();
    let graph = (loss == "custom").then(|| custom_graph().into());
    let mut spec = LossSpec { graph, ..LossSpec::named(loss) };
    if matches!(loss, "GRPOLoss" | "GSPOLoss") && seed.is_multiple_of(3) {
        spec.config = [("entropy_coef", 0.3), ("beta", 0.2)].map(|(name, value)| (name.to_owned(), value)).into();
    }
    let mut options = ForwardOptions::default();
    if is_native(loss) {
        options.temperature = [1.0, 0.7, 1.6][(seed % 3) as usize];
        // Embeddings have no targets, hence no entropies.
        options.outputs.entropies = loss != "InfonceLoss" && seed.is_multiple_of(5);
        options.outputs.embeddings = seed.is_multiple_of(4);
        options.disable_lora = !backward && seed.is_multiple_of(2);
    }
    RunOperation::ForwardBackward { data, loss: spec, backward, options }
}

fn lora() -> impl Strategy<Value = LoraSpec> {
    let modules = prop_oneof![
        Just((true, true, true)),
        Just((true, false, false)),
        Just((false, true, false)),
        Just((false, false, true)),
        Just((true, true, false)),
    ];
    (1_u32..=16, 0_u64..1000, modules).prop_map(|(rank, seed, (train_attn, train_mlp, train_unembed))| LoraSpec {
        rank,
        alpha: f64::from(rank) * 1.5,
        seed,
        train_attn,
        train_mlp,
        train_unembed,
        ..LoraSpec::default()
    })
}

fn operation() -> impl Strategy<Value = RunOperation> {
    let loss = prop::sample::select(vec![
        "cross_entropy",
        "importance_sampling",
        "ppo",
        "cispo",
        "dro",
        "gspo",
        "custom",
        "GRPOLoss",
        "GSPOLoss",
        "DPOLoss",
        "GKDLoss",
        "InfonceLoss",
    ]);
    let lengths = prop::collection::vec(prop_oneof![3 => 1_usize..40, 1 => 60_usize..150], 1..5);
    prop_oneof![
        3 => (loss, lengths, any::<u32>(), prop::bool::weighted(0.8))
            .prop_map(|(loss, lengths, seed, backward)| forward_backward(loss, &lengths, seed.into(), backward)),
        1 => (1e-3_f64..5e-2, prop_oneof![Just(0.0), Just(0.5)], prop_oneof![Just(0.0), Just(0.1)]).prop_map(
            |(learning_rate, grad_clip_norm, weight_decay)| {
                let settings = AdamParams { learning_rate, grad_clip_norm, weight_decay, ..AdamParams::default() };
                RunOperation::OptimStep(settings)
            }
        ),
    ]
}

/// Any operations, and at the end a step and a forward that shows what became of the weights.
fn script() -> impl Strategy<Value = Script> {
    (lora(), prop::collection::vec(operation(), 1..6)).prop_map(|(lora, mut operations)| {
        operations.push(RunOperation::OptimStep(AdamParams { learning_rate: 1e-2, ..AdamParams::default() }));
        operations.push(forward_backward("cross_entropy", &[33, 7], 99, false));
        Script { lora, operations }
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_run_has_the_same_bits_alone_and_beside_any_others(
        base in 0..VARIANTS.len(),
        scripts in prop::collection::vec(script(), 2..5),
        order in prop::collection::vec(0_usize..5, 0..20),
        rows_per_pass in prop_oneof![Just(48_usize), Just(200), Just(700), Just(LARGE_PASS)],
    ) {
        let base = &BASES[base];
        runtime().block_on(async {
            let numbered: Vec<(usize, &Script)> = scripts.iter().enumerate().collect();
            let (together, _) = results(base, rows_per_pass, &numbered, &order, None).await;
            for (tenant, script) in numbered {
                let expected = alone(base, tenant, script).await;
                prop_assert!(expected.iter().all(Result::is_ok), "{expected:?}");
                prop_assert_eq!(&together[tenant], &expected);
            }
            Ok(())
        })?;
    }

    #[test]
    fn whoever_fails_in_a_shared_pass_fails_alone(
        base in 0..VARIANTS.len(),
        scripts in prop::collection::vec(script(), 2..4),
        order in prop::collection::vec(0_usize..4, 0..20),
        panics in any::<bool>(),
    ) {
        let base = &BASES[base];
        runtime().block_on(async {
            let mut guilty = scripts[0].clone();
            if !panics {
                // Its ratio overflows where it counts.
                let mut data = vec![datum(20, 1, "importance_sampling")];
                let logprobs = TensorData::floats(vec![-300.0; 20]);
                data[0].loss_inputs.insert("logprobs".to_owned(), logprobs);
                let loss = LossSpec::named("importance_sampling");
                let options = ForwardOptions::default();
                guilty.operations.insert(0, RunOperation::ForwardBackward { data, loss, backward: true, options });
            }
            let mut numbered: Vec<(usize, &Script)> = scripts.iter().enumerate().collect();
            numbered[0].1 = &guilty;
            let poison = panics.then_some(0);
            let (together, backend) = results(base, LARGE_PASS, &numbered, &order, poison).await;
            for (tenant, script) in numbered.iter().skip(1) {
                prop_assert_eq!(&together[*tenant], &alone(base, *tenant, script).await);
            }
            if panics {
                let passes = backend.passes.lock();
                let of_guilty = || passes.iter().filter(|tenants| tenants.contains(&name(0)));
                prop_assert_eq!(of_guilty().next_back().map_or(1, Vec::len), 1, "it was left to itself in the end");
            } else {
                // Creation, the failure, and then as if it had not been sent.
                let failure = together[0][1].as_ref().unwrap_err();
                prop_assert!(failure.code.is_users_fault() && failure.message.contains("nothing was accumulated"));
                let mut others = together[0].clone();
                drop(others.remove(1));
                prop_assert_eq!(others, alone(base, 0, &scripts[0]).await);
            }
            Ok(())
        })?;
    }
}

fn small_script(tenant: usize) -> Script {
    let lora = LoraSpec { rank: 1 + tenant as u32, seed: tenant as u64, ..LoraSpec::default() };
    let step = RunOperation::OptimStep(AdamParams { learning_rate: 1e-2, ..AdamParams::default() });
    let operations = vec![
        forward_backward("cross_entropy", &[20, 12], tenant as u64, true),
        step.clone(),
        forward_backward("ppo", &[9, 30], tenant as u64, true),
        step,
    ];
    Script { lora, operations }
}

/// The outcomes of passes among results.
fn passes_of(results: &[Result<RunOutcome>]) -> Vec<&ForwardBackwardOutcome> {
    let found = results.iter().filter_map(|result| match result {
        Ok(RunOutcome::ForwardBackward(found)) => Some(found),
        _ => None,
    });
    found.collect()
}

#[tokio::test]
async fn eight_tenants_share_each_pass() {
    let scripts: Vec<Script> = (0..8).map(small_script).collect();
    let numbered: Vec<(usize, &Script)> = scripts.iter().enumerate().collect();
    let (together, backend) = results(&BASES[0], LARGE_PASS, &numbered, &[], None).await;
    for (tenant, script) in numbered {
        let expected = alone(&BASES[0], tenant, script).await;
        assert_eq!(passes_of(&together[tenant]).len(), 2);
        assert_eq!(together[tenant], expected);
    }
    let passes = backend.passes.lock();
    // The engine took the first operation as soon as it came; everybody else's was there when the gate opened.
    assert_eq!(passes.last().unwrap().len(), 8, "{passes:?}");
    assert!(passes.len() <= 4, "{passes:?}");
}

#[tokio::test]
async fn a_small_step_waits_for_one_pass_of_a_tenant_with_a_long_operation() {
    let long = Script {
        lora: LoraSpec { rank: 4, ..LoraSpec::default() },
        operations: vec![forward_backward("cross_entropy", &[100; 60], 5, true)],
    };
    let small = small_script(1);
    let scripts = [(0, &long), (1, &small)];
    // The long operation is in its first pass before the small tenant's come.
    let (together, backend) = results(&BASES[0], 400, &scripts, &[0], None).await;
    for (tenant, script) in scripts {
        assert_eq!(together[tenant], alone(&BASES[0], tenant, script).await);
    }
    let passes = backend.passes.lock();
    let of_small: Vec<usize> = (0..passes.len()).filter(|place| passes[*place].contains(&name(1))).collect();
    assert_eq!(of_small.len(), 2, "its two steps: {passes:?}");
    assert!(of_small[0] <= 1 && of_small[1] <= 2, "{passes:?}");
    assert!(passes.len() > 15);
}
