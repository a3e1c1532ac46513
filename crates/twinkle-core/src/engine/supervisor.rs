//! Starts an engine's thread, and starts another when it fails.
//!
//! The channel outlives the engine: what was not taken from it waits for the next one. What the lost engine had taken is
//! answered by its tickets. The supervisor itself is a thread that only waits.

use std::any::Any;
use std::io;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::pulse::Pulse;

/// How soon a pause notices that the node stops.
const STOP_CHECKED_EVERY: Duration = Duration::from_millis(20);

/// How an engine's loop came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, or nobody can ask any more.
    Stopped,
    /// It cannot go on, for this reason: its device or its own state can no longer be trusted.
    Broken(String),
}

/// How patiently an engine is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// The pause before the first restart; it doubles with every further one that brings no progress.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// After this many restarts without progress the failure is called lasting. Restarts go on.
    pub patience: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { first_pause: Duration::from_millis(50), longest_pause: Duration::from_secs(30), patience: 5 }
    }
}

impl RestartPolicy {
    /// The pause after the `failures`-th failure in a row, from 1.
    fn pause(&self, failures: u32) -> Duration {
        let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
        self.first_pause.saturating_mul(factor).min(self.longest_pause)
    }
}

/// What the supervisor works with besides the engine.
#[derive(Clone, Debug)]
pub struct Supervision {
    /// The name of the engine's thread.
    pub name: &'static str,
    /// Where the engine's life is written down.
    pub pulse: Pulse,
    /// Once cancelled, a lost engine is not started again.
    pub stopping: CancellationToken,
    /// How patiently it is started again.
    pub policy: RestartPolicy,
}

/// Runs engines over `commands`, one after the other, until one is stopped. `engine` gets the number of those before it.
pub fn supervise<Command, Engine>(
    supervision: Supervision,
    mut commands: mpsc::Receiver<Command>,
    engine: Engine,
) -> io::Result<()>
where
    Command: Send + 'static,
    Engine: Fn(u64, &mut mpsc::Receiver<Command>) -> Ended + Send + Sync + 'static,
{
    let name = format!("{}-watch", supervision.name);
    thread::Builder::new().name(name).spawn(move || {
        supervision.watch(&mut commands, &engine);
        supervision.pulse.stopped();
    })?;
    Ok(())
}

impl Supervision {
    fn watch<Command, Engine>(&self, commands: &mut mpsc::Receiver<Command>, engine: &Engine)
    where
        Command: Send,
        Engine: Fn(u64, &mut mpsc::Receiver<Command>) -> Ended + Sync,
    {
        let mut failures = 0;
        for incarnation in 0.. {
            let passes = self.pulse.passes();
            let reason = match self.run(commands, |commands| engine(incarnation, commands)) {
                Ended::Stopped => return,
                Ended::Broken(reason) => reason,
            };
            if self.stopping.is_cancelled() {
                error!(engine = self.name, reason, "the engine was lost while it stopped; its journal has everything");
                return;
            }
            failures = if self.pulse.passes() > passes { 1 } else { failures + 1 };
            let pause = self.policy.pause(failures);
            self.pulse.lost(&reason, failures > self.policy.patience);
            error!(
                engine = self.name,
                reason,
                restarts = self.pulse.restarts(),
                pause_ms = pause.as_millis() as u64,
                "the engine was lost and is started again"
            );
            if self.is_stopped_within(pause) {
                info!(engine = self.name, "not started again: the node stops");
                return;
            }
        }
    }

    /// Waits on this thread, not on the runtime: that may end first.
    fn is_stopped_within(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while !self.stopping.is_cancelled() {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            thread::sleep(rest.min(STOP_CHECKED_EVERY));
        }
        true
    }

    /// One engine on a thread of its own, from its start to its end.
    fn run<Command: Send>(
        &self,
        commands: &mut mpsc::Receiver<Command>,
        engine: impl FnOnce(&mut mpsc::Receiver<Command>) -> Ended + Send,
    ) -> Ended {
        thread::scope(|scope| {
            let thread = thread::Builder::new().name(self.name.to_owned());
            match thread.spawn_scoped(scope, || engine(commands)) {
                Ok(running) => running.join().unwrap_or_else(|panic| Ended::Broken(panic_text(panic.as_ref()))),
                Err(error) => Ended::Broken(format!("its thread could not be started: {error}")),
            }
        })
    }
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("unknown panic").to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::component::Health;
    use crate::engine::ticket::{Answer, Ticket, ticket};

