//! Asking a run how it is: never journaled, and never ahead of what its client has been answered.

use std::sync::Arc;

use super::advance::{is_lost, perform, wake};
use super::line::{Line, find};
use super::{Journal, Shared, rebuild};
use crate::call::{Position, RunOperation, RunOutcome, RunState};
use crate::error::{Error, Result};
use crate::ids::{RunId, TenantId};

impl Journal {
    /// How the run is now; with `values` also the numbers of its trained tensors. A run that the component does not have is
    /// rebuilt first.
    ///
    /// # Errors
    /// `NotFound` when the run is closed or another tenant's.
    pub async fn describe(&self, tenant: &TenantId, run: &RunId, values: bool) -> Result<RunState> {
        let (shared, tenant, run) = (Arc::clone(&self.shared), tenant.clone(), run.clone());
        // On its own task: a client that hangs up must not leave the run counted as at work.
        let describing = tokio::spawn(async move { describe(&shared, &tenant, &run, values).await });
        describing.await.map_err(|error| Error::internal(format!("describing a run failed: {error}")))?
    }
}

async fn describe(shared: &Arc<Shared>, tenant: &TenantId, run: &RunId, values: bool) -> Result<RunState> {
    shared.refuse_while_draining()?;
    let line = find(shared, tenant, run).await?;
    rebuild::ensure(shared, &line).await?;
    let mut outcome = ask(shared, &line, values).await;
    if outcome.as_ref().is_err_and(is_lost) {
        rebuild::ensure(shared, &line).await?;
        outcome = ask(shared, &line, values).await;
    }
    match outcome? {
        RunOutcome::Described(state) => Ok(*state),
        _ => Err(Error::internal("the component described a run with something else")),
    }
}

/// Asks the component, as one of the run's operations inside it: meanwhile the run is not rebuilt.
async fn ask(shared: &Arc<Shared>, line: &Arc<Line>, values: bool) -> Result<RunOutcome> {
    line.state.lock().await.working += 1;
    // Before everything, so that the run's place in its journal stays what it is.
    let outcome = perform(shared, line, Position::default(), RunOperation::Describe { values }).await;
    let mut state = line.state.lock().await;
    state.came_back(outcome.as_ref().is_err_and(is_lost));
    wake(shared, line, &mut state);
    outcome
}
