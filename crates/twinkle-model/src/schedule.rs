//! What the device does next: deficit round robin over tenants by tokens, passes shared by the runs that are ready.
//!
//! A turn of the engine is first everything that is not computed in passes, one of each run, then one pass over the rows
//! of many runs. Tenants are served in rounds, each up to a quantum of tokens (Shreedhar & Varghese 1995, with the credit
//! going below zero where a datum is longer than what is left of it); one that was idle is served before those that are
//! busy (as new flows in RFC 8290), so that a tenant with any amount of work delays another's small step by at most the
//! pass that is running. The rows of an operation are cut wherever a pass is full, never within a datum.
//!
//! Within a tenant the oldest operation that can go goes first. Within a run the order is kept: an operation that is not
//! computed in passes, such as an optimizer step, is a barrier for its own run and for nobody else's.
//!
//! Pure: it never touches a device or a clock.

mod lane;
mod turn;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use twinkle_core::ids::{RunId, TenantId};

use lane::{Job, Lane, Taken};
use turn::Turn;

/// An operation that waits or is in the middle of its passes, in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

/// What an operation needs of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    /// An optimizer step: done before the next pass, together with all others that are due.
    Step,
    /// Something else that is not computed in passes. A tenant has one of these in a turn.
    Other,
    /// Rows through the network.
    Rows(Rows),
}

/// Rows through the network, perhaps more than one pass can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many rows each datum has, or each group of data that no pass may cut.
    pub lengths: Vec<usize>,
    /// How all of them go through, one after the other.
    pub phases: Vec<Direction>,
    /// Whether it shares no pass, because it may take a pass down.
    pub apart: bool,
}

/// Which way rows go through the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Forward only.
    Forward,
    /// Forward and back.
    Backward,
}

/// One pass over the rows of one or more operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPass {
    /// Which way.
    pub direction: Direction,
    /// How many rows.
    pub rows: usize,
    /// Whose; those of one run are in its order.
    pub pieces: Vec<Piece>,
}

/// The data of one operation in one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The operation.
    pub job: JobId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its run.
    pub run: RunId,
    /// Which of its data.
    pub data: Range<usize>,
    /// How many rows they have.
    pub rows: usize,
}

/// Work waiting for the device.
#[derive(Debug)]
pub struct Schedule {
    rows_per_pass: usize,
    runs_per_pass: usize,
    lanes: HashMap<TenantId, Lane>,
    /// Tenants that were idle until now, after the one for whom the last pass had no room.
    fresh: VecDeque<TenantId>,
    /// Tenants that have used up a quantum.
    busy: VecDeque<TenantId>,
    owners: HashMap<JobId, (TenantId, RunId)>,
    arrivals: u64,
    /// The round in which the first tenant is.
    round: u64,
    /// Runs that had an optimizer step in this turn.
    stepped: HashSet<RunId>,
    /// Tenants that had something else in this turn.
    attended: HashSet<TenantId>,
}

impl Schedule {
    /// An empty schedule; a pass has at most so many rows (more only for a single longer datum) and runs.
    #[must_use]
    pub fn new(rows_per_pass: usize, runs_per_pass: usize) -> Self {
        Self {
            rows_per_pass: rows_per_pass.max(1),
            runs_per_pass: runs_per_pass.max(1),
            lanes: HashMap::new(),
            fresh: VecDeque::new(),
            busy: VecDeque::new(),
            owners: HashMap::new(),
            arrivals: 0,
            round: 0,
            stepped: HashSet::new(),
            attended: HashSet::new(),
        }
    }

    /// Tokens a tenant is served in one round: a quarter of a pass.
    fn quantum(&self) -> i64 {
        i64::try_from(self.rows_per_pass / 4).unwrap_or(i64::MAX).max(1)
    }

    /// Puts an operation at the end of its run's line.
    pub fn push(&mut self, tenant: TenantId, run: RunId, demand: Demand) -> JobId {
        self.arrivals += 1;
        let id = JobId(self.arrivals);
        let quantum = self.quantum();
        let lane = self.lanes.entry(tenant.clone()).or_insert_with(|| {
            self.fresh.push_back(tenant.clone());
            Lane::new(quantum)
        });
        lane.push(run.clone(), Job::new(id, demand));
        self.owners.insert(id, (tenant, run));
        id
    }

    /// The next operation of this turn that is not computed in passes; it counts as done.
    pub fn immediate(&mut self) -> Option<JobId> {
        let due = |(tenant, lane): (&TenantId, &Lane)| {
            let may_step = |run: &RunId| !self.stepped.contains(run);
            lane.immediate(may_step, !self.attended.contains(tenant))
        };
        let id = self.lanes.iter().filter_map(due).min()?;
        let (tenant, run) = self.owners.get(&id)?.clone();
        match self.lanes.get(&tenant).and_then(|lane| lane.demand(&run, id)) {
            Some(Demand::Step) => self.stepped.insert(run),
            _ => self.attended.insert(tenant),
        };
        self.finished(id);
        Some(id)
    }

