//! The line to the engine: it outlives each engine, and asks the next one again what a lost one did not answer.
//!
//! A sample is a pure function of its request, so asking again gives the same tokens. A request at which an engine was
//! lost is a suspect: suspects are tried again one at a time, and the one that takes a second engine with it is given up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;
use twinkle_core::call::SampleOutcome;
use twinkle_core::engine::pulse::Pulse;
use twinkle_core::engine::supervisor::{RestartPolicy, Supervision, supervise};
use twinkle_core::engine::suspects::MOST_LOSSES;
use twinkle_core::engine::ticket::{Answer, ticket};
use twinkle_core::ids::TenantId;
use twinkle_core::telemetry::carried::Carried;
use twinkle_core::telemetry::labels::{Component, Deployment};
use twinkle_core::telemetry::metrics::ENGINE_RESTARTS;
use twinkle_core::{Error, Result};

use crate::adapters::Weights;
use crate::engine::{Command, Engine, Work};
use crate::failure::stopped;
use crate::params::ValidRequest;
use crate::runner::Runner;
use crate::scheduler::Scheduler;
use crate::stats::EngineStats;

/// Commands between the handle and the engine thread.
const LENGTH: usize = 256;

/// What is asked: everything that decides the tokens.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who asks.
    pub tenant: TenantId,
    /// What for; its seed is fixed.
    pub request: ValidRequest,
    /// The version of the weights, kept for as long as it takes.
    pub weights: Weights,
}

/// The line to one sampling engine and those that follow it.
#[derive(Debug)]
pub struct Line {
    commands: mpsc::Sender<Command>,
    pulse: Pulse,
    stats: Arc<EngineStats>,
    /// Held by the suspect that is tried again.
    suspects: Semaphore,
    /// Cancelled when the node stops: a lost engine is not started again.
    stopping: CancellationToken,
}

impl Line {
    /// Starts an engine over what `parts` makes on its thread, and another whenever one is lost.
    pub fn start<R: Runner>(
        policy: RestartPolicy,
        parts: impl Fn() -> (R, Box<dyn Scheduler>) + Send + Sync + 'static,
    ) -> Result<Self> {
        let (commands, receiver) = mpsc::channel(LENGTH);
        let (pulse, stats, stopping) = (Pulse::default(), Arc::new(EngineStats::default()), CancellationToken::new());
        let supervision =
            Supervision { name: "sampler-engine", pulse: pulse.clone(), stopping: stopping.clone(), policy };
        let (beats, counts) = (pulse.clone(), Arc::clone(&stats));
        supervise(supervision, receiver, move |incarnation, commands| {
            if incarnation > 0 {
                ENGINE_RESTARTS.add(1, Component { deployment: Deployment::Sampler });
            }
            let (runner, scheduler) = parts();
            Engine::new(runner, scheduler, Arc::clone(&counts), beats.clone()).work(commands)
        })
        .map_err(|error| Error::internal(format!("the engine thread could not be started: {error}")))?;
        Ok(Self { commands, pulse, stats, suspects: Semaphore::new(1), stopping })
    }

    /// What the engine is doing.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// What the engine holds.
    #[must_use]
    pub fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// Asks until there is an answer, whatever becomes of the engine. Dropping the future aborts the request.
    pub async fn ask(&self, question: Question) -> Result<SampleOutcome> {
        let mut losses = 0;
        while losses < MOST_LOSSES {
            let _alone = match losses {
                0 => None,
                _ => Some(self.suspects.acquire().await.map_err(|_| stopped())?),
            };
            match self.ask_once(question.clone()).await? {
                Answer::Given(outcome) => return outcome,
                Answer::Lost { .. } if self.stopping.is_cancelled() => return Err(stopped()),
                Answer::Lost { begun } => losses += u32::from(begun),
            }
        }
        error!(tenant = %question.tenant, "a poison sampling request is given up");
        Err(Error::internal(format!(
            "poison request: the sampling engine was lost each of the {losses} times it computed it"
        )))
    }

    async fn ask_once(&self, question: Question) -> Result<Answer<SampleOutcome>> {
        let Question { tenant, request, weights } = question;
        let (ticket, answer) = ticket(&self.pulse);
        let work = Work { tenant, request, weights, ticket, carried: Carried::from_here() };
        self.commands.send(Command::Sample(Box::new(work))).await.map_err(|_| stopped())?;
        Ok(answer.await.unwrap_or(Answer::Lost { begun: false }))
    }

    /// Finishes what can be finished within `limit`; the rest is answered with an error.
    pub async fn drain(&self, limit: Duration) {
        self.pulse.draining();
        self.stopping.cancel();
        let (done, drained) = oneshot::channel();
        let deadline = Instant::now() + limit;
        let finish = async {
            if self.commands.send(Command::Drain { deadline, done }).await.is_ok() {
                // An engine that is already gone has nothing to drain.
                let _ = drained.await;
            }
        };
        // A step that hangs must not hang the node.
        let _ = tokio::time::timeout(limit + Duration::from_secs(5), finish).await;
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
