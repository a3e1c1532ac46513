//! Rebuilding a run that the component does not have, after a restart of the server or of the engine: its snapshot,
//! then the same operations in the same order.

use std::sync::Arc;

use tokio::time::Instant;

use super::Shared;
use super::advance::{close, is_lost, is_put_off, perform, settle, wake};
use super::line::{Line, find};
use crate::call::{Position, RunOperation, RunOutcome, SamplerTarget};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{RunId, TenantId};
use crate::state::{JournaledOperation, Status, from_blob, to_blob};

/// Operations read from the journal at once: each may hold a whole batch of training data.
const PAGE: u32 = 8;

/// See [`super::Journal::recover`].
pub(super) async fn recover(shared: &Arc<Shared>) -> Result<usize> {
    let mut taken_up = 0;
    for (tenant, run) in shared.store.unfinished_runs().await? {
        if !keeps(shared, &tenant, &run).await? {
            continue;
        }
        let line = match find(shared, &tenant, &run).await {
            Ok(line) => line,
            Err(error) if is_passing(&error) => return Err(error),
            Err(error) => {
                let reason = cannot_rebuild(&run, &error);
                tracing::error!(%run, %error, "the run cannot be read back and is closed");
                for request in shared.store.close_run(&run, &reason).await? {
                    shared.futures.complete(&request, &tenant, Err(reason.clone()));
                }
                continue;
            }
        };
        if let Err(error) = ensure(shared, &line).await {
            tracing::warn!(%run, %error, "the run cannot be rebuilt now, trying again");
        }
        let mut state = line.state.lock().await;
        if state.closed.is_none() {
            taken_up += 1;
            wake(shared, &line, &mut state);
        }
    }
    Ok(taken_up)
}

/// Whether the run is of this journal's base model.
async fn keeps(shared: &Shared, tenant: &TenantId, run: &RunId) -> Result<bool> {
    let Some(base_model) = &shared.options.base_model else { return Ok(true) };
    Ok(shared.store.run(tenant, run).await?.base_model == *base_model)
}

/// Rebuilds the run if that is still to be done. One that cannot be rebuilt is closed.
///
/// Errors: only passing ones; the run is then as before.
pub(super) async fn ensure(shared: &Shared, line: &Line) -> Result<()> {
    let _alone = line.rebuilding.lock().await;
    let Some(until) = line.state.lock().await.rebuild_until else {
        return Ok(());
    };
    match rebuild(shared, line, until).await {
        Ok(()) => {}
        Err(error) if is_passing(&error) => return Err(error),
        Err(error) => {
            tracing::error!(run = %line.run, %error, "the run cannot be rebuilt and is closed");
            let reason = cannot_rebuild(&line.run, &error);
            let abandoned = shared.store.close_run(&line.run, &reason).await?;
            close(shared, line, &reason, abandoned).await;
        }
    }
    let mut state = line.state.lock().await;
    state.rebuild_until = None;
    state.last_progress = Instant::now();
    Ok(())
}

async fn rebuild(shared: &Shared, line: &Line, until: Position) -> Result<()> {
    let started = Instant::now();
    let mut done_through = None;
    if let Some(snapshot) = shared.store.latest_snapshot(&line.run).await? {
        if !tokio::fs::try_exists(&snapshot.directory).await.unwrap_or(false) {
            return Err(Error::internal(format!("its snapshot `{}` is missing", snapshot.directory.display())));
        }
        let restore = RunOperation::Restore { directory: snapshot.directory };
        perform(shared, line, snapshot.through, restore).await?;
        done_through = Some(snapshot.through);
    }
    let mut operations = 0_usize;
    loop {
        let page = shared.store.tail(&line.run, done_through, until, PAGE).await?;
        let Some(last) = page.last() else { break };
        done_through = Some(last.position);
        operations += page.len();
        for journaled in page {
            if line.state.lock().await.closed.is_some() {
                return Ok(());
            }
            execute_again(shared, line, journaled).await?;
        }
    }
    tracing::info!(run = %line.run, operations, seconds = started.elapsed().as_secs_f64(), "run rebuilt");
    Ok(())
}

/// Brings one operation of the tail back into the component's memory, and finishes it if it was unfinished.
async fn execute_again(shared: &Shared, line: &Line, journaled: JournaledOperation) -> Result<()> {
    // A failed operation changed nothing.
    if journaled.status == Status::Failed {
        return Ok(());
    }
    let Some(payload) = &journaled.payload else {
        return Err(Error::internal(format!("operation `{}` has lost its content", journaled.request)));
    };
    let operation: RunOperation = from_blob(payload)?;
    if journaled.status == Status::Pending {
        shared.futures.adopt(&journaled.request, &line.tenant);
        let result = perform(shared, line, journaled.position, operation).await;
        if is_put_off(&result) || result.as_ref().is_err_and(is_lost) {
            return result.map(|_| ());
        }
        settle(shared, line, &journaled.request, result).await;
        return Ok(());
    }
    if has_its_effect_on_disk(&operation) {
        return Ok(());
    }
    let outcome = perform(shared, line, journaled.position, operation).await?;
    compare(line, &journaled, &Ok(outcome))
}

/// A finished operation that is executed again must end in the same bits; its first result stays the answer.
fn compare(line: &Line, journaled: &JournaledOperation, again: &Result<RunOutcome>) -> Result<()> {
    let Some(first) = &journaled.outcome else { return Ok(()) };
    if *first != to_blob(again)? {
        tracing::error!(run = %line.run, request = %journaled.request, position = ?journaled.position, "an operation gave another result than before the restart");
    }
    Ok(())
}

/// A live adapter is in memory only, so publishing it is done again; a saved checkpoint is still there.
fn has_its_effect_on_disk(operation: &RunOperation) -> bool {
    match operation {
        RunOperation::SaveState { .. } | RunOperation::SaveExternal { .. } => true,
        RunOperation::SaveForSampler { target, .. } => matches!(target, SamplerTarget::Checkpoint(_)),
        _ => false,
    }
}

/// Errors that say nothing about the run itself.
fn is_passing(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::Draining | ErrorCode::Overloaded | ErrorCode::ResourceExhausted | ErrorCode::Interrupted
    )
}

fn cannot_rebuild(run: &RunId, error: &Error) -> Error {
    Error::internal(format!("run `{run}` could not be rebuilt after a restart: {}", error.message))
        .hint("create a new run, if need be from one of its checkpoints")
}