    /// The passes of this turn, together at most as many rows as a pass may have: one for each direction, and one for
    /// each operation that shares none. All of them must be over before the next turn.
    pub fn passes(&mut self) -> Vec<PlannedPass> {
        self.stepped.clear();
        self.attended.clear();
        let quantum = self.quantum();
        let mut turn = Turn::new(self.rows_per_pass, self.runs_per_pass, quantum);
        let (mut passed_over, mut fresh, mut busy) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        // Of those set aside who want more: the round in which the first of them is.
        let mut least_aside = u64::MAX;
        while !turn.is_full() {
            let next = self.fresh.pop_front().map(|tenant| (tenant, true));
            let Some((tenant, is_fresh)) = next.or_else(|| Some((self.busy.pop_front()?, false))) else { break };
            let least_open = self.least_round();
            let Some(lane) = self.lanes.get_mut(&tenant) else { continue };
            if lane.was_idle {
                // Its absence neither costs nor earns it anything.
                lane.round = lane.round.max(least_open.min(least_aside).min(self.round));
                lane.was_idle = false;
            }
            if lane.credit <= 0 {
                // No round begins while somebody has not had its share of the last one, and nobody has a second quantum
                // in a pass whose answers another tenant waits for.
                let has_had_its_share = turn.has_served(&tenant) && turn.answers_another_than(&tenant);
                if lane.round > least_open && !has_had_its_share {
                    self.busy.push_back(tenant);
                } else if lane.round > least_aside || has_had_its_share {
                    least_aside = least_aside.min(lane.round);
                    busy.push_back(tenant);
                } else {
                    lane.credit += quantum;
                    lane.round += 1;
                    self.round = self.round.max(lane.round);
                    self.busy.push_back(tenant);
                }
                continue;
            }
            if lane.is_empty() {
                // It comes round once more before it is forgotten, so that nobody is fresh again at once.
                if is_fresh {
                    self.busy.push_back(tenant);
                } else {
                    self.lanes.remove(&tenant);
                }
                continue;
            }
            match lane.serve(&tenant, &mut turn) {
                Taken::Some if is_fresh => self.fresh.push_front(tenant),
                Taken::Some => self.busy.push_front(tenant),
                Taken::NoRoom => {
                    least_aside = least_aside.min(lane.round);
                    passed_over.push_back((tenant, is_fresh));
                }
                Taken::Nothing => {
                    lane.was_idle = true;
                    if is_fresh { fresh.push_back(tenant) } else { busy.push_back(tenant) }
                }
            }
        }
        self.fresh.append(&mut fresh);
        self.busy.append(&mut busy);
        // Of those for whom there was no room the first leads the next pass, and the others are in front of their kind.
        let leader = passed_over.pop_front();
        while let Some((tenant, is_fresh)) = passed_over.pop_back() {
            if is_fresh { self.fresh.push_front(tenant) } else { self.busy.push_front(tenant) }
        }
        if let Some((tenant, _)) = leader {
            self.fresh.push_front(tenant);
        }
        turn.into_passes()
    }

    /// The round of the first of those that are in line and have work.
    fn least_round(&self) -> u64 {
        let waiting = self.fresh.iter().chain(&self.busy).filter_map(|tenant| self.lanes.get(tenant));
        waiting.filter(|lane| !lane.is_empty() && !lane.was_idle).map(|lane| lane.round).min().unwrap_or(u64::MAX)
    }

    /// All rows of the operation have been through a phase; the next one begins.
    pub fn next_phase(&mut self, id: JobId) {
        if let Some(job) = self.job(id) {
            job.next_phase();
        }
    }

    /// The data of a planned pass were not computed: they lead the next one. Of a run's operations the last comes first.
    pub fn put_back(&mut self, piece: &Piece) {
        let Some(job) = self.job(piece.job) else { return };
        job.put_back(piece.data.start);
        if let Some(lane) = self.lanes.get_mut(&piece.tenant) {
            lane.credit = lane.credit.saturating_add(i64::try_from(piece.rows).unwrap_or(i64::MAX));
        }
        self.fresh.retain(|tenant| *tenant != piece.tenant);
        self.busy.retain(|tenant| *tenant != piece.tenant);
        self.fresh.push_front(piece.tenant.clone());
    }

    /// The operation is over, whatever came of it.
    pub fn finished(&mut self, id: JobId) {
        let Some((tenant, run)) = self.owners.remove(&id) else { return };
        if let Some(lane) = self.lanes.get_mut(&tenant) {
            lane.remove(&run, id);
        }
    }

    /// The operation begins once more, and shares no pass from now on.
    pub fn begin_again_apart(&mut self, id: JobId) {
        if let Some(job) = self.job(id) {
            job.begin_again_apart();
        }
    }

    fn job(&mut self, id: JobId) -> Option<&mut Job> {
        let (tenant, run) = self.owners.get(&id)?;
        self.lanes.get_mut(tenant)?.job(run, id)
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// How many operations wait or are in the middle of their passes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.len()
    }
}

#[cfg(test)]
mod tests;
