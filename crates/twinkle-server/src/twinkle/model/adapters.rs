//! A client's adapters: names in its session for runs, with what was set for them.
//!
//! What was set is a record in the store, written before the answer. Requests about one adapter have turns, in the order of
//! their arrival: a client that sends two at once finds them done one after the other, as in the original. In memory alone are
//! the inputs of the last `forward`, which a restart may cost; the counters of metrics are also in the record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract;
use moka::sync::Cache;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use twinkle_core::call::{
    AdapterRecord, AdapterSettings, CreateRun, LoraSpec, RunOperation, RunOutcome, ServeOutcome, ServeRequest,
};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{RunId, SessionId, TenantId};

use super::arguments::{Arguments, accumulation_steps};
use super::counters::Counters;
use super::kept::Kept;
use super::lora;
use super::work::to_the_end;
use crate::tinker::unexpected;
use crate::twinkle::{Answer, Caller, Json, TwinkleFront, ok};

/// Adapters whose counters are kept in memory.
const MOST_REMEMBERED: u64 = 16_384;
/// How long they are kept when nobody asks for them.
const REMEMBERED_FOR: Duration = Duration::from_hours(12);
/// Bytes of the inputs of last forwards, of all adapters together.
const MOST_KEPT: u64 = 512 << 20;
/// How long such inputs are kept.
const KEPT_FOR: Duration = Duration::from_hours(1);
/// Requests that may wait for their turn with one adapter.
const MOST_WAITING: usize = 64;
/// How often the name of a run is tried again for an adapter that had runs before.
const MOST_RUNS: u64 = 10_000;

/// What these routes keep in memory.
pub(crate) struct State {
    memories: Cache<Key, Arc<Memory>>,
    kept: Cache<Key, Arc<Kept>>,
}

type Key = Arc<(TenantId, SessionId, String)>;

impl Default for State {
    fn default() -> Self {
        let weight = |_: &Key, kept: &Arc<Kept>| u32::try_from(kept.bytes()).unwrap_or(u32::MAX);
        Self {
            memories: Cache::builder().max_capacity(MOST_REMEMBERED).time_to_idle(REMEMBERED_FOR).build(),
            kept: Cache::builder().weigher(weight).max_capacity(MOST_KEPT).time_to_idle(KEPT_FOR).build(),
        }
    }
}

/// What is in memory of an adapter.
#[derive(Default)]
struct Memory {
    turns: Turns,
    counters: Mutex<Option<Counters>>,
}

struct Turns {
    semaphore: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Turns {
    fn default() -> Self {
        Self { semaphore: Arc::new(Semaphore::new(1)), waiting: AtomicUsize::new(0) }
    }
}

/// An adapter that has its turn: nothing else happens to it meanwhile.
pub(super) struct Adapter {
    pub(super) tenant: TenantId,
    pub(super) record: AdapterRecord,
    key: Key,
    memory: Arc<Memory>,
    _turn: OwnedSemaphorePermit,
}

/// `POST add_adapter_to_model`
#[derive(Deserialize, JsonSchema)]
pub(super) struct AddAdapter {
    adapter_name: String,
    #[serde(default)]
    config: Option<Value>,
    #[serde(default)]
    save_dir: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Adds an adapter. Asked again with the same configuration, it answers the one that is there.
pub(super) async fn add(
    extract::State(front): extract::State<TwinkleFront>,
    caller: Caller,
    Json(wanted): Json<AddAdapter>,
) -> Answer {
    let run = to_the_end("add_adapter_to_model", async move { front.add_adapter(caller, wanted).await }).await?;
    ok(&json!({ "status": "ok", "adapter_name": run.as_str() }))
}

impl TwinkleFront {
    async fn add_adapter(&self, caller: Caller, wanted: AddAdapter) -> Result<RunId> {
        let AddAdapter { adapter_name, config, save_dir, rest } = wanted;
        let first = RunId::of_adapter(&caller.session, &adapter_name)?;
        if save_dir.is_some_and(|folder| !folder.is_empty()) {
            return Err(Error::unsupported("`save_dir` is not offered: a client cannot choose a folder of the server")
                .hint("leave it out; `get_checkpoint_path` tells where a checkpoint lies"));
        }
        let mut arguments = Arguments::new("add_adapter_to_model", rest);
        let accumulation_steps = accumulation_steps(&mut arguments)?;
        arguments.end()?;
        let lora = lora::spec(config, self.model()?, &first)?;
        let made_with = made_with(&lora, accumulation_steps)?;

        let (key, memory, _turn) = self.turn(&caller, &adapter_name).await?;
        let mut from = 1;
        if let Some(record) = self.adapter_record(&caller, &key).await? {
            match self.run(&caller.tenant, record.run.clone()).await {
                Ok(run) if run.closed => from = number_of(&record.run) + 1,
                Ok(_) if record.settings.made_with == made_with => return Ok(record.run),
                Ok(_) => {
                    return Err(Error::new(
                        ErrorCode::Conflict,
                        format!("adapter `{adapter_name}` exists with another configuration"),
                    )
                    .hint("use another name; the live adapter is as it was"));
                }
                // It was named and then never made: the server stopped, or a limit was reached.
                Err(error) if error.code == ErrorCode::NotFound => from = number_of(&record.run),
                Err(error) => return Err(error),
            }
        }
        let run = self.free_run(&caller.tenant, &first, from).await?;
        // Named first: what a crash leaves is an adapter without a run, which the next request makes.
        let record = AdapterRecord {
            session: caller.session.clone(),
            name: key.2.clone(),
            tenant: caller.tenant.clone(),
            run: run.clone(),
            settings: AdapterSettings { made_with, ..AdapterSettings::default() },
            counters: Vec::new(),
        };
        self.keep(record).await?;
        *memory.counters.lock() = None;
        self.shared.model.kept.invalidate(&key);
        let create = CreateRun {
            session: Some(caller.session),
            base_model: self.model()?.name.clone(),
            lora: LoraSpec { seed: lora::seed_of(&run), ..lora },
            accumulation_steps,
            from: None,
            user_metadata: BTreeMap::from([("adapter_name".to_owned(), adapter_name)]),
        };
        let done = self.perform(&caller.tenant, &run, RunOperation::Create(create)).await?;
        match done.outcome()? {
            RunOutcome::Created { .. } => Ok(run),
            other => Err(unexpected("the model component", other)),
        }
    }

