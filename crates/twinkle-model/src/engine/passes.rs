//! Passes that several runs share: what each takes from them, and what a failure costs.
//!
//! A pass adds to the gradients of its runs and changes nothing else, so whatever happens in it can be taken back run by
//! run. A number that is not finite is the fault of the run where it appears. Any other failure of a pass with several
//! operations accuses none of them: all begin again, each in passes of its own, where only the guilty one fails. The bits
//! of the others are the same, because a pass's neighbours do not change them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::time::Instant;
use tracing::{error, warn};
use twinkle_core::call::RunOutcome;
use twinkle_core::engine::supervisor::panic_text;
use twinkle_core::ids::{RunId, TenantId};
use twinkle_core::telemetry::labels::{BaseModel as BaseModelLabel, Component, Deployment, Model, Task, TaskType};
use twinkle_core::telemetry::metrics::{ENGINE_PASS, ENGINE_TURN, PASS_ROWS, PASS_RUNS, TOKENS_TRAINED};
use twinkle_core::{Error, ErrorCode, Result};

use super::waiting::{RowsJob, Waiting};
use super::{Engine, Lost};
use crate::failure::Ending;
use crate::memory;
use crate::pass::{Found, Participant};
use crate::schedule::{Direction, JobId, Piece, PlannedPass};
use crate::snapshot::Snapshots;
use crate::step::check_gradients;
use crate::undo::Undo;

/// The part of a pass that belongs to one run.
struct Group {
    tenant: TenantId,
    run: RunId,
    /// In the run's order.
    pieces: Vec<Piece>,
}

impl Engine {
    /// Computes a pass and answers the operations that end in it.
    pub(super) fn pass(&mut self, plan: PlannedPass) -> Result<(), Lost> {
        let backward = plan.direction == Direction::Backward;
        let groups = self.bring_in(plan.pieces);
        let rows: usize = groups.iter().flat_map(|group| &group.pieces).map(|piece| piece.rows).sum();
        if rows > 0 {
            let stages = self.begin_pass(&groups, rows);
            let began = Instant::now();
            let ended = Ending::of(catch_unwind(AssertUnwindSafe(|| self.compute(&groups, backward))));
            let took = began.elapsed();
            drop(stages);
            let ended = match ended {
                // The tickets still say that work had begun.
                Ending::Lost(reason) => return Err(Lost(reason)),
                ended => ended,
            };
            self.gauges.pulse.end();
            for piece in groups.iter().flat_map(|group| &group.pieces) {
                if let Some(job) = self.rows_job(piece.job) {
                    job.end_pass(took, piece.rows as f64 / rows as f64);
                }
            }
            let labels = || Component { deployment: Deployment::Model };
            ENGINE_PASS.record(took, labels());
            PASS_ROWS.record(rows as u64, labels());
            PASS_RUNS.record(groups.len() as u64, labels());
            match ended {
                Ending::Whole(Ok(found)) => {
                    for (group, found) in groups.iter().zip(found) {
                        self.take_in(group, found, backward);
                    }
                }
                Ending::Whole(Err(reason)) => self.pass_failed(&groups, reason, false),
                Ending::Torn(reason) => self.pass_failed(&groups, reason, true),
                Ending::Lost(_) => {}
            }
        }
        // Runs in the middle of an operation stay: their gradients are half of something.
        self.runs.release();
        self.runs.hold(self.undo.keys().cloned());
        self.show_runs();
        Ok(())
    }

    /// Brings the runs of a pass into memory. Operations whose run cannot be had are answered, or wait for the next turn.
    fn bring_in(&mut self, pieces: Vec<Piece>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for piece in pieces {
            match groups.iter_mut().find(|group| group.run == piece.run) {
                Some(group) => group.pieces.push(piece),
                None => {
                    groups.push(Group { tenant: piece.tenant.clone(), run: piece.run.clone(), pieces: vec![piece] });
                }
            }
        }
        self.runs.hold(groups.iter().map(|group| group.run.clone()));
        let mut ready = Vec::with_capacity(groups.len());
        for group in groups {
            let disk = Snapshots { context: &self.context, runtime: &self.runtime };
            let runs = &mut self.runs;
            let found = catch_unwind(AssertUnwindSafe(|| runs.get(&disk, &group.tenant, &group.run).map(|_| ())));
            let found = found.unwrap_or_else(|panic| Err(read_failed(&panic_text(panic.as_ref()))));
            match found {
                Ok(()) => ready.push(group),
                // There is room once those that are in the middle of something have ended.
                Err(error)
                    if error.code == ErrorCode::ResourceExhausted && !(ready.is_empty() && self.undo.is_empty()) =>
                {
                    for piece in group.pieces.iter().rev() {
                        self.schedule.put_back(piece);
                    }
                }
                Err(error) => {
                    let ended = group.pieces.iter().map(|piece| (piece.job, Err(error.clone()))).collect();
                    self.undo.remove(&group.run);
                    self.conclude(&group.run, ended);
                }
            }
        }
        ready
    }

