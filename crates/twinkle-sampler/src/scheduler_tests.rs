use proptest::prelude::*;

use super::*;

const LIMITS: SchedulerLimits =
    SchedulerLimits { seats: 4, kv_tokens: 1000, sequence_tokens: 0, step_tokens: 128, tile: 64, waiting: 40 };

fn job(id: JobId, tenant: &str, prompt: usize, max_new_tokens: usize, samples: u32) -> Job {
    Job { id, tenant: TenantId::new(tenant), prompt, max_new_tokens, samples }
}

fn scheduler(jobs: Vec<Job>) -> FairScheduler {
    let mut scheduler = FairScheduler::new(LIMITS);
    for job in jobs {
        scheduler.submit(job).unwrap();
    }
    scheduler
}

/// What was granted is exactly what is missing.
fn nothing_leaks(scheduler: &FairScheduler) {
    let lanes: usize = scheduler.admitted.values().map(|admitted| admitted.lanes).sum();
    let tokens: usize = scheduler.admitted.values().map(Admitted::tokens).sum();
    assert_eq!(scheduler.free_seats + lanes, scheduler.limits.seats);
    assert_eq!(scheduler.free_tokens + tokens, scheduler.limits.kv_tokens);
    assert_eq!(scheduler.waiting_count, scheduler.waiting.values().map(VecDeque::len).sum::<usize>());
    for admitted in scheduler.admitted.values() {
        assert!(admitted.lanes >= 1 && admitted.lanes >= admitted.running.len());
    }
    if scheduler.is_empty() {
        assert!(scheduler.seat_turns.0.is_empty() && scheduler.tile_turns.0.is_empty());
    }
}

#[test]
fn a_prompt_is_tiled_then_started_then_decoded() {
    let mut scheduler = scheduler(vec![job(1, "a", 150, 9, 1)]);
    let plan = scheduler.plan();
    assert_eq!(plan.prefill, [Tile { job: 1, rows: 0..64 }, Tile { job: 1, rows: 64..128 }]);
    assert!(plan.start.is_empty() && plan.decode.is_empty());
    let plan = scheduler.plan();
    let sample = SampleRef { job: 1, sample: 0 };
    assert_eq!(plan.prefill, [Tile { job: 1, rows: 128..150 }]);
    assert_eq!(plan.start, [Start { sample, takes_prompt: true }]);
    assert_eq!(scheduler.plan(), Plan { decode: vec![sample], ..Plan::default() });
    scheduler.finished(sample);
    assert!(scheduler.is_empty() && scheduler.plan().is_empty());
    nothing_leaks(&scheduler);
}

#[test]
fn what_a_sequence_takes_besides_its_tokens_is_reserved_for_each() {
    let mut scheduler = FairScheduler::new(SchedulerLimits { sequence_tokens: 50, ..LIMITS });
    let error = scheduler.submit(job(1, "a", 64, 887, 1)).unwrap_err();
    assert!(error.message.contains("needs 1001 tokens"), "{}", error.message);
    scheduler.submit(job(2, "a", 64, 100, 3)).unwrap();
    scheduler.plan();
    assert_eq!(scheduler.free_tokens(), 1000 - 214 - 114, "a lane and the prompt");
    scheduler.plan();
    assert_eq!(scheduler.free_tokens(), 1000 - 3 * 214);
    nothing_leaks(&scheduler);
    for sample in 0..3 {
        scheduler.finished(SampleRef { job: 2, sample });
    }
    assert_eq!(scheduler.free_tokens(), 1000);
}

#[test]
fn samples_share_a_prefill_and_the_last_takes_the_prompt() {
    let mut scheduler = scheduler(vec![job(1, "a", 64, 100, 3)]);
    let plan = scheduler.plan();
    assert_eq!(plan.prefill.len(), 1);
    assert_eq!(plan.start.len(), 1, "the lane of the request is ready before others are asked for");
    let plan = scheduler.plan();
    let takes: Vec<bool> = plan.start.iter().map(|start| start.takes_prompt).collect();
    assert_eq!(takes, [false, true]);
    assert_eq!(scheduler.free_tokens(), 1000 - 3 * 164);
    nothing_leaks(&scheduler);
}

