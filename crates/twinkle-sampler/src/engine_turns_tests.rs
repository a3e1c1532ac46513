//! An engine whose turns the test takes itself: what is free after which turn.

use twinkle_core::engine::ticket::ticket;
use twinkle_core::telemetry::carried::Carried;

use super::tests::{Asked, Scripted, request};
use super::*;
use crate::scheduler::{FairScheduler, SchedulerLimits};

struct Turns(Engine<Scripted>);

impl Turns {
    fn new() -> Self {
        let limits =
            SchedulerLimits { seats: 4, kv_tokens: 200, sequence_tokens: 0, step_tokens: 16, tile: 8, waiting: 100 };
        let (stats, pulse) = (Arc::new(EngineStats::default()), Pulse::default());
        Self(Engine::new(Scripted::default(), Box::new(FairScheduler::new(limits)), stats, pulse))
    }

    fn ask(&mut self, request: ValidRequest) -> Asked {
        let (ticket, answer) = ticket(&self.0.pulse);
        let carried = Carried::from_here();
        self.0.admit(Work { tenant: TenantId::new("t"), request, weights: Weights::default(), ticket, carried });
        Asked(answer)
    }

    /// What the engine's loop does between two looks at its commands.
    fn turn(&mut self) {
        self.0.drop_abandoned();
        self.0.step().unwrap();
        self.0.publish_stats();
    }
}

#[test]
fn a_cancelled_request_is_gone_within_one_turn_whether_it_runs_or_waits() {
    let mut turns = Turns::new();
    let long = || ValidRequest { max_new_tokens: 150, samples: 2, ..request(&[1; 20]) };
    let running = turns.ask(long());
    let waiting: Vec<Asked> = (0..5).map(|_| turns.ask(long())).collect();
    let last = turns.ask(ValidRequest { max_new_tokens: 3, ..request(&[7, 8]) });
    for _ in 0..6 {
        turns.turn();
    }
    assert_eq!((turns.0.requests.len(), turns.0.scheduler.len()), (7, 7));
    let held = turns.0.stats.cache_bytes();
    assert!(held >= 20, "the first one runs: {held}");

    // The engine is nowhere but between two turns; one waits, one runs.
    drop(waiting);
    turns.turn();
    assert_eq!((turns.0.requests.len(), turns.0.scheduler.len()), (2, 2));
    drop(running);
    turns.turn();
    assert_eq!((turns.0.requests.len(), turns.0.scheduler.len()), (1, 1));
    // Its memory was free in the same turn: the one behind it began.
    assert_eq!(turns.0.stats.cache_bytes(), 2);
    for _ in 0..3 {
        turns.turn();
    }
    assert_eq!(last.blocking_recv().unwrap().unwrap().sequences[0].tokens.len(), 3);
    assert_eq!((turns.0.scheduler.len(), turns.0.stats.cache_bytes()), (0, 0));
}

#[test]
fn samples_that_have_not_begun_take_no_memory() {
    let mut turns = Turns::new();
    let asked: Vec<Asked> = (0..100).map(|_| turns.ask(ValidRequest { samples: 1024, ..request(&[1, 2]) })).collect();
    for _ in 0..10 {
        turns.turn();
        let begun: usize = turns.0.requests.values().map(|request| 1024 - request.waiting_count()).sum();
        let running: usize = turns.0.requests.values().map(Request::running_count).sum();
        assert!(running <= 4 && begun < 100, "{running} run, {begun} have begun");
    }
    drop(asked);
    turns.turn();
    assert_eq!((turns.0.requests.len(), turns.0.stats.cache_bytes()), (0, 0));
}
