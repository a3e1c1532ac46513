//! Accepting: an operation gets its place and becomes durable before its client hears of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::Shared;
use super::advance::{place, release, wake};
use super::line::{Line, LineState, Work, find};
use super::watched::Passage;
use crate::call::{CreateRun, Position, RunCall, RunOperation, RunRecord};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{RequestId, RunId, TenantId};
use crate::middleware::turns::Standing;
use crate::state::{Appended, Existing, NewOperation, NewRun, to_blob};
use crate::telemetry::labels::{Component, Deployment};
use crate::telemetry::metrics::JOURNAL_COMMIT;
use crate::telemetry::spans::{self, SpanName};

/// Operations with more input tokens than this are encoded beside the async runtime.
const LARGE_INPUT_TOKENS: usize = 16_384;

/// An operation and what the journal keeps of it.
pub(super) struct Encoded {
    operation: RunOperation,
    payload: Vec<u8>,
    fingerprint: [u8; 32],
}

/// Makes the operation durable and puts it in its place. A repetition gets the first answer.
pub(super) async fn accept(shared: Arc<Shared>, tenant: TenantId, call: RunCall) -> Result<RequestId> {
    shared.refuse_while_draining()?;
    let RunCall { run, sequence, operation, .. } = call;
    let sequence = sequence.filter(|number| *number > 0);
    if sequence.is_some_and(|number| i64::try_from(number).is_err()) {
        return Err(Error::invalid("the sequence number is too large"));
    }
    if is_the_journals_own(&operation) {
        return Err(Error::internal(format!("`{}` is the journal's own operation", operation.name())));
    }
    let encoded = encode(operation).await?;
    if let RunOperation::Create(creation) = &encoded.operation {
        let record = new_record(&tenant, &run, creation)?;
        return create(&shared, record, encoded).await;
    }
    submit(&shared, &tenant, &run, sequence, encoded).await
}

/// What no client asks for.
fn is_the_journals_own(operation: &RunOperation) -> bool {
    matches!(
        operation,
        RunOperation::Restore { .. }
            | RunOperation::Describe { .. }
            | RunOperation::Spill
            | RunOperation::Expire { .. }
    )
}

/// See [`super::Journal::consume`].
pub(super) async fn consume(shared: &Arc<Shared>, tenant: &TenantId, run: &RunId, sequence: u64) -> Result<()> {
    let line = find(shared, tenant, run).await?;
    let mut state = line.state.lock().await;
    match state.turns.standing(sequence) {
        Standing::Taken => return Ok(()),
        Standing::Full => return Err(run_is_full(shared, run)),
        Standing::Free => {}
    }
    shared.store.append_refused(tenant, run, sequence).await?;
    let released = state.turns.consume(sequence).unwrap_or_default();
    release(&mut state, released);
    wake(shared, &line, &mut state);
    Ok(())
}

pub(super) async fn submit(
    shared: &Arc<Shared>,
    tenant: &TenantId,
    run: &RunId,
    sequence: Option<u64>,
    encoded: Encoded,
) -> Result<RequestId> {
    let line = match find(shared, tenant, run).await {
        Ok(line) => line,
        Err(error) if error.code == ErrorCode::NotFound => {
            return answer_of_closed_run(shared, tenant, run, sequence, &encoded).await;
        }
        Err(error) => return Err(error),
    };
    // Held over the write: nobody may come between an operation's place and its turn.
    let mut state = line.state.lock().await;
    if state.closed.is_some() {
        drop(state);
        return answer_of_closed_run(shared, tenant, run, sequence, &encoded).await;
    }
    let position = match sequence {
        None => Position { after: state.turns.passed_through(), arrival: state.last_arrival + 1 },
        Some(number) => {
            let position = Position { after: number, arrival: 0 };
            match state.turns.standing(number) {
                Standing::Free => position,
                Standing::Full => return Err(run_is_full(shared, run)),
                Standing::Taken => {
                    drop(state);
                    let existing = shared.store.operation_at(run, position).await?;
                    return existing
                        .map_or_else(|| Err(used_up(run, number)), |existing| answer(existing, run, number, &encoded));
                }
            }
        }
    };
    if state.ready.len() >= shared.options.waiting_per_run {
        return Err(run_is_full(shared, run));
    }
    let memory = reserve_memory(shared, encoded.payload.len())?;
    state.last_arrival = state.last_arrival.max(position.arrival);
    let request = append(shared, tenant, run, position, &encoded).await;
    let request = match request {
        Ok(request) => request,
        Err(Unaccepted::Refused) => {
            let released = state.turns.consume(position.after).unwrap_or_default();
            release(&mut state, released);
            wake(shared, &line, &mut state);
            return Err(used_up(run, position.after));
        }
        Err(Unaccepted::Failed(error)) => return Err(error),
    };
    let work = Work {
        request: request.clone(),
        position,
        operation: encoded.operation,
        arrived: Instant::now(),
        passage: Passage::from_here(),
        memory: Some(memory),
    };
    place(&mut state, work);
    wake(shared, &line, &mut state);
    Ok(request)
}