    enum Command {
        Say(Ticket<u64>),
        Panic,
        Break,
        Stop,
    }

    struct House {
        line: mpsc::Sender<Command>,
        pulse: Pulse,
        stopping: CancellationToken,
    }

    impl House {
        /// An engine that says its number; the first `broken` of them break at once.
        fn open(broken: u64, policy: RestartPolicy) -> Self {
            let (line, commands) = mpsc::channel(8);
            let (pulse, stopping) = (Pulse::default(), CancellationToken::new());
            let supervision =
                Supervision { name: "test-engine", pulse: pulse.clone(), stopping: stopping.clone(), policy };
            let beats = pulse.clone();
            let engine = move |number: u64, commands: &mut mpsc::Receiver<Command>| {
                if number < broken {
                    return Ended::Broken(format!("engine {number} is broken"));
                }
                beats.working();
                while let Some(command) = commands.blocking_recv() {
                    match command {
                        Command::Say(ticket) => ticket.answer(Ok(number)),
                        Command::Panic => panic!("scripted"),
                        Command::Break => return Ended::Broken("the device is gone".to_owned()),
                        Command::Stop => return Ended::Stopped,
                    }
                    beats.end();
                }
                Ended::Stopped
            };
            supervise(supervision, commands, engine).unwrap();
            Self { line, pulse, stopping }
        }

        async fn ask(&self) -> oneshot::Receiver<Answer<u64>> {
            let (ticket, answer) = ticket(&self.pulse);
            assert!(self.line.send(Command::Say(ticket)).await.is_ok());
            answer
        }

        async fn number(&self) -> u64 {
            match self.ask().await.await {
                Ok(Answer::Given(Ok(number))) => number,
                other => panic!("{other:?}"),
            }
        }

        async fn tell(&self, command: Command) {
            assert!(self.line.send(command).await.is_ok());
        }
    }

    #[tokio::test]
    async fn a_lost_engine_is_followed_by_another_and_the_line_waits_for_it() {
        let house = House::open(0, RestartPolicy::default());
        assert_eq!(house.number().await, 0);
        house.tell(Command::Panic).await;
        assert_eq!(house.number().await, 1);
        house.tell(Command::Break).await;
        assert_eq!(house.number().await, 2);
        assert_eq!(house.pulse.health(), Health::Ready);
        let status = house.pulse.status();
        assert_eq!((status.restarts, status.last_failure.as_deref()), (2, Some("the device is gone")));
        house.tell(Command::Stop).await;
        house.line.closed().await;
    }

    #[tokio::test]
    async fn an_engine_that_cannot_start_is_tried_again_until_it_can() {
        let policy = RestartPolicy { first_pause: Duration::from_millis(1), patience: 2, ..RestartPolicy::default() };
        let house = House::open(6, policy);
        assert_eq!(house.number().await, 6);
        assert_eq!(house.pulse.restarts(), 6);
    }

    #[tokio::test]
    async fn a_node_that_stops_does_not_wait_for_the_next_engine() {
        let policy = RestartPolicy { first_pause: Duration::from_hours(1), ..RestartPolicy::default() };
        let policy = RestartPolicy { longest_pause: Duration::from_hours(1), patience: 0, ..policy };
        let house = House::open(0, policy);
        house.tell(Command::Panic).await;
        let waiting = house.ask().await;
        house.stopping.cancel();
        house.line.closed().await;
        assert!(matches!(waiting.await, Ok(Answer::Lost { begun: false })));
    }

    #[test]
    fn pauses_double_up_to_their_bound() {
        let policy = RestartPolicy::default();
        let pauses: Vec<u128> = [1, 2, 3, 10, 11, 40].map(|failures| policy.pause(failures).as_millis()).into();
        assert_eq!(pauses, [50, 100, 200, 25_600, 30_000, 30_000]);
    }
}
