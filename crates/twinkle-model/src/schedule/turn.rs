//! The passes of one turn while they are filled.

use std::collections::HashSet;
use std::ops::Range;

use twinkle_core::ids::{RunId, TenantId};

use super::{Direction, JobId, Piece, PlannedPass};

/// What has been taken so far.
#[derive(Debug)]
pub(super) struct Turn {
    room: usize,
    quantum: usize,
    runs_per_pass: usize,
    /// With the operation that has a pass for itself.
    passes: Vec<(Option<JobId>, PlannedPass)>,
    runs: HashSet<RunId>,
    served: HashSet<TenantId>,
    /// Whose operations end in this turn.
    answered: HashSet<TenantId>,
}

impl Turn {
    pub(super) fn new(rows_per_pass: usize, runs_per_pass: usize, quantum: i64) -> Self {
        Self {
            room: rows_per_pass,
            quantum: usize::try_from(quantum).unwrap_or(usize::MAX),
            runs_per_pass,
            passes: Vec::new(),
            runs: HashSet::new(),
            served: HashSet::new(),
            answered: HashSet::new(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.room == 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.passes.is_empty()
    }

    /// Rows that still fit; an operation that goes apart, perhaps for want of memory, goes in small passes.
    pub(super) fn room_for(&self, apart: Option<JobId>) -> usize {
        let Some(job) = apart else { return self.room };
        let taken = self.passes.iter().find(|(owner, _)| *owner == Some(job)).map_or(0, |(_, pass)| pass.rows);
        self.room.min(self.quantum.saturating_sub(taken))
    }

    /// Whether a pass has a place for this run.
    pub(super) fn admits(&self, run: &RunId) -> bool {
        self.runs.len() < self.runs_per_pass || self.runs.contains(run)
    }

    pub(super) fn has_served(&self, tenant: &TenantId) -> bool {
        self.served.contains(tenant)
    }

    pub(super) fn answers_another_than(&self, tenant: &TenantId) -> bool {
        self.answered.iter().any(|answered| answered != tenant)
    }

    /// Puts data into the pass where they belong. `ends`: nothing of the operation is left after them.
    #[expect(clippy::too_many_arguments, reason = "the fields of a piece and where it goes")]
    pub(super) fn take(
        &mut self,
        direction: Direction,
        apart: Option<JobId>,
        tenant: &TenantId,
        run: &RunId,
        job: JobId,
        data: Range<usize>,
        rows: usize,
        ends: bool,
    ) {
        self.room = self.room.saturating_sub(rows);
        self.runs.insert(run.clone());
        self.served.insert(tenant.clone());
        if ends {
            self.answered.insert(tenant.clone());
        }
        let place = self.passes.iter().position(|(owner, pass)| *owner == apart && pass.direction == direction);
        let place = place.unwrap_or_else(|| {
            self.passes.push((apart, PlannedPass { direction, rows: 0, pieces: Vec::new() }));
            self.passes.len() - 1
        });
        let (_, pass) = &mut self.passes[place];
        pass.rows += rows;
        // More of what is in the pass already.
        if let Some(piece) = pass.pieces.iter_mut().find(|piece| piece.job == job) {
            piece.data.end = data.end;
            piece.rows += rows;
            return;
        }
        pass.pieces.push(Piece { job, tenant: tenant.clone(), run: run.clone(), data, rows });
    }

    pub(super) fn into_passes(self) -> Vec<PlannedPass> {
        self.passes.into_iter().map(|(_, pass)| pass).collect()
    }
}
