//! Ending a run whose time is over, and moving an idle one to disk: what housekeeping does through the journal.

use std::sync::Arc;

use tower::Service;

use super::accept::{encode, submit};
use super::line::find;
use super::{Journal, Shared};
use crate::call::{Call, Ending, Operation, Position, RunCall, RunOperation};
use crate::component::BoxComponent;
use crate::error::Result;
use crate::ids::{CheckpointPath, RequestId, RunId, TenantId};

impl Journal {
    /// Lets the run end behind everything that has its turn: it is saved as `path` and closed.
    ///
    /// A run that is at work, or that waits for a number, is left alone: `None`; with `insist` it ends all the same,
    /// and what waits behind a missing number fails with the reason. An end that fails, on a full disk for example,
    /// leaves the run as it was.
    ///
    /// # Errors
    /// `NotFound` when the run is closed or another tenant's.
    pub async fn expire(
        &self,
        tenant: &TenantId,
        run: &RunId,
        path: CheckpointPath,
        ending: Ending,
        insist: bool,
    ) -> Result<Option<RequestId>> {
        let shared = &self.shared;
        shared.refuse_while_draining()?;
        if !insist && is_at_work(shared, tenant, run).await? {
            return Ok(None);
        }
        // What is accepted from here on comes after the end and is told where the run was saved.
        let last = encode(RunOperation::Expire { path, ending }).await?;
        submit(shared, tenant, run, None, last).await.map(Some)
    }

    /// Moves the run from the component's memory to disk; its next operation brings it back in the same bits.
    pub async fn spill(&self, tenant: &TenantId, run: &RunId) -> Result<()> {
        let mut component: BoxComponent = self.shared.inner.clone();
        std::future::poll_fn(|context| component.poll_ready(context)).await?;
        let call = RunCall {
            run: run.clone(),
            sequence: None,
            // Before everything, so that the run's place in its journal stays what it is.
            position: Position::default(),
            operation: RunOperation::Spill,
        };
        component.call(Call { tenant: tenant.clone(), operation: Operation::Run(call) }).await.map(|_| ())
    }
}

async fn is_at_work(shared: &Arc<Shared>, tenant: &TenantId, run: &RunId) -> Result<bool> {
    let line = find(shared, tenant, run).await?;
    let state = line.state.lock().await;
    Ok(state.working > 0 || !state.ready.is_empty() || state.turns.first_waiting().is_some())
}