#[test]
fn a_request_that_can_never_run_is_refused_at_once() {
    let mut scheduler = FairScheduler::new(LIMITS);
    assert!(scheduler.submit(job(1, "a", 500, 500, 1)).is_ok());
    let error = scheduler.submit(job(2, "a", 500, 501, 1)).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(scheduler.submit(job(3, "a", 500, 500, 2)).is_err());
}

#[test]
fn too_many_waiting_requests_are_turned_away() {
    let mut scheduler = FairScheduler::new(LIMITS);
    for id in 0..40 {
        scheduler.submit(job(id, "a", 1, 1, 1)).unwrap();
    }
    assert_eq!(scheduler.submit(job(40, "b", 1, 1, 1)).unwrap_err().code, ErrorCode::Overloaded);
}

#[test]
fn a_tenant_with_many_requests_does_not_keep_another_waiting() {
    let mut jobs: Vec<Job> = (0..30).map(|id| job(id, "greedy", 64, 10, 1)).collect();
    jobs.push(job(30, "modest", 64, 10, 1));
    let mut scheduler = scheduler(jobs);
    let plan = scheduler.plan();
    assert!(plan.prefill.iter().any(|tile| tile.job == 30), "{plan:?}");
}

#[test]
fn a_large_request_is_not_overtaken_for_ever() {
    let mut scheduler = scheduler(vec![job(0, "a", 10, 300, 1), job(1, "b", 10, 900, 1)]);
    for small in 2..52 {
        // A stream of small requests that would always fit.
        scheduler.submit(job(small, "c", 1, 1, 1)).unwrap();
        let plan = scheduler.plan();
        if plan.start.iter().any(|start| start.sample.job == 1) {
            return;
        }
        plan.start.iter().for_each(|start| scheduler.finished(start.sample));
    }
    panic!("the large request starved");
}

#[test]
fn a_full_house_still_prefills_a_tile() {
    let mut scheduler = FairScheduler::new(SchedulerLimits { step_tokens: 64, seats: 100, ..LIMITS });
    for id in 0..80 {
        scheduler.submit(job(id, "a", 1, 5, 1)).unwrap();
        scheduler.plan();
    }
    scheduler.submit(job(80, "a", 100, 5, 1)).unwrap();
    let plan = scheduler.plan();
    assert_eq!(plan.decode.len(), 80, "more than a step's tokens");
    assert_eq!(plan.prefill, [Tile { job: 80, rows: 0..64 }]);
}

#[test]
fn an_aborted_request_gives_everything_back() {
    let mut scheduler = scheduler(vec![job(1, "a", 64, 100, 3), job(2, "b", 100, 700, 1), job(3, "b", 1, 1, 1)]);
    scheduler.plan();
    scheduler.plan();
    for id in [3, 1, 2, 2, 77] {
        scheduler.abort(id);
        nothing_leaks(&scheduler);
    }
    assert!(scheduler.is_empty());
    assert_eq!(scheduler.free_tokens(), 1000);
}

#[derive(Clone, Debug)]
enum Event {
    Submit { tenant: u8, prompt: usize, max_new: usize, samples: u32 },
    Abort(u64),
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0_u8..4, 1_usize..300, 1_usize..200, 1_u32..6)
            .prop_map(|(tenant, prompt, max_new, samples)| Event::Submit { tenant, prompt, max_new, samples }),
        1 => any::<u64>().prop_map(Event::Abort),
        4 => Just(Event::Step),
    ]
}

