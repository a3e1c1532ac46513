//! One tenant's operations: a line for each of its runs.

use std::collections::{BTreeMap, VecDeque};

use twinkle_core::ids::{RunId, TenantId};

use super::turn::Turn;
use super::{Demand, Direction, JobId};

/// What a tenant waits for, and how many tokens of its quantum are left.
#[derive(Debug)]
pub(super) struct Lane {
    /// Below zero when a datum was longer than what was left.
    pub(super) credit: i64,
    /// How many quanta it has had; of those that always have work, all have had as many, or one more.
    pub(super) round: u64,
    /// Whether nothing of it could go when it was last asked.
    pub(super) was_idle: bool,
    lines: BTreeMap<RunId, VecDeque<Job>>,
}

/// An operation and how far it has come.
#[derive(Debug)]
pub(super) struct Job {
    id: JobId,
    demand: Demand,
    phase: usize,
    /// The first of its data that has not been through this phase.
    next: usize,
}

/// What came of serving a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Some of its data are in a pass.
    Some,
    /// The pass has no room for what is next.
    NoRoom,
    /// Nothing of it can go.
    Nothing,
}

impl Job {
    pub(super) fn new(id: JobId, demand: Demand) -> Self {
        Self { id, demand, phase: 0, next: 0 }
    }

    pub(super) fn next_phase(&mut self) {
        self.phase += 1;
        self.next = 0;
    }

    pub(super) fn put_back(&mut self, next: usize) {
        self.next = next;
    }

    pub(super) fn begin_again_apart(&mut self) {
        (self.phase, self.next) = (0, 0);
        if let Demand::Rows(rows) = &mut self.demand {
            rows.apart = true;
        }
    }

    /// What is left of its phase.
    fn rest(&self) -> Option<Rest<'_>> {
        let Demand::Rows(rows) = &self.demand else { return None };
        let direction = *rows.phases.get(self.phase)?;
        let lengths = rows.lengths.get(self.next..)?;
        let is_last_phase = self.phase + 1 == rows.phases.len();
        Some(Rest { direction, lengths, is_last_phase, apart: rows.apart })
    }
}

/// The data of a job that have not been through its phase.
struct Rest<'a> {
    direction: Direction,
    lengths: &'a [usize],
    is_last_phase: bool,
    apart: bool,
}

impl Lane {
    pub(super) fn new(credit: i64) -> Self {
        Self { credit, round: 0, was_idle: true, lines: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn push(&mut self, run: RunId, job: Job) {
        self.lines.entry(run).or_default().push_back(job);
    }

    pub(super) fn remove(&mut self, run: &RunId, id: JobId) {
        let Some(line) = self.lines.get_mut(run) else { return };
        line.retain(|job| job.id != id);
        if line.is_empty() {
            self.lines.remove(run);
        }
    }

    pub(super) fn job(&mut self, run: &RunId, id: JobId) -> Option<&mut Job> {
        self.lines.get_mut(run)?.iter_mut().find(|job| job.id == id)
    }

    pub(super) fn demand(&self, run: &RunId, id: JobId) -> Option<&Demand> {
        self.lines.get(run)?.iter().find(|job| job.id == id).map(|job| &job.demand)
    }

    /// The oldest operation at the head of a line that is not computed in passes.
    pub(super) fn immediate(&self, may_step: impl Fn(&RunId) -> bool, may_do_others: bool) -> Option<JobId> {
        let due = |(run, line): (&RunId, &VecDeque<Job>)| {
            let head = line.front()?;
            let is_due = match &head.demand {
                Demand::Step => may_step(run),
                Demand::Other => may_do_others,
                Demand::Rows(_) => false,
            };
            is_due.then_some(head.id)
        };
        self.lines.iter().filter_map(due).min()
    }

    /// Puts data of the oldest run that is ready into a pass, until the credit is used up or the pass is full.
    pub(super) fn serve(&mut self, tenant: &TenantId, turn: &mut Turn) -> Taken {
        let mut ready: Vec<(&RunId, &mut VecDeque<Job>)> = self.lines.iter_mut().collect();
        ready.sort_unstable_by_key(|(_, line)| line.front().map(|job| job.id));
        let mut is_blocked = false;
        for (run, line) in ready {
            if !turn.admits(run) {
                is_blocked = true;
                continue;
            }
            let (mut wanted, mut has_taken, mut follows) = (false, false, None);
            for job in line.iter_mut() {
                let Some(rest) = job.rest() else { break };
                // What follows in the run may share the pass, but only whole: should it fail, the run is as it was
                // before all of them, and each is tried apart.
                if follows.is_some_and(|direction| !rest.is_like(direction)) {
                    break;
                }
                let apart = rest.apart.then_some(job.id);
                if !rest.lengths.is_empty() {
                    wanted = true;
                    let credit = if follows.is_some() { i64::MAX } else { self.credit };
                    let (count, rows) = fitting(&rest, credit, turn.room_for(apart), turn.is_empty());
                    let is_whole = count == rest.lengths.len();
                    if count == 0 || (follows.is_some() && !is_whole) {
                        break;
                    }
                    let ends = is_whole && rest.is_last_phase;
                    let data = job.next..job.next + count;
                    turn.take(rest.direction, apart, tenant, run, job.id, data, rows, ends);
                    // Nothing is free.
                    self.credit -= i64::try_from(rows).unwrap_or(i64::MAX).max(1);
                    has_taken = true;
                    let goes_on = is_whole && self.credit > 0;
                    let (direction, is_over) = (rest.direction, ends && apart.is_none());
                    job.next += count;
                    if !(goes_on && is_over) {
                        break;
                    }
                    follows = Some(direction);
                } else if rest.is_last_phase && !rest.apart {
                    follows = Some(rest.direction);
                } else {
                    break;
                }
            }
            if has_taken {
                return Taken::Some;
            }
            is_blocked |= wanted;
        }
        if is_blocked { Taken::NoRoom } else { Taken::Nothing }
    }
}

/// How many of the data the credit and the room are enough for, and their rows. The first that goes beyond the credit is
/// still served; the first of all that goes beyond the room has a pass for itself.
fn fitting(rest: &Rest, credit: i64, mut room: usize, is_first: bool) -> (usize, usize) {
    let (mut count, mut rows) = (0, 0);
    for length in rest.lengths {
        let fits = *length <= room || (is_first && count == 0);
        if !fits || i64::try_from(rows).unwrap_or(i64::MAX) >= credit {
            break;
        }
        room = room.saturating_sub(*length);
        rows += length;
        count += 1;
    }
    (count, rows)
}

impl Rest<'_> {
    /// Whether it may follow, in the same pass, an operation that goes this way.
    fn is_like(&self, direction: Direction) -> bool {
        self.direction == direction && self.is_last_phase && !self.apart
    }
}