    /// The first name from this number on that no run has. Another adapter of a session that looks alike may have one.
    async fn free_run(&self, tenant: &TenantId, first: &RunId, from: u64) -> Result<RunId> {
        for number in from..from + MOST_RUNS {
            let run = numbered(first, number);
            match self.run(tenant, run.clone()).await {
                Ok(_) => {}
                Err(error) if error.code == ErrorCode::NotFound => return Ok(run),
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorCode::LimitReached, format!("adapter `{first}` was made {MOST_RUNS} times"))
            .hint("use another name"))
    }

    /// The adapter of this name, in its turn.
    pub(super) async fn adapter(&self, caller: &Caller, name: Option<&str>) -> Result<Adapter> {
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
            Error::invalid("`adapter_name` is missing").hint("add an adapter with `add_adapter_to_model` first")
        })?;
        let id = RunId::of_adapter(&caller.session, name)?;
        let absent = || {
            Error::not_found(format!("Adapter {id} not found"))
                .hint("add it with `add_adapter_to_model`; adapters end with their session")
        };
        let (key, memory, turn) = self.turn(caller, name).await?;
        let record = self.adapter_record(caller, &key).await?.ok_or_else(absent)?;
        match self.run(&caller.tenant, record.run.clone()).await {
            Ok(run) if !run.closed => {}
            Ok(_) => return Err(absent()),
            Err(error) if error.code == ErrorCode::NotFound => return Err(absent()),
            Err(error) => return Err(error),
        }
        Ok(Adapter { tenant: caller.tenant.clone(), record, key, memory, _turn: turn })
    }

    async fn turn(&self, caller: &Caller, name: &str) -> Result<(Key, Arc<Memory>, OwnedSemaphorePermit)> {
        // One session may use one name on several models.
        let name = format!("{name}\n{}", self.model()?.name);
        let key: Key = Arc::new((caller.tenant.clone(), caller.session.clone(), name));
        let memory = self.shared.model.memories.get_with(Arc::clone(&key), Arc::default);
        let turns = &memory.turns;
        let waiting = Waiting::of(&turns.waiting)?;
        let turn = Arc::clone(&turns.semaphore).acquire_owned().await;
        drop(waiting);
        let turn = turn.map_err(|_| Error::internal("nobody has a turn any more"))?;
        Ok((key, memory, turn))
    }

    async fn adapter_record(&self, caller: &Caller, key: &Key) -> Result<Option<AdapterRecord>> {
        let request = ServeRequest::DescribeAdapter { session: caller.session.clone(), name: key.2.clone() };
        match self.serve(&caller.tenant, request).await? {
            ServeOutcome::Adapter(record) => Ok(record.map(|record| *record)),
            other => Err(unexpected("the server component", &other)),
        }
    }