/// Waits until a write is durable, and tells how long that took.
async fn durably<T>(name: SpanName, write: impl Future<Output = Result<T>>) -> Result<T> {
    let (mut stage, began) = (spans::begin(name), Instant::now());
    let written = write.await;
    stage.note(&written);
    JOURNAL_COMMIT.record(began.elapsed(), Component { deployment: Deployment::Model });
    written
}

enum Unaccepted {
    /// The number was used up by a refused request.
    Refused,
    Failed(Error),
}

/// Writes the operation into the journal and announces its result.
async fn append(
    shared: &Shared,
    tenant: &TenantId,
    run: &RunId,
    position: Position,
    encoded: &Encoded,
) -> Result<RequestId, Unaccepted> {
    let request = RequestId::journaled();
    shared.futures.register(&request, tenant).map_err(Unaccepted::Failed)?;
    let operation = new_operation(&request, tenant, run, position, encoded);
    let appended = durably(spans::JOURNAL_COMMIT, shared.store.append(operation)).await;
    if matches!(appended, Ok(Appended::New)) {
        return Ok(request);
    }
    shared.futures.withdraw(&request);
    match appended {
        Ok(Appended::Existing(existing)) if existing.refused => Err(Unaccepted::Refused),
        // It became durable in an attempt that was reported as failed: this repetition takes it up.
        Ok(Appended::Existing(existing)) => {
            let request = answer(existing, run, position.after, encoded).map_err(Unaccepted::Failed)?;
            shared.futures.adopt(&request, tenant);
            Ok(request)
        }
        Ok(Appended::New) => Ok(request),
        Err(error) => Err(Unaccepted::Failed(error)),
    }
}

async fn create(shared: &Arc<Shared>, record: RunRecord, encoded: Encoded) -> Result<RequestId> {
    let (tenant, run) = (record.tenant.clone(), record.id.clone());
    let memory = reserve_memory(shared, encoded.payload.len())?;
    let request = RequestId::journaled();
    shared.futures.register(&request, &tenant)?;
    let operation = new_operation(&request, &tenant, &run, Position::default(), &encoded);
    let insertion = shared.store.insert_run_within(NewRun { record, operation }, shared.options.run_limits);
    match durably(spans::REGISTER_MODEL, insertion).await {
        Ok(Appended::New) => {}
        Ok(Appended::Existing(existing)) => {
            shared.futures.withdraw(&request);
            let request = answer(existing, &run, 0, &encoded)?;
            // After a restart this may be the first touch of a run that has to be rebuilt.
            if let Ok(line) = find(shared, &tenant, &run).await {
                wake(shared, &line, &mut *line.state.lock().await);
            }
            return Ok(request);
        }
        Err(error) => {
            shared.futures.withdraw(&request);
            return Err(error);
        }
    }
    let creation = Work {
        request: request.clone(),
        position: Position::default(),
        operation: encoded.operation,
        arrived: Instant::now(),
        passage: Passage::from_here(),
        memory: Some(memory),
    };
    let line = Line {
        run: run.clone(),
        tenant,
        state: Mutex::new(LineState::created(creation, shared.options.waiting_per_run)),
        rebuilding: Mutex::new(()),
    };
    // If a quick client's next operation has loaded the run meanwhile, the creation is in its tail already.
    let line = Arc::clone(shared.lines.lock().entry(run).or_insert_with(|| Arc::new(line)));
    wake(shared, &line, &mut *line.state.lock().await);
    Ok(request)
}