    fn begin_pass(&mut self, groups: &[Group], rows: usize) -> Vec<twinkle_core::telemetry::trace::Stage> {
        let base_model = self.context.base_model.clone();
        let mut what = None;
        let mut stages = Vec::new();
        for piece in groups.iter().flat_map(|group| &group.pieces) {
            if let Some(job) = self.rows_job(piece.job) {
                what.get_or_insert_with(|| format!("{} of run `{}`", job.name, job.run));
                stages.push(job.begin_pass(rows, groups.len(), &base_model));
            }
        }
        let mut what = what.unwrap_or_default();
        if groups.len() > 1 {
            what = format!("{what} and of {} other runs", groups.len() - 1);
        }
        self.gauges.pulse.begin(what);
        stages
    }

    fn compute(&mut self, groups: &[Group], backward: bool) -> Result<Vec<Vec<Found>>> {
        let Self { context, backend, runs, jobs, undo, .. } = self;
        let ids: Vec<&RunId> = groups.iter().map(|group| &group.run).collect();
        let residents = runs.several(&ids);
        if residents.len() != groups.len() {
            return Err(Error::internal("a run of this pass is not in memory"));
        }
        let mut participants = Vec::with_capacity(groups.len());
        for (group, resident) in groups.iter().zip(residents) {
            if backward && !undo.contains_key(&group.run) {
                undo.insert(group.run.clone(), Undo::of(&resident.run.gradients));
            }
            let mut shares = Vec::with_capacity(group.pieces.len());
            for piece in &group.pieces {
                let Some(Waiting::Rows(job)) = jobs.get(&piece.job) else {
                    return Err(Error::internal("an operation of this pass is gone"));
                };
                shares.push(job.data.batch().share(&job.progress, piece.data.clone()));
            }
            participants.push(Participant { run: &mut resident.run, shares });
        }
        let taken = undo.values().map(Undo::bytes).sum();
        let way = memory::plan_pass(&context.base, context.limits.memory, &participants, backward, taken)?;
        backend.pass(&context.base, &mut participants, way)
    }

    /// What a pass found for one run: its operations go on or are answered, or fail and are taken back.
    fn take_in(&mut self, group: &Group, found: Vec<Found>, backward: bool) {
        let judged = catch_unwind(AssertUnwindSafe(|| self.judge(group, found, backward)));
        let judged = judged
            .unwrap_or_else(|panic| Err(Error::internal(format!("the engine failed: {}", panic_text(panic.as_ref())))));
        match judged {
            Ok(ended) => {
                let is_between_passes =
                    group.pieces.last().is_some_and(|last| backward && !ended.iter().any(|(job, _)| *job == last.job));
                if !is_between_passes {
                    self.undo.remove(&group.run);
                }
                self.conclude(&group.run, ended);
            }
            Err(reason) => {
                self.take_back(&group.run);
                match group.pieces.as_slice() {
                    [piece] => self.conclude(&group.run, vec![(piece.job, Err(reason))]),
                    pieces => pieces.iter().for_each(|piece| self.begin_again_apart(piece.job)),
                }
            }
        }
    }

