//! Going on: released operations reach the component in order, their results reach the store and the board.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tracing::Instrument;

use super::line::{Line, LineState, Work};
use super::watched::Execution;
use super::{Shared, rebuild};
use crate::call::{Call, Operation, Position, Reply, RunCall, RunOperation, RunOutcome};
use crate::error::{Error, ErrorCode, Result};
use crate::futures::Outcome;
use crate::ids::RequestId;
use crate::state::{Finished, end_by};
use crate::telemetry::labels::{TaskStatus, TaskType};
use crate::telemetry::spans;

/// The pause before a run whose rebuilding met a full component is tried again.
const REBUILD_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The pause after the component lost the run while it was rebuilt: an operation of its tail failed, or the engine did.
const REBUILD_LOST_AFTER: Duration = Duration::from_millis(100);

/// Puts an accepted operation in its place.
pub(super) fn place(state: &mut LineState, work: Work) {
    let Some(number) = work.sequence() else {
        state.ready.push_back(work);
        return;
    };
    match state.turns.offer(number, work) {
        Ok(released) => release(state, released),
        Err((standing, work)) => {
            tracing::error!(request = %work.request, ?standing, "an accepted operation found no place");
        }
    }
}

/// Lines up what has its turn now.
pub(super) fn release(state: &mut LineState, released: Vec<Work>) {
    if !released.is_empty() {
        state.last_progress = Instant::now();
        state.ready.extend(released);
    }
}

/// Starts the tasks the run needs now, unless they are at work.
pub(super) fn wake(shared: &Arc<Shared>, line: &Arc<Line>, state: &mut LineState) {
    if state.closed.is_some() || shared.is_draining() {
        return;
    }
    let has_work = !state.ready.is_empty() || state.rebuild_until.is_some();
    // A lost run's operations come back first; the last of them wakes it.
    if has_work && !state.lost && !state.advancing {
        state.advancing = true;
        tokio::spawn(advance(Arc::clone(shared), Arc::clone(line)));
    }
    if state.turns.first_waiting().is_some() && !state.watching_gap {
        state.watching_gap = true;
        tokio::spawn(watch_gap(Arc::clone(shared), Arc::clone(line)));
    }
}

/// Hands ready operations to the component until there are none, rebuilding the run first where that is due.
async fn advance(shared: Arc<Shared>, line: Arc<Line>) {
    loop {
        make_whole(&shared, &line).await;
        // Waiting for room in the component happens outside of the lock: accepting goes on meanwhile.
        let mut component = shared.inner.clone();
        let room = component.ready().await.map(|_| ());
        let mut state = line.state.lock().await;
        let stopped = shared.is_draining() || state.closed.is_some() || state.lost;
        if state.rebuild_until.is_some() && !stopped {
            continue;
        }
        let Some(work) = state.ready.pop_front_if(|_| !stopped) else {
            state.advancing = false;
            return;
        };
        state.working += 1;
        let Work { request, position, operation, memory, arrived, passage } = work;
        let task = TaskType(operation.name());
        let execution = Execution::begin(&line, &request, position, task, (passage, arrived));
        let origin = execution.origin();
        state.handed_through = position;
        let call = call_for(&line, position, operation);
        let answer = match room {
            Ok(()) => catch_unwind(AssertUnwindSafe(|| {
                let (_trace, _log) = (origin.enter(), execution.span.enter());
                component.call(call)
            }))
            .unwrap_or_else(|_| Box::pin(async { Err(panicked()) })),
            Err(error) => Box::pin(async { Err(error) }),
        };
        drop(state);
        let span = execution.span.clone();
        let conclusion = conclude(Arc::clone(&shared), Arc::clone(&line), request, memory, execution, answer);
        shared.working.spawn(origin.surround(conclusion).instrument(span));
    }
}

/// Rebuilds the run if the component does not have it, as often as it takes.
async fn make_whole(shared: &Shared, line: &Line) {
    while let Err(error) = rebuild::ensure(shared, line).await {
        if shared.is_draining() {
            return;
        }
        tracing::warn!(run = %line.run, %error, "the run cannot be rebuilt now, trying again");
        let pause = if is_lost(&error) { REBUILD_LOST_AFTER } else { REBUILD_AGAIN_AFTER };
        tokio::time::sleep(pause).await;
    }
}

/// Waits for the component's answer, stores and publishes it.
async fn conclude(
    shared: Arc<Shared>,
    line: Arc<Line>,
    request: RequestId,
    memory: Option<OwnedSemaphorePermit>,
    execution: Execution,
    answer: BoxFuture<'static, Result<Reply>>,
) {
    let result = outcome_of(answer).await;
    drop(memory);
    let is_lost = result.as_ref().is_err_and(is_lost);
    if is_lost {
        tracing::info!("the engine lost the run; the operation is executed again");
        execution.put_off();
    } else if is_put_off(&result) {
        tracing::info!("left in the journal for the next start");
        execution.put_off();
    } else {
        let status = TaskStatus::of(&result);
        settle(&shared, &line, &request, result).await;
        execution.ended(status);
    }
    let mut state = line.state.lock().await;
    state.came_back(is_lost);
    wake(&shared, &line, &mut state);
}