    async fn keep(&self, record: AdapterRecord) -> Result<()> {
        let tenant = record.tenant.clone();
        self.serve(&tenant, ServeRequest::KeepAdapter(Box::new(record))).await.map(drop)
    }

    /// Changes what is set for an adapter; durable when this returns.
    pub(super) async fn set(&self, adapter: &mut Adapter, change: impl FnOnce(&mut AdapterSettings)) -> Result<()> {
        let mut record = adapter.record.clone();
        change(&mut record.settings);
        self.keep(record.clone()).await?;
        adapter.record = record;
        Ok(())
    }

    /// Keeps the inputs of a forward for the loss that follows it, in place of earlier ones.
    pub(super) fn keep_forward(&self, adapter: &Adapter, kept: Kept) {
        self.shared.model.kept.insert(Arc::clone(&adapter.key), Arc::new(kept));
    }

    /// The inputs of the last forward.
    pub(super) fn kept_forward(&self, adapter: &Adapter) -> Option<Arc<Kept>> {
        self.shared.model.kept.get(&adapter.key)
    }

    /// The weights change: a forward before that has no loss any more.
    pub(super) fn forget_forward(&self, adapter: &Adapter) {
        self.shared.model.kept.invalidate(&adapter.key);
    }
}

impl Adapter {
    /// Its run.
    pub(super) fn run(&self) -> &RunId {
        &self.record.run
    }

    /// Works with its counters, which begin with the run. What changed is to be kept: [`TwinkleFront::keep_counters`].
    pub(super) fn counters<T>(&self, work: impl FnOnce(&mut Counters) -> T) -> T {
        let mut counters = self.memory.counters.lock();
        let is_of_this_run = counters.as_ref().is_some_and(|counters| counters.run == self.record.run);
        if !is_of_this_run {
            *counters = None;
        }
        let counters = counters.get_or_insert_with(|| Counters::of(&self.record, Instant::now()));
        work(counters)
    }
}

/// One that waits for its turn.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn of(waiting: &'a AtomicUsize) -> Result<Self> {
        if waiting.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::new(ErrorCode::Overloaded, format!("{MOST_WAITING} requests wait for this adapter"))
                .retry_after(Duration::from_secs(1)));
        }
        Ok(Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an adapter is made with, as one text; the seed belongs to the run.
fn made_with(lora: &LoraSpec, accumulation_steps: Option<u64>) -> Result<String> {
    let lora = LoraSpec { seed: 0, ..lora.clone() };
    let made_with = json!({ "lora": lora, "accumulation_steps": accumulation_steps.unwrap_or(1) });
    serde_json::to_string(&made_with)
        .map_err(|error| Error::internal(format!("an adapter's configuration is no JSON: {error}")))
}

/// The `number`-th run of an adapter, from 1: `~` is in no adapter's name.
fn numbered(first: &RunId, number: u64) -> RunId {
    if number == 1 { first.clone() } else { RunId::new(format!("{first}~{number}")) }
}

fn number_of(run: &RunId) -> u64 {
    run.as_str().rsplit_once('~').and_then(|(_, number)| number.parse().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runs_of_an_adapter_are_numbered() {
        let first = RunId::of_adapter(&SessionId::new("s"), "a").unwrap();
        assert_eq!(numbered(&first, 1).as_str(), "s-a");
        assert_eq!(numbered(&first, 3).as_str(), "s-a~3");
        assert_eq!(number_of(&numbered(&first, 3)), 3);
        assert_eq!(number_of(&first), 1);
    }

    #[test]
    fn the_seed_is_no_part_of_what_an_adapter_is_made_with() {
        let spec = |seed| LoraSpec { seed, ..LoraSpec::default() };
        assert_eq!(made_with(&spec(1), None).unwrap(), made_with(&spec(2), Some(1)).unwrap());
        assert_ne!(made_with(&spec(1), None).unwrap(), made_with(&spec(1), Some(2)).unwrap());
    }

    #[test]
    fn so_many_may_wait() {
        let waiting = AtomicUsize::new(0);
        let held: Vec<Waiting<'_>> = (0..MOST_WAITING).map(|_| Waiting::of(&waiting).unwrap()).collect();
        assert_eq!(Waiting::of(&waiting).err().unwrap().code, ErrorCode::Overloaded);
        drop(held);
        assert!(Waiting::of(&waiting).is_ok());
    }
}
