//! One run: what waits for its turn, what goes next, and whether it must be rebuilt first.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::Shared;
use super::watched::Passage;
use crate::call::{Position, RunOperation};
use crate::error::{Error, Result};
use crate::ids::{RequestId, RunId, TenantId};
use crate::middleware::turns::Turns;
use crate::state::{RunOrder, closed_run, from_blob};

/// A run that is open.
pub(super) struct Line {
    pub(super) run: RunId,
    pub(super) tenant: TenantId,
    pub(super) state: Mutex<LineState>,
    /// Held while the run is rebuilt, by whoever does it.
    pub(super) rebuilding: Mutex<()>,
}

/// What changes about a run; held locked only for a moment or for one write to the store.
pub(super) struct LineState {
    /// Numbered operations that are not released.
    pub(super) turns: Turns<Work>,
    /// Released operations that are not yet with the component, in order.
    pub(super) ready: VecDeque<Work>,
    /// The arrival number of the latest operation without a number.
    pub(super) last_arrival: i64,
    /// Where the journal's tail ends, while the run must be rebuilt before anything else.
    pub(super) rebuild_until: Option<Position>,
    /// The place of the last operation that was handed to the component.
    pub(super) handed_through: Position,
    /// Whether the component has lost the run: once the operations inside it have come back, the run is rebuilt.
    pub(super) lost: bool,
    /// Why nothing more is accepted.
    pub(super) closed: Option<Error>,
    /// Operations inside the component.
    pub(super) working: usize,
    /// When a number was last released by its arrival, or an operation last finished.
    pub(super) last_progress: Instant,
    /// Whether a task hands ready operations to the component.
    pub(super) advancing: bool,
    /// Whether a task watches the gap.
    pub(super) watching_gap: bool,
}

/// An accepted operation in memory.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) request: RequestId,
    pub(super) position: Position,
    pub(super) operation: RunOperation,
    pub(super) arrived: Instant,
    pub(super) passage: Passage,
    /// Its share of the memory for waiting operations; `None` for one read back after a restart.
    pub(super) memory: Option<OwnedSemaphorePermit>,
}

impl Work {
    /// The number, for an operation that has one.
    pub(super) fn sequence(&self) -> Option<u64> {
        (self.position.arrival == 0).then_some(self.position.after)
    }
}

impl LineState {
    /// A run whose creation is its only operation, not yet with the component.
    pub(super) fn created(creation: Work, waiting_limit: usize) -> Self {
        let mut state = Self::at(Turns::new(0, waiting_limit), 0);
        state.ready.push_back(creation);
        state
    }

    /// An operation has come back from the component. With the last one, a run that was lost can be rebuilt: from here
    /// on the journal's tail is exactly what the component was given.
    pub(super) fn came_back(&mut self, is_lost: bool) {
        self.working -= 1;
        self.lost |= is_lost;
        self.last_progress = Instant::now();
        if self.lost && self.working == 0 {
            self.lost = false;
            self.rebuild_until = Some(self.handed_through);
        }
    }

    fn at(turns: Turns<Work>, last_arrival: i64) -> Self {
        Self {
            turns,
            ready: VecDeque::new(),
            last_arrival,
            rebuild_until: None,
            handed_through: Position::default(),
            lost: false,
            closed: None,
            working: 0,
            last_progress: Instant::now(),
            advancing: false,
            watching_gap: false,
        }
    }
}

/// The line of the tenant's open run, read from the store on the first touch.
///
/// Errors: `NotFound` for a run that is absent, another tenant's, or closed.
pub(super) async fn find(shared: &Arc<Shared>, tenant: &TenantId, run: &RunId) -> Result<Arc<Line>> {
    let known = shared.lines.lock().get(run).cloned();
    if let Some(line) = known {
        if line.tenant != *tenant {
            return Err(crate::state::no_run(run));
        }
        return Ok(line);
    }
    let record = shared.store.run(tenant, run).await?;
    if record.closed {
        return Err(closed_run(run));
    }
    let (state, unfinished) = load(shared, run).await?;
    let line = Line { run: run.clone(), tenant: tenant.clone(), state: Mutex::new(state), rebuilding: Mutex::new(()) };
    // Loading changes nothing, so of two that load at once the first one's line is used.
    let line = Arc::clone(shared.lines.lock().entry(run.clone()).or_insert_with(|| Arc::new(line)));
    for request in unfinished {
        shared.futures.adopt(&request, tenant);
    }
    Ok(line)
}

/// Reads a run's order back: what must be rebuilt, and what waits behind a gap.
async fn load(shared: &Shared, run: &RunId) -> Result<(LineState, Vec<RequestId>)> {
    let RunOrder { passed_through, last_arrival, pending, refused } = shared.store.run_order(run).await?;
    // Whatever followed without a gap had been released before the stop: it belongs to the tail.
    let mut order = Turns::new(passed_through, usize::MAX);
    for number in &refused {
        let _ = order.consume(*number);
    }
    for number in &pending {
        let _ = order.offer(*number, ());
    }
    let released = order.passed_through();

    // What was accepted is never turned away, even if the limit is lower now.
    let limit = shared.options.waiting_per_run.max(pending.len() + refused.len());
    let mut turns = Turns::new(released, limit);
    for number in refused {
        let _ = turns.consume(number);
    }
    let mut unfinished = Vec::new();
    for number in pending.into_iter().filter(|number| *number > released) {
        let work = read_waiting(shared, run, number).await?;
        unfinished.push(work.request.clone());
        let _ = turns.offer(number, work);
    }
    let mut state = LineState::at(turns, last_arrival);
    let until = Position { after: released, arrival: last_arrival };
    state.rebuild_until = Some(until);
    state.handed_through = until;
    Ok((state, unfinished))
}

async fn read_waiting(shared: &Shared, run: &RunId, number: u64) -> Result<Work> {
    let position = Position { after: number, arrival: 0 };
    let before = Position { after: number - 1, arrival: i64::MAX };
    let found = shared.store.tail(run, Some(before), position, 1).await?;
    let operation = found
        .into_iter()
        .next()
        .ok_or_else(|| Error::internal(format!("operation {number} of run `{run}` is missing from the journal")))?;
    let payload = operation
        .payload
        .ok_or_else(|| Error::internal(format!("operation {number} of run `{run}` has lost its content")))?;
    Ok(Work {
        request: operation.request,
        position,
        operation: from_blob(&payload)?,
        arrived: Instant::now(),
        passage: Passage::default(),
        memory: None,
    })
}