/// Asks the component for one operation of the run and waits for its outcome.
pub(super) async fn perform(
    shared: &Shared,
    line: &Line,
    position: Position,
    operation: RunOperation,
) -> Result<RunOutcome> {
    let component = shared.inner.clone();
    let call = call_for(line, position, operation);
    outcome_of(Box::pin(async move { component.ask(call).await })).await
}

/// Whether the component no longer has the run: the operation was not executed, and none after it can be before the run
/// is rebuilt.
pub(super) fn is_lost(error: &Error) -> bool {
    error.code == ErrorCode::Interrupted
}

/// Whether the component refused because it is shutting down: the operation was not executed.
pub(super) fn is_put_off(result: &Result<RunOutcome>) -> bool {
    result.as_ref().is_err_and(|error| error.code == ErrorCode::Draining)
}

/// Stores a result and then publishes it.
pub(super) async fn settle(shared: &Shared, line: &Line, request: &RequestId, result: Result<RunOutcome>) {
    let ended = result.as_ref().is_ok_and(RunOutcome::ends_run);
    let end = end_by(&line.run, result.as_ref().ok());
    let stage = spans::begin(spans::RESULT_COMMIT);
    let finished = shared.store.finish(request, &result).await;
    stage.end();
    let finished = match finished {
        Ok(finished) => finished,
        Err(error) => {
            // Publishing it all the same is safe: the operation stays in the journal, and executing it
            // again after a restart gives the same bits.
            tracing::error!(run = %line.run, %request, %error, "a result could not be stored");
            Finished { closed: ended, abandoned: Vec::new() }
        }
    };
    shared.futures.complete(request, &line.tenant, result.map(Outcome::Run));
    if finished.closed {
        close(shared, line, &end, finished.abandoned).await;
    }
}

/// Ends a run whose closing is durable: what still waits fails with `reason`.
pub(super) async fn close(shared: &Shared, line: &Line, reason: &Error, abandoned: Vec<RequestId>) {
    {
        let mut state = line.state.lock().await;
        state.closed = Some(reason.clone());
        state.ready.clear();
        state.turns.drain();
    }
    shared.forget(&line.run);
    for request in abandoned {
        shared.futures.complete(&request, &line.tenant, Err(reason.clone()));
    }
}

/// Gives up on a missing number once the run has been idle, with later operations waiting, for the grace period.
async fn watch_gap(shared: Arc<Shared>, line: Arc<Line>) {
    loop {
        let mut state = line.state.lock().await;
        let waits = state.turns.first_waiting().map(|(number, work)| (number, work.arrived));
        let Some((number, arrived)) = waits.filter(|_| state.closed.is_none() && !shared.is_draining()) else {
            state.watching_gap = false;
            return;
        };
        let now = Instant::now();
        let idle = state.working == 0 && state.ready.is_empty() && state.rebuild_until.is_none();
        let since = if idle { arrived.max(state.last_progress) } else { now };
        let deadline = since + shared.options.gap_grace;
        if now >= deadline {
            let first = state.turns.passed_through() + 1;
            match shared.store.pass_over(&line.run, number - 1).await {
                Ok(()) => {
                    tracing::warn!(run = %line.run, first, last = number - 1, "operations never arrived, going on without them");
                    let released = state.turns.skip_gap();
                    release(&mut state, released);
                    wake(&shared, &line, &mut state);
                    continue;
                }
                Err(error) => tracing::error!(run = %line.run, %error, "a gap could not be passed over"),
            }
        }
        drop(state);
        tokio::time::sleep_until(deadline.max(now + Duration::from_millis(100))).await;
    }
}

fn call_for(line: &Line, position: Position, operation: RunOperation) -> Call {
    let sequence = (position.arrival == 0).then_some(position.after);
    let run_call = RunCall { run: line.run.clone(), sequence, position, operation };
    Call { tenant: line.tenant.clone(), operation: Operation::Run(run_call) }
}

/// The outcome of a training operation; a panic in the component is an error of this operation only.
async fn outcome_of(answer: BoxFuture<'static, Result<Reply>>) -> Result<RunOutcome> {
    match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(Ok(Reply::Run(outcome))) => Ok(outcome),
        Ok(Ok(_)) => Err(Error::internal("the component answered a training operation with something else")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(panicked()),
    }
}

fn panicked() -> Error {
    Error::internal("the component failed unexpectedly")
}
