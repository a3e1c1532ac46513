//! What a failing device costs: nothing that was accepted, and no bit of any run.
//!
//! The node of these tests is the journal over the real component; its backend fails where the test says so.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tch::Device;
use tokio::sync::mpsc;
use tower::Service;
use twinkle_core::call::{
    AdamParams, Call, CreateRun, ForwardBackwardOutcome, ForwardOptions, LoraSpec, LossSpec, Operation, Position,
    Reply, RunCall, RunOperation, RunOutcome, SessionRecord,
};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{BoxComponent, Component, Health, Lifecycle};
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::engine::supervisor::RestartPolicy;
use twinkle_core::futures::{Futures, FuturesOptions, Outcome, Waited};
use twinkle_core::ids::{RequestId, RunId, SessionId, TenantId};
use twinkle_core::middleware::journal::{Journal, JournalOptions};
use twinkle_core::state::StateStore;
use twinkle_core::{Error, ErrorCode, Result};
use twinkle_model::backend::{Backend, Transformers};
use twinkle_model::engine::EngineLimits;
use twinkle_model::memory::MemoryLimits;
use twinkle_model::pass::{Found, Participant, Way};
use twinkle_model::run::Run;
use twinkle_model::{ModelComponent, ModelContext};
use twinkle_nn::{BaseModel, LoadOptions, Precision, PublishedAdapters};

const MODEL: &str = "tiny/qwen3";
const STEPS: u64 = 3;

/// What a test lets go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A panic in the middle of an operation, with the run's tensors half changed.
    Panic,
    /// The same, because memory ran out.
    OutOfMemory,
    /// The device is lost, as CUDA tells it, with the run's tensors half changed.
    DeviceLost,
    /// Waits until the test lets it go on.
    Gate,
    /// Nothing.
    Nothing,
}

/// The real backend, except where a fault is planned.
#[derive(Default)]
struct Faulty {
    /// By tenant and learning rate: the next faults of that step.
    planned: Mutex<HashMap<(String, u64), Vec<Fault>>>,
    /// By tenant: the next faults of passes with a run of it.
    in_passes: Mutex<HashMap<String, Vec<Fault>>>,
    /// Whose runs were in each pass that was begun.
    passes: Mutex<Vec<Vec<TenantId>>>,
    /// The next answers of the probe.
    dead_probes: Mutex<u32>,
    gate: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    /// Told when an operation has come to the gate.
    at_gate: Mutex<Option<mpsc::UnboundedSender<()>>>,
}

impl Faulty {
    /// The optimizer step with this learning rate fails like this, once for each fault.
    fn plan(&self, tenant: &str, learning_rate: f64, faults: &[Fault]) {
        let key = (tenant.to_owned(), learning_rate.to_bits());
        self.planned.lock().insert(key, faults.to_vec());
    }

    /// The next passes with this tenant's run fail like this, one for each fault.
    fn plan_in_passes(&self, tenant: &str, faults: &[Fault]) {
        self.in_passes.lock().insert(tenant.to_owned(), faults.to_vec());
    }

    /// How many runs shared the passes of this tenant's run.
    fn runs_in_passes_of(&self, tenant: &str) -> Vec<usize> {
        let tenant = TenantId::new(tenant);
        let passes = self.passes.lock();
        passes.iter().filter(|tenants| tenants.contains(&tenant)).map(Vec::len).collect()
    }

    /// Operations stop at the gate; returned are who is told of it, and what opens it.
    fn close_gate(&self) -> (mpsc::UnboundedReceiver<()>, std::sync::mpsc::Sender<()>) {
        let (open, gate) = std::sync::mpsc::channel();
        let (sender, at_gate) = mpsc::unbounded_channel();
        *self.gate.lock() = Some(gate);
        *self.at_gate.lock() = Some(sender);
        (at_gate, open)
    }

    fn next(&self, run: &Run, learning_rate: f64) -> Option<Fault> {
        let key = (run.tenant.as_str().to_owned(), learning_rate.to_bits());
        let mut planned = self.planned.lock();
        let faults = planned.get_mut(&key)?;
        if faults.is_empty() { None } else { Some(faults.remove(0)) }
    }