fn new_record(tenant: &TenantId, run: &RunId, creation: &CreateRun) -> Result<RunRecord> {
    let session = creation.session.clone().or_else(|| run.session()).ok_or_else(|| {
        Error::invalid(format!("`{run}` is not a run's name")).hint("a run is named `<session>:train:<number>`")
    })?;
    let now = Timestamp::now();
    Ok(RunRecord {
        id: run.clone(),
        tenant: tenant.clone(),
        session,
        base_model: creation.base_model.clone(),
        lora: creation.lora.clone(),
        user_metadata: creation.user_metadata.clone(),
        closed: false,
        created_at: now,
        last_used_at: now,
    })
}

fn new_operation(
    request: &RequestId,
    tenant: &TenantId,
    run: &RunId,
    position: Position,
    encoded: &Encoded,
) -> NewOperation {
    NewOperation {
        request: request.clone(),
        tenant: tenant.clone(),
        run: run.clone(),
        position,
        name: encoded.operation.name(),
        payload: encoded.payload.clone(),
        fingerprint: encoded.fingerprint,
    }
}

pub(super) async fn encode(operation: RunOperation) -> Result<Encoded> {
    let is_large = match &operation {
        RunOperation::ForwardBackward { data, .. } => {
            data.iter().map(|datum| datum.tokens.len()).sum::<usize>() > LARGE_INPUT_TOKENS
        }
        _ => false,
    };
    let encode = move || {
        let payload = to_blob(&operation)?;
        let fingerprint = Sha256::digest(&payload).into();
        Ok(Encoded { operation, payload, fingerprint })
    };
    if !is_large {
        return encode();
    }
    tokio::task::spawn_blocking(encode)
        .await
        .map_err(|error| Error::internal(format!("an operation could not be encoded: {error}")))?
}

/// The answer to a repetition: the first one's id, if it is a repetition.
fn answer(existing: Existing, run: &RunId, number: u64, encoded: &Encoded) -> Result<RequestId> {
    if existing.refused {
        return Err(used_up(run, number));
    }
    if existing.fingerprint != encoded.fingerprint {
        return Err(Error::invalid(format!("number {number} of run `{run}` was used for another operation"))
            .hint("a repetition must have the same content; a new operation needs the next number"));
    }
    Ok(existing.request)
}

/// A closed run accepts nothing, but repeats what it answered.
async fn answer_of_closed_run(
    shared: &Shared,
    tenant: &TenantId,
    run: &RunId,
    sequence: Option<u64>,
    encoded: &Encoded,
) -> Result<RequestId> {
    // Says that the run does not exist when it is another tenant's.
    shared.store.run(tenant, run).await?;
    if let Some(number) = sequence {
        let existing = shared.store.operation_at(run, Position { after: number, arrival: 0 }).await?;
        if let Some(existing) = existing {
            return answer(existing, run, number, encoded);
        }
    }
    if sequence.is_none()
        && matches!(encoded.operation, RunOperation::Unload)
        && let Some(unloaded) = shared.store.latest_named(run, encoded.operation.name()).await?
    {
        return Ok(unloaded);
    }
    Err(shared.store.end_of(run).await?)
}

fn used_up(run: &RunId, number: u64) -> Error {
    Error::new(ErrorCode::Gone, format!("number {number} of run `{run}` is used up"))
        .hint("it was answered long ago, was refused, or did not arrive in time; go on with the next number")
}

fn run_is_full(shared: &Shared, run: &RunId) -> Error {
    let limit = shared.options.waiting_per_run;
    Error::new(ErrorCode::Overloaded, format!("{limit} operations of run `{run}` are waiting"))
        .retry_after(Duration::from_secs(1))
}

/// Takes the payload's share of the memory for waiting operations.
fn reserve_memory(shared: &Shared, bytes: usize) -> Result<OwnedSemaphorePermit> {
    let kibibytes = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    Arc::clone(&shared.memory).try_acquire_many_owned(kibibytes).map_err(|_| {
        Error::new(ErrorCode::Overloaded, "the memory for waiting operations is used up")
            .retry_after(Duration::from_secs(1))
    })
}