/// A model of the engine: executes plans, counts tokens, and checks what a plan may hold.
#[derive(Default)]
struct Machine {
    jobs: BTreeMap<JobId, Job>,
    prefilled: BTreeMap<JobId, usize>,
    generated: BTreeMap<SampleRef, usize>,
    started: BTreeMap<JobId, u32>,
    finished: BTreeMap<JobId, u32>,
}

impl Machine {
    fn step(&mut self, scheduler: &mut FairScheduler) -> usize {
        let plan = scheduler.plan();
        let rows: usize = plan.prefill.iter().map(|tile| tile.rows.len()).sum();
        assert!(rows + plan.decode.len() <= LIMITS.step_tokens.max(plan.decode.len() + LIMITS.tile));
        for tile in &plan.prefill {
            let done = self.prefilled.entry(tile.job).or_default();
            assert_eq!(*done, tile.rows.start);
            assert_eq!(tile.rows.start % LIMITS.tile, 0);
            *done = tile.rows.end;
            assert!(tile.rows.len() == LIMITS.tile || *done == self.jobs[&tile.job].prompt);
        }
        for start in &plan.start {
            let job = start.sample.job;
            assert_eq!(self.prefilled[&job], self.jobs[&job].prompt);
            let started = self.started.entry(job).or_default();
            assert_eq!(start.sample.sample, *started);
            *started += 1;
            assert_eq!(start.takes_prompt, *started == self.jobs[&job].samples);
            self.generated.insert(start.sample, 0);
        }
        let drawn: Vec<SampleRef> = plan.start.iter().map(|start| start.sample).chain(plan.decode).collect();
        for sample in &drawn {
            let generated = self.generated.get_mut(sample).expect("only running samples are decoded");
            *generated += 1;
            if *generated == self.jobs[&sample.job].max_new_tokens {
                self.generated.remove(sample);
                *self.finished.entry(sample.job).or_default() += 1;
                scheduler.finished(*sample);
            }
        }
        // What the caches really hold never exceeds the budget.
        let held: usize = self
            .jobs
            .iter()
            .map(|(id, job)| {
                let running: usize = self
                    .generated
                    .iter()
                    .filter(|(sample, _)| sample.job == *id)
                    .map(|(_, new)| job.prompt + new)
                    .sum();
                let shares = self.started.get(id).copied().unwrap_or(0) < job.samples;
                running + if shares { self.prefilled.get(id).copied().unwrap_or(0) } else { 0 }
            })
            .sum();
        assert!(held <= LIMITS.kv_tokens && self.generated.len() <= LIMITS.seats);
        rows + drawn.len()
    }

    fn forget(&mut self, job: JobId) {
        self.jobs.remove(&job);
        self.generated.retain(|sample, _| sample.job != job);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_request_finishes_and_nothing_leaks(events in prop::collection::vec(event(), 1..120)) {
        let mut scheduler = FairScheduler::new(LIMITS);
        let mut machine = Machine::default();
        let mut aborted = BTreeSet::new();
        let mut next = 0;
        for event in events {
            match event {
                Event::Submit { tenant, prompt, max_new, samples } => {
                    let job = job(next, &format!("tenant-{tenant}"), prompt, max_new, samples);
                    if scheduler.submit(job.clone()).is_ok() {
                        machine.jobs.insert(next, job);
                    }
                    next += 1;
                }
                Event::Abort(any) if next > 0 => {
                    scheduler.abort(any % next);
                    machine.forget(any % next);
                    aborted.insert(any % next);
                }
                Event::Abort(_) => {}
                Event::Step => {
                    machine.step(&mut scheduler);
                }
            }
            nothing_leaks(&scheduler);
        }
        while !scheduler.is_empty() {
            prop_assert!(machine.step(&mut scheduler) > 0, "a step with requests in the house did nothing");
            nothing_leaks(&scheduler);
        }
        prop_assert_eq!(scheduler.free_tokens(), LIMITS.kv_tokens);
        for (id, job) in &machine.jobs {
            prop_assert_eq!(machine.finished.get(id).copied().unwrap_or(0), job.samples);
        }
    }
}