    /// What goes wrong in the next pass with a run of this tenant.
    fn next_in_pass(&self, tenant: &TenantId) -> Option<Fault> {
        let mut planned = self.in_passes.lock();
        let faults = planned.get_mut(tenant.as_str())?;
        if faults.is_empty() { None } else { Some(faults.remove(0)) }
    }

    fn fail(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Panic => panic!("scripted panic"),
            Fault::OutOfMemory => panic!("CUDA out of memory. Tried to allocate 2.00 GiB"),
            Fault::DeviceLost => return Err(Error::internal("CUDA error: device-side assert triggered")),
            Fault::Gate => self.wait_at_gate(),
            Fault::Nothing => {}
        }
        Ok(())
    }

    fn wait_at_gate(&self) {
        if let Some(sender) = self.at_gate.lock().as_ref() {
            let _ = sender.send(());
        }
        let gate = self.gate.lock().take();
        if let Some(gate) = gate {
            let _ = gate.recv();
        }
    }
}

impl Backend for Faulty {
    fn probe(&self, base: &BaseModel) -> Result<()> {
        let mut dead = self.dead_probes.lock();
        if *dead > 0 {
            *dead -= 1;
            return Err(Error::internal("CUDA error: still lost"));
        }
        Transformers.probe(base)
    }

    fn pass(&self, base: &BaseModel, participants: &mut [Participant<'_>], way: Way) -> Result<Vec<Vec<Found>>> {
        self.passes.lock().push(participants.iter().map(|participant| participant.run.tenant.clone()).collect());
        for participant in participants.iter_mut() {
            let Some(fault) = self.next_in_pass(&participant.run.tenant) else { continue };
            if !matches!(fault, Fault::Gate | Fault::Nothing) {
                let _ = participant.run.gradients.flat_mut().fill_(7.0);
            }
            self.fail(fault)?;
        }
        Transformers.pass(base, participants, way)
    }

    fn optimizer_step(&self, run: &mut Run, settings: &AdamParams) -> Result<f64> {
        let fault = self.next(run, settings.learning_rate);
        if matches!(fault, Some(Fault::Panic | Fault::OutOfMemory | Fault::DeviceLost)) {
            let _ = run.parameters.fill_(7.0);
        }
        if let Some(fault) = fault {
            self.fail(fault)?;
        }
        Transformers.optimizer_step(run, settings)
    }
}

/// A node of one model: store, journal, component and faulty backend.
struct Node {
    backend: Arc<Faulty>,
    component: ModelComponent,
    futures: Futures,
    journal: Journal,
    store: StateStore,
}

impl Node {
    async fn open(folder: &Path, limits: EngineLimits) -> Self {
        let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/qwen3");
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
    async fn with_runs(folder: &Path, limits: EngineLimits, tenants: &[&str]) -> Self {
        let node = Self::open(folder, limits).await;
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
            node.result(tenant, &node.submit(tenant, None, creation()).await).await.unwrap();
        }
        node
    }

    async fn submit(&self, tenant: &str, sequence: Option<u64>, operation: RunOperation) -> RequestId {
        let call = RunCall { run: run(tenant), sequence, position: Position::default(), operation };
        let call = Call { tenant: TenantId::new(tenant), operation: Operation::Run(call) };
        match self.journal.clone().call(call).await.unwrap() {
            Reply::Accepted(request) => request,
            other => panic!("{other:?} instead of a request id"),
        }
    }

    /// A forward-backward and an optimizer step for each of `steps`, accepted without waiting for results.
    async fn submit_steps(&self, tenant: &str, steps: std::ops::RangeInclusive<u64>) -> Vec<RequestId> {
        let mut requests = Vec::new();
        for step in steps {
            requests.push(self.submit(tenant, Some(2 * step - 1), forward_backward(step)).await);
            requests.push(self.submit(tenant, Some(2 * step), optim_step(step)).await);
        }
        requests
    }

