//! What waits for the engine: checked on arrival, so that the schedule knows what it needs of the device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use twinkle_core::call::{ForwardOptions, Position, RunOperation, RunOutcome};
use twinkle_core::engine::supervisor::panic_text;
use twinkle_core::engine::ticket::Ticket;
use twinkle_core::ids::RunId;
use twinkle_core::telemetry::carried::Carried;
use twinkle_core::telemetry::labels::{Deployment, TaskType};
use twinkle_core::telemetry::spans::{self, Attribute};
use twinkle_core::telemetry::trace::{Origin, Stage};
use twinkle_core::{Error, Result};

use super::Work;
use crate::accumulation::Accumulation;
use crate::batch::{self, Example, Limits};
use crate::losses::{self, Loss};
use crate::schedule::{Demand, Rows};
use crate::step::{Batch, Progress};

/// An operation in the schedule.
pub(super) enum Waiting {
    /// It is not computed in passes, or it cannot be computed at all, for this reason.
    Operation(Box<Work>, Option<Error>),
    /// It is computed in passes.
    Rows(Box<RowsJob>),
}

/// A forward or forward-backward, before and between its passes.
pub(super) struct RowsJob {
    pub(super) run: RunId,
    pub(super) position: Position,
    pub(super) name: &'static str,
    /// Input tokens.
    pub(super) tokens: u64,
    pub(super) ticket: Ticket<RunOutcome>,
    /// How many passes an update takes from here on, if that changes.
    pub(super) accumulation_steps: Option<u64>,
    carried: Option<Carried>,
    /// Its span, from its first pass on.
    stage: Option<Origin>,
    pub(super) data: Checked,
    pub(super) progress: Progress,
    /// Phases it has behind it.
    pub(super) phase: usize,
    /// Its share of the time of its passes.
    pub(super) spent: Duration,
}

/// Data that were checked against the model and the loss.
pub(super) struct Checked {
    pub(super) examples: Vec<Example>,
    loss: Box<dyn Loss>,
    backward: bool,
    options: ForwardOptions,
    row_limit: usize,
}

impl Checked {
    pub(super) fn batch(&self) -> Batch<'_> {
        Batch::new(&self.examples, self.loss.as_ref(), self.backward, self.options, self.row_limit)
    }
}

impl Waiting {
    /// Checks the operation's data, if it has any.
    pub(super) fn of(mut work: Work, limits: Limits, row_limit: usize) -> (Demand, Self) {
        let tokens = work.call.input_tokens() as u64;
        let name = work.call.operation.name();
        match &mut work.call.operation {
            RunOperation::OptimStep(_) | RunOperation::Optimize(_) => {
                (Demand::Step, Self::Operation(Box::new(work), None))
            }
            RunOperation::ForwardBackward { data, loss, backward, options } => {
                let data = std::mem::take(data);
                let check = || -> Result<Checked> {
                    Accumulation::new(options.accumulation_steps.unwrap_or(1))?;
                    let loss = losses::build(loss)?;
                    let examples = batch::check(data, loss.as_ref(), limits)?;
                    batch::check_options(*options, *backward, &examples, limits)?;
                    Ok(Checked { examples, loss, backward: *backward, options: *options, row_limit })
                };
                let checked = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
                    Err(Error::internal(format!("checking the data failed: {}", panic_text(panic.as_ref()))))
                });
                match checked {
                    Ok(data) => Self::rows(work, name, tokens, data),
                    Err(reason) => (Demand::Other, Self::Operation(Box::new(work), Some(reason))),
                }
            }
            _ => (Demand::Other, Self::Operation(Box::new(work), None)),
        }
    }

    fn rows(work: Work, name: &'static str, tokens: u64, data: Checked) -> (Demand, Self) {
        let Work { call, ticket, carried, is_suspect, .. } = work;
        let demand =
            Demand::Rows(Rows { lengths: data.batch().lengths(), phases: data.batch().phases(), apart: is_suspect });
        let accumulation_steps = match &call.operation {
            RunOperation::ForwardBackward { options, .. } => options.accumulation_steps,
            _ => None,
        };
        let job = RowsJob {
            run: call.run,
            position: call.position,
            name,
            tokens,
            ticket,
            accumulation_steps,
            carried: Some(carried),
            stage: None,
            data,
            progress: Progress::default(),
            phase: 0,
            spent: Duration::ZERO,
        };
        (demand, Self::Rows(Box::new(job)))
    }
}

impl RowsJob {
    /// A pass with some of its data begins, `rows` rows in all: its span for this operation.
    pub(super) fn begin_pass(&mut self, rows: usize, runs: usize, base_model: &str) -> Stage {
        self.ticket.begin();
        let task_type = TaskType(self.name);
        let stage = self.stage.get_or_insert_with(|| {
            let origin = self.carried.take().map(|carried| carried.join(Deployment::Model, task_type));
            spans::begin_in(&origin.unwrap_or_default(), spans::operation(self.name))
                .with(Attribute::TaskType, self.name)
                .with_text(Attribute::ModelId, &self.run)
                .with_text(Attribute::BaseModel, &base_model)
                .into_origin()
        });
        spans::begin_in(stage, spans::PASS)
            .with(Attribute::Rows, i64::try_from(rows).unwrap_or(i64::MAX))
            .with(Attribute::Runs, i64::try_from(runs).unwrap_or(i64::MAX))
    }

    /// Its pass is over, of which its data were this part.
    pub(super) fn end_pass(&mut self, took: Duration, part: f64) {
        self.ticket.pause();
        self.spent += took.mul_f64(part.clamp(0.0, 1.0));
    }

    /// Forgets what its passes have found.
    pub(super) fn begin_again(&mut self) {
        self.progress = Progress::default();
        self.phase = 0;
    }

    /// Ends its span.
    pub(super) fn end_stage(&self) {
        if let Some(stage) = &self.stage {
            stage.end();
        }
    }
}