    /// Adds what was found to each operation's; gives those that have come to their end, with their answers.
    fn judge(&mut self, group: &Group, found: Vec<Found>, backward: bool) -> Result<Vec<(JobId, Result<RunOutcome>)>> {
        // Logprobs and losses first: an error that names them says more than one about the gradient.
        for (piece, found) in group.pieces.iter().zip(found) {
            let Some(Waiting::Rows(job)) = self.jobs.get_mut(&piece.job) else { continue };
            let RowsJob { data, progress, .. } = job.as_mut();
            data.batch().absorb(progress, found)?;
        }
        if backward && let Some(resident) = self.runs.in_memory(&group.run) {
            check_gradients(&resident.run)?;
        }
        let mut ended = Vec::new();
        for piece in &group.pieces {
            let Some(Waiting::Rows(job)) = self.jobs.get_mut(&piece.job) else { continue };
            let RowsJob { data, progress, phase, .. } = job.as_mut();
            let batch = data.batch();
            if !batch.ends_with(&piece.data) {
                continue;
            }
            batch.end_phase(progress)?;
            *phase += 1;
            if *phase < batch.phases().len() {
                self.schedule.next_phase(piece.job);
            } else {
                let outcome = batch.outcome(std::mem::take(progress));
                ended.push((piece.job, Ok(RunOutcome::ForwardBackward(outcome))));
            }
        }
        Ok(ended)
    }

    /// A pass failed as a whole. Alone, the operation is to blame; among others, each begins again apart.
    fn pass_failed(&mut self, groups: &[Group], reason: Error, is_torn: bool) {
        for group in groups {
            self.take_back(&group.run);
        }
        if let [Group { run, pieces, .. }] = groups
            && let [piece] = pieces.as_slice()
        {
            if is_torn {
                error!(%run, %reason, "an operation panicked; its run is rebuilt from the journal");
                self.runs.lose(run);
            }
            self.conclude(run, vec![(piece.job, Err(reason))]);
            return;
        }
        warn!(runs = groups.len(), %reason, "a shared pass failed; its operations begin again apart");
        for piece in groups.iter().flat_map(|group| &group.pieces) {
            self.begin_again_apart(piece.job);
        }
    }

    fn begin_again_apart(&mut self, id: JobId) {
        if let Some(job) = self.rows_job(id) {
            job.begin_again();
        }
        self.schedule.begin_again_apart(id);
    }

    /// Puts a run's gradients back as they were before the operation it is in the middle of.
    pub(super) fn take_back(&mut self, run: &RunId) {
        let Some(undo) = self.undo.remove(run) else { return };
        if let Some(resident) = self.runs.in_memory(run) {
            undo.restore(&mut resident.run.gradients);
        }
    }

    /// Answers operations of one run, in their order.
    fn conclude(&mut self, run: &RunId, ended: Vec<(JobId, Result<RunOutcome>)>) {
        let mut answered = Vec::with_capacity(ended.len());
        for (id, outcome) in ended {
            self.schedule.finished(id);
            let Some(Waiting::Rows(job)) = self.jobs.remove(&id) else { continue };
            let task_type = TaskType(job.name);
            ENGINE_TURN.record(job.spent, Task { deployment: Deployment::Model, task_type });
            job.end_stage();
            self.executed(run, job.position, job.spent);
            if let Ok(outcome) = &outcome {
                self.count(run, &job, outcome);
                TOKENS_TRAINED.add(job.tokens, Model { base_model: BaseModelLabel::new(&self.context.base_model) });
            }
            answered.push((job, outcome));
        }
        for (job, outcome) in answered {
            // The journal may be gone while the node stops; the operation is durable, so nothing is lost.
            job.ticket.answer(outcome);
        }
        if !self.undo.contains_key(run) {
            self.keep(run, |engine| engine.snapshot_if_due(run));
        }
    }

    /// A backward pass that is over counts towards the run's next update.
    fn count(&mut self, run: &RunId, job: &RowsJob, outcome: &RunOutcome) {
        if let RunOutcome::ForwardBackward(found) = outcome
            && job.data.batch().backward
            && let Some(resident) = self.runs.in_memory(run)
        {
            let accumulation = &mut resident.run.accumulation;
            let every = job.accumulation_steps.unwrap_or(accumulation.every);
            // A size that no window can have was refused when the operation arrived.
            *accumulation = accumulation.with_every(every).unwrap_or(*accumulation);
            accumulation.count(found.num_tokens);
        }
    }

    fn rows_job(&mut self, id: JobId) -> Option<&mut RowsJob> {
        match self.jobs.get_mut(&id) {
            Some(Waiting::Rows(job)) => Some(job),
            _ => None,
        }
    }
}

fn read_failed(text: &str) -> Error {
    Error::internal(format!("reading the run back panicked: {text}"))
}