    async fn result(&self, tenant: &str, request: &RequestId) -> Result<RunOutcome> {
        match self.futures.wait(&TenantId::new(tenant), request, Duration::from_mins(1)).await {
            Waited::Done(result) => match result.as_ref() {
                Ok(Outcome::Run(outcome)) => Ok(outcome.clone()),
                Ok(other) => panic!("{other:?} is no training result"),
                Err(error) => Err(error.clone()),
            },
            other => panic!("{other:?} instead of a result of `{request}`"),
        }
    }

    async fn results(&self, tenant: &str, requests: &[RequestId]) -> Vec<Result<RunOutcome>> {
        let mut results = Vec::new();
        for request in requests {
            results.push(self.result(tenant, request).await);
        }
        results
    }

    /// What the run computes now, to the last bit.
    async fn logprobs(&self, tenant: &str) -> ForwardBackwardOutcome {
        let RunOperation::ForwardBackward { data, loss, .. } = forward_backward(1) else { unreachable!() };
        let forward = RunOperation::ForwardBackward { data, loss, backward: false, options: ForwardOptions::default() };
        match self.result(tenant, &self.submit(tenant, None, forward).await).await {
            Ok(RunOutcome::ForwardBackward(outcome)) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn status(&self) -> serde_json::Value {
        self.component.status()
    }

    /// As the launcher stops a node: the journal first, which gives up waiting after its limit; then the component.
    async fn stop_during_an_operation(&self, open: std::sync::mpsc::Sender<()>) {
        self.journal.drain(Duration::from_millis(10)).await;
        let component = self.component.clone();
        let draining = tokio::spawn(async move { component.drain(Duration::ZERO).await });
        while self.component.health() != Health::Draining {
            tokio::task::yield_now().await;
        }
        drop(open);
        draining.await.unwrap();
    }

    async fn stop(self) {
        self.component.drain(Duration::from_secs(10)).await;
        self.store.close().await;
    }
}

fn run(tenant: &str) -> RunId {
    RunId::of_session(&SessionId::new(tenant), 0)
}

/// Snapshots practically never, or after every operation.
fn limits(snapshot_after: Duration) -> EngineLimits {
    let memory = MemoryLimits::NONE;
    EngineLimits {
        max_length: 256,
        rows_per_pass: 512,
        max_runs: None,
        memory,
        train_mode: twinkle_core::config::TrainMode::Lora,
        max_rank: 16,
        snapshot_after,
    }
}

const NEVER: Duration = Duration::from_hours(1);

fn creation() -> RunOperation {
    let lora = LoraSpec {
        rank: 4,
        alpha: 32.0,
        seed: 3,
        train_attn: true,
        train_mlp: true,
        train_unembed: true,
        ..LoraSpec::default()
    };
    RunOperation::Create(CreateRun {
        session: None,
        accumulation_steps: None,
        base_model: MODEL.to_owned(),
        lora,
        from: None,
        user_metadata: BTreeMap::new(),
    })
}

fn forward_backward(step: u64) -> RunOperation {
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
fn rate(step: u64) -> f64 {
    1e-2 * step as f64
}

fn optim_step(step: u64) -> RunOperation {
    RunOperation::OptimStep(AdamParams { learning_rate: rate(step), ..AdamParams::default() })
}

/// Every result of an undisturbed run whose steps are these, and its logprobs afterwards. Steps that are left out are
/// submitted as forward-backward only.
async fn undisturbed(without_step: Option<u64>) -> (Vec<Result<RunOutcome>>, ForwardBackwardOutcome) {
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

/// A panic in an operation of alice's is this error, everything else is as if it had not been sent.
async fn a_failed_step(snapshot_after: Duration, fault: Fault) -> Error {
    let (expected, expected_logprobs) = undisturbed(Some(2)).await;
    let (expected_of_bob, logprobs_of_bob) = undisturbed(None).await;
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_runs(folder.path(), limits(snapshot_after), &["alice", "bob"]).await;
    node.backend.plan("alice", rate(2), &[fault]);
    let of_alice = node.submit_steps("alice", 1..=STEPS).await;
    let of_bob = node.submit_steps("bob", 1..=STEPS).await;

    let mut results = node.results("alice", &of_alice).await;
    let failure = results.remove(3).unwrap_err();
    assert_eq!(results, expected);
    assert_eq!(node.logprobs("alice").await, expected_logprobs);
    assert_eq!(node.results("bob", &of_bob).await, expected_of_bob);
    assert_eq!(node.logprobs("bob").await, logprobs_of_bob);
    assert_eq!(node.component.health(), Health::Ready);
    assert_eq!(node.status()["restarts"], 0, "the engine lives on");
    node.stop().await;

    // The failure is in the journal, so the next start leaves it out as well.
    let node = Node::open(folder.path(), limits(NEVER)).await;
    assert_eq!(node.logprobs("alice").await, expected_logprobs);
    assert_eq!(node.result("alice", &of_alice[3]).await.unwrap_err(), failure);
    node.stop().await;
    failure
}

#[tokio::test]
async fn a_panic_fails_one_operation_and_its_run_goes_on_in_the_same_bits() {
    let failure = a_failed_step(NEVER, Fault::Panic).await;
    assert_eq!(failure.code, ErrorCode::Internal);
    assert!(failure.message.contains("scripted panic") && failure.hint.is_some(), "{failure}");
}

#[tokio::test]
async fn a_run_with_a_snapshot_is_rebuilt_from_it_after_a_panic() {
    a_failed_step(Duration::ZERO, Fault::Panic).await;
}

#[tokio::test]
async fn too_little_memory_fails_one_operation_with_a_hint_and_leaves_the_run_intact() {
    let failure = a_failed_step(NEVER, Fault::OutOfMemory).await;
    assert_eq!(failure.code, ErrorCode::ResourceExhausted);
    assert!(failure.to_string().contains("smaller batch"), "{failure}");
}

#[tokio::test]
async fn a_lost_device_fails_nothing_and_every_run_ends_in_the_same_bits() {
    let (expected, expected_logprobs) = undisturbed(None).await;
    for snapshot_after in [NEVER, Duration::ZERO] {
        let folder = tempfile::tempdir().unwrap();
        let tenants = ["alice", "bob", "carol"];
        let node = Node::with_runs(folder.path(), limits(snapshot_after), &tenants).await;
        node.backend.plan("alice", rate(1), &[Fault::DeviceLost]);
        node.backend.plan("bob", rate(3), &[Fault::DeviceLost]);
        *node.backend.dead_probes.lock() = 2;
        let mut requests = Vec::new();
        for tenant in tenants {
            requests.push((tenant, node.submit_steps(tenant, 1..=STEPS).await));
        }
        for (tenant, requests) in &requests {
            assert_eq!(node.results(tenant, requests).await, expected, "{tenant}");
        }
        for tenant in tenants {
            assert_eq!(node.logprobs(tenant).await, expected_logprobs, "{tenant}");
        }
        assert_eq!(node.component.health(), Health::Ready);
        let status = node.status();
        assert_eq!((&status["state"], &status["restarts"]), (&"ready".into(), &4.into()));
        assert_eq!(status["runs_in_memory"], 3);
        node.stop().await;
    }
}

#[tokio::test]
async fn an_operation_that_takes_the_engine_with_it_twice_is_given_up_and_the_others_go_on() {
    let (expected, expected_logprobs) = undisturbed(Some(2)).await;
    let (expected_of_bob, _) = undisturbed(None).await;
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_runs(folder.path(), limits(NEVER), &["alice", "bob"]).await;
    node.backend.plan("alice", rate(2), &[Fault::DeviceLost; 10]);
    let of_alice = node.submit_steps("alice", 1..=STEPS).await;
    let of_bob = node.submit_steps("bob", 1..=STEPS).await;

    let mut results = node.results("alice", &of_alice).await;
    let failure = results.remove(3).unwrap_err();
    assert_eq!(failure.code, ErrorCode::Internal);
    assert!(failure.message.contains("poison operation") && failure.message.contains("optim_step"), "{failure}");
    assert_eq!(results, expected);
    assert_eq!(node.logprobs("alice").await, expected_logprobs);
    assert_eq!(node.results("bob", &of_bob).await, expected_of_bob);
    assert_eq!(node.status()["restarts"], 2);
    node.stop().await;
}

#[tokio::test]
async fn runs_that_wait_on_disk_survive_the_engine() {
    let (expected, expected_logprobs) = undisturbed(None).await;
    let folder = tempfile::tempdir().unwrap();
    let tight = EngineLimits { max_runs: Some(1), ..limits(NEVER) };
    let node = Node::with_runs(folder.path(), tight, &["alice", "bob"]).await;
    node.backend.plan("bob", rate(2), &[Fault::DeviceLost]);
    let of_alice = node.submit_steps("alice", 1..=STEPS).await;
    let of_bob = node.submit_steps("bob", 1..=STEPS).await;
    for (tenant, requests) in [("alice", &of_alice), ("bob", &of_bob)] {
        assert_eq!(node.results(tenant, requests).await, expected, "{tenant}");
        assert_eq!(node.logprobs(tenant).await, expected_logprobs, "{tenant}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_stops_during_a_long_operation_parks_it_within_the_bound() {
    let (expected, expected_logprobs) = undisturbed(None).await;
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_runs(folder.path(), limits(NEVER), &["alice"]).await;
    let (mut at_gate, open) = node.backend.close_gate();
    node.backend.plan("alice", rate(2), &[Fault::Gate]);
    let requests = node.submit_steps("alice", 1..=STEPS).await;
    at_gate.recv().await.unwrap();
    assert_eq!(node.status()["current_operation"], "optim_step of run `alice:train:0`");
    assert_eq!(node.component.health(), Health::Ready, "a long operation is work");

    node.stop_during_an_operation(open).await;
    assert_eq!(node.store.latest_snapshot(&run("alice")).await.unwrap().map(|taken| taken.through.after), Some(4));
    for parked in &requests[4..] {
        let waited = node.futures.wait(&TenantId::new("alice"), parked, Duration::ZERO).await;
        assert_eq!(waited, Waited::Pending);
    }
    node.store.close().await;

    let node = Node::open(folder.path(), limits(NEVER)).await;
    assert_eq!(node.journal.recover().await.unwrap(), 1);
    assert_eq!(node.results("alice", &requests).await, expected);
    assert_eq!(node.logprobs("alice").await, expected_logprobs);
    node.stop().await;
}

/// Alice and bob send their steps while the engine is in a pass of carol's, so that they share the next one.
async fn steps_in_shared_passes(node: &Node) -> (Vec<RequestId>, Vec<RequestId>) {
    let (mut at_gate, open) = node.backend.close_gate();
    node.backend.plan_in_passes("carol", &[Fault::Gate]);
    let of_carol = node.submit("carol", Some(1), forward_backward(1)).await;
    at_gate.recv().await.unwrap();
    let requests = (node.submit_steps("alice", 1..=STEPS).await, node.submit_steps("bob", 1..=STEPS).await);
    drop(open);
    node.result("carol", &of_carol).await.unwrap();
    requests
}

#[tokio::test]
async fn a_failure_of_a_shared_pass_that_does_not_come_again_costs_nothing() {
    let (expected, expected_logprobs) = undisturbed(None).await;
    for fault in [Fault::Panic, Fault::OutOfMemory, Fault::DeviceLost] {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::with_runs(folder.path(), limits(NEVER), &["alice", "bob", "carol"]).await;
        node.backend.plan_in_passes("alice", &[fault]);
        let (of_alice, of_bob) = steps_in_shared_passes(&node).await;
        for (tenant, requests) in [("alice", &of_alice), ("bob", &of_bob)] {
            assert_eq!(node.results(tenant, requests).await, expected, "{tenant} {fault:?}");
            assert_eq!(node.logprobs(tenant).await, expected_logprobs, "{tenant} {fault:?}");
        }
        let runs = node.backend.runs_in_passes_of("alice");
        assert_eq!(runs[..2], [2, 1], "shared, and then apart: {runs:?}");
        assert_eq!(node.status()["restarts"], u64::from(fault == Fault::DeviceLost));
        node.stop().await;
    }
}

/// Every result of alice's steps, of which the first forward-backward was not sent, and her logprobs afterwards.
async fn undisturbed_without_the_first_forward_backward() -> (Vec<Result<RunOutcome>>, ForwardBackwardOutcome) {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_runs(folder.path(), limits(NEVER), &["alice"]).await;
    let mut results = Vec::new();
    for step in 1..=STEPS {
        if step > 1 {
            let request = node.submit("alice", None, forward_backward(step)).await;
            results.push(node.result("alice", &request).await);
        }
        let request = node.submit("alice", None, optim_step(step)).await;
        results.push(node.result("alice", &request).await);
    }
    let logprobs = node.logprobs("alice").await;
    node.stop().await;
    (results, logprobs)
}

#[tokio::test]
async fn only_the_guilty_one_of_a_shared_pass_fails() {
    let (expected, expected_logprobs) = undisturbed_without_the_first_forward_backward().await;
    let (expected_of_bob, logprobs_of_bob) = undisturbed(None).await;
    for (fault, sign) in [
        (Fault::Panic, "scripted panic"),
        (Fault::OutOfMemory, "out of memory"),
        (Fault::DeviceLost, "poison operation"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::with_runs(folder.path(), limits(NEVER), &["alice", "bob", "carol"]).await;
        node.backend.plan_in_passes("alice", &[fault; 2]);
        let (of_alice, of_bob) = steps_in_shared_passes(&node).await;
        let mut results = node.results("alice", &of_alice).await;
        let failure = results.remove(0).unwrap_err();
        assert!(failure.to_string().contains(sign), "{failure}");
        assert_eq!(results, expected, "{fault:?}");
        assert_eq!(node.logprobs("alice").await, expected_logprobs, "{fault:?}");
        assert_eq!(node.results("bob", &of_bob).await, expected_of_bob, "{fault:?}");
        assert_eq!(node.logprobs("bob").await, logprobs_of_bob, "{fault:?}");
        assert_eq!(node.component.health(), Health::Ready);
        node.stop().await;

        let node = Node::open(folder.path(), limits(NEVER)).await;
        assert_eq!(node.logprobs("alice").await, expected_logprobs, "after a restart, {fault:?}");
        assert_eq!(node.logprobs("bob").await, logprobs_of_bob, "after a restart, {fault:?}");
        node.stop().await;
    }
}

/// An operation of three passes, where a pass has eight rows.
fn three_passes() -> RunOperation {
    let operations = (1..=3).map(forward_backward);
    let data = operations.flat_map(|operation| match operation {
        RunOperation::ForwardBackward { data, .. } => data,
        _ => Vec::new(),
    });
    let RunOperation::ForwardBackward { loss, backward, options, .. } = forward_backward(1) else { unreachable!() };
    RunOperation::ForwardBackward { data: data.collect(), loss, backward, options }
}

#[tokio::test]
async fn an_operation_that_a_stop_finds_between_its_passes_is_executed_whole_after_the_restart() {
    let small_passes = EngineLimits { rows_per_pass: 8, ..limits(NEVER) };
    let mut expected = Vec::new();
    for interrupted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut node = Node::with_runs(folder.path(), small_passes, &["alice"]).await;
        let mut requests = node.submit_steps("alice", 1..=1).await;
        node.results("alice", &requests).await;
        let (mut at_gate, open) = node.backend.close_gate();
        node.backend.plan_in_passes("alice", &[Fault::Nothing, Fault::Gate]);
        requests.push(node.submit("alice", Some(3), three_passes()).await);
        requests.push(node.submit("alice", Some(4), optim_step(2)).await);
        at_gate.recv().await.unwrap();
        if interrupted {
            node.stop_during_an_operation(open).await;
            let snapshot = node.store.latest_snapshot(&run("alice")).await.unwrap();
            assert_eq!(snapshot.map(|taken| taken.through.after), Some(2), "the state before it");
            node.store.close().await;
            node = Node::open(folder.path(), small_passes).await;
            assert_eq!(node.journal.recover().await.unwrap(), 1);
        } else {
            drop(open);
        }
        let found = (node.results("alice", &requests).await, node.logprobs("alice").await);
        assert!(found.0.iter().all(Result::is_ok), "{found:?}");
        expected.push(found);
        node.stop().await;
    }
    assert_eq!(expected[0], expected[1]);
}
