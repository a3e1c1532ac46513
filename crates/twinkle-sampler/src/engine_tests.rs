//! The engine over a scripted model: what the model computes is simple, what can go wrong is not.

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicUsize;
use std::thread;

use twinkle_core::ErrorCode;
use twinkle_core::call::{LogprobsMode, SampledSequence, WeightVersion};
use twinkle_core::engine::ticket::{Answer, ticket};

use super::*;
use twinkle_nn::score::RowVisitor;

use crate::logits::DrawParams;
use crate::prompt::PromptWants;
use crate::runner::Prefilled;
use crate::scheduler::{FairScheduler, SchedulerLimits};
use crate::stop::StopRule;

const VOCABULARY: usize = 32;
pub(crate) const LOST_TOKEN: u32 = 28;
const NAN_TOKEN: u32 = 29;
const ERROR_TOKEN: u32 = 30;
const PANIC_TOKEN: u32 = 31;

/// The next token's logits depend on the sum of all tokens so far; four tokens make it fail.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scripted {
    /// How often the device is still lost over a prompt with [`LOST_TOKEN`].
    pub(crate) losses: Arc<AtomicUsize>,
    /// Whether that happens in a decode step, not in the prompt's.
    pub(crate) in_decode: bool,
    /// Prompt tokens computed so far, and how many of them went through the output head.
    prefilled: Arc<AtomicUsize>,
    scored: Arc<AtomicUsize>,
}

impl Scripted {
    pub(crate) fn losing(losses: usize, in_decode: bool) -> Self {
        Self { losses: Arc::new(AtomicUsize::new(losses)), in_decode, ..Self::default() }
    }

    fn logits(cache: &[u32]) -> Vec<f32> {
        let sum: u32 = cache.iter().sum();
        let mut row: Vec<f32> = (0..VOCABULARY as u32).map(|token| ((sum * 7 + token * 5) % 23) as f32 * 0.3).collect();
        row[LOST_TOKEN as usize..].fill(-50.0);
        if cache.last() == Some(&NAN_TOKEN) {
            row[3] = f32::NAN;
        }
        row
    }

    fn check(token: u32) -> Result<()> {
        assert!(token != PANIC_TOKEN, "scripted panic");
        if token == ERROR_TOKEN { Err(Error::internal("scripted error")) } else { Ok(()) }
    }

    fn lose_device(&self, tokens: &[u32]) -> Result<()> {
        let one_less = |losses: usize| losses.checked_sub(1);
        if tokens.contains(&LOST_TOKEN)
            && self.losses.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok()
        {
            return Err(Error::internal("CUDA error: scripted loss"));
        }
        Ok(())
    }
}

impl Runner for Scripted {
    type Cache = Vec<u32>;

    fn probe(&self) -> Result<()> {
        Ok(())
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn empty_cache(&self) -> Vec<u32> {
        Vec::new()
    }

    fn fork(&self, cache: &Vec<u32>) -> Vec<u32> {
        cache.clone()
    }

    fn cache_bytes(&self, cache: &Vec<u32>) -> u64 {
        cache.len() as u64
    }

    fn prefill(
        &mut self,
        tile: PromptTile<'_>,
        cache: &mut Vec<u32>,
        _: Option<&Arc<Adapter>>,
        on_row: &mut RowVisitor<'_>,
    ) -> Result<Prefilled> {
        self.prefilled.fetch_add(tile.tokens.len(), Ordering::AcqRel);
        self.scored.fetch_add(tile.scored.len(), Ordering::AcqRel);
        if !self.in_decode {
            self.lose_device(tile.tokens)?;
        }
        let mut prefilled = Prefilled::default();
        for (row, token) in tile.tokens.iter().enumerate() {
            Self::check(*token)?;
            cache.push(*token);
            if tile.whole && tile.scored.contains(&row) {
                on_row(row - tile.scored.start, &(0..VOCABULARY).map(|token| -(token as f32)).collect::<Vec<_>>());
            }
        }
        prefilled.scores = tile.picks.iter().map(|pick| -(pick.token as f32)).collect();
        prefilled.last_logits = tile.wants_logits.then(|| Self::logits(cache));
        Ok(prefilled)
    }

    fn decode(
        &mut self,
        tokens: &[u32],
        caches: &mut [&mut Vec<u32>],
        _: &[Option<&Arc<Adapter>>],
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        for (row, (token, cache)) in tokens.iter().zip(caches).enumerate() {
            if self.in_decode {
                self.lose_device(cache)?;
            }
            cache.push(*token);
            on_logits(row, &Self::logits(cache));
        }
        Ok(())
    }
}

pub(super) struct House {
    line: mpsc::Sender<Command>,
    pub(super) stats: Arc<EngineStats>,
    pulse: Pulse,
    model: Scripted,
    thread: Option<thread::JoinHandle<()>>,
}

/// A request in the house; dropping it aborts it.
pub(super) struct Asked(pub(super) oneshot::Receiver<Answer<SampleOutcome>>);

impl Asked {
    /// `None` when the engine was lost.
    pub(super) fn blocking_recv(self) -> Option<Result<SampleOutcome>> {
        match self.0.blocking_recv().unwrap() {
            Answer::Given(outcome) => Some(outcome),
            Answer::Lost { .. } => None,
        }
    }
}

impl House {
    pub(super) fn open() -> Self {
        let limits =
            SchedulerLimits { seats: 4, kv_tokens: 2000, sequence_tokens: 0, step_tokens: 16, tile: 8, waiting: 100 };
        let (line, mut commands) = mpsc::channel(64);
        let stats = Arc::new(EngineStats::default());
        let pulse = Pulse::default();
        let (counts, beats) = (Arc::clone(&stats), pulse.clone());
        let model = Scripted::default();
        let runner = model.clone();
        let thread = thread::spawn(move || {
            let engine = Engine::new(runner, Box::new(FairScheduler::new(limits)), counts, beats);
            assert_eq!(engine.work(&mut commands), Ended::Stopped);
        });
        Self { line, stats, pulse, model, thread: Some(thread) }
    }

    pub(super) fn ask(&self, request: ValidRequest) -> Asked {
        let (ticket, answer) = ticket(&self.pulse);
        let carried = twinkle_core::telemetry::carried::Carried::from_here();
        let work = Work { tenant: TenantId::new("t"), request, weights: Weights::default(), ticket, carried };
        assert!(self.line.blocking_send(Command::Sample(Box::new(work))).is_ok());
        Asked(answer)
    }

    pub(super) fn sample(&self, request: ValidRequest) -> Result<SampleOutcome> {
        self.ask(request).blocking_recv().unwrap()
    }
}

impl Drop for House {
    /// Every test ends with an empty house: the engine answers everything and holds nothing.
    fn drop(&mut self) {
        let (done, stopped) = oneshot::channel();
        let deadline = Instant::now() + std::time::Duration::from_mins(1);
        assert!(self.line.blocking_send(Command::Drain { deadline, done }).is_ok());
        stopped.blocking_recv().unwrap();
        self.thread.take().unwrap().join().unwrap();
        assert_eq!(self.stats.requests(), 0);
        assert_eq!(self.stats.cache_bytes(), 0);
    }
}

pub(crate) fn request(prompt: &[u32]) -> ValidRequest {
    ValidRequest {
        prompt: prompt.to_vec(),
        samples: 1,
        max_new_tokens: 12,
        seed: 5,
        draw: DrawParams { temperature: 1.0, top_k: NonZeroUsize::new(20), top_p: 0.95 },
        stop: StopRule::default(),
        wants: PromptWants::default(),
        top: 0,
        bias: None,
        seen: None,
        numbers: LogprobsMode::Processed,
        stream: None,
    }
}

#[test]
fn a_request_gets_the_same_answer_alone_and_in_a_full_house() {
    let house = House::open();
    let mine = || ValidRequest { samples: 3, ..request(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]) };
    let alone = house.sample(mine()).unwrap();
    let noise: Vec<_> =
        (0..20).map(|n| house.ask(ValidRequest { samples: 1 + n % 3, ..request(&[n, 1 + n]) })).collect();
    let crowded = house.ask(mine());
    assert_eq!(crowded.blocking_recv().unwrap().unwrap(), alone);
    assert_eq!(alone.sequences.len(), 3);
    assert_ne!(alone.sequences[0].tokens, alone.sequences[1].tokens);
    for other in noise {
        assert!(other.blocking_recv().unwrap().is_ok());
    }
}

#[test]
fn each_sample_of_a_request_is_what_a_request_with_its_key_draws() {
    let house = House::open();
    let many = house.sample(ValidRequest { samples: 4, seed: 8, ..request(&[1, 2, 3]) }).unwrap();
    let third = house.sample(ValidRequest { seed: 8 ^ 2, ..request(&[1, 2, 3]) }).unwrap();
    assert_eq!(many.sequences[2], third.sequences[0]);
}

#[test]
fn a_model_that_fails_or_panics_fails_one_request_and_lives_on() {
    let house = House::open();
    let healthy = || request(&[1, 2, 3]);
    let expected = house.sample(healthy()).unwrap();
    for (poison, text) in [(ERROR_TOKEN, "scripted error"), (PANIC_TOKEN, "scripted panic"), (NAN_TOKEN, "NaN")] {
        let neighbour = house.ask(healthy());
        let error = house.sample(request(&[1, poison])).unwrap_err();
        assert!(error.message.contains(text), "{error}");
        assert_eq!(error.code, ErrorCode::Internal);
        assert_eq!(neighbour.blocking_recv().unwrap().unwrap(), expected);
    }
    assert_eq!(house.sample(healthy()).unwrap(), expected);
}

#[test]
fn abandoned_requests_free_their_memory() {
    let house = House::open();
    let endless = || ValidRequest { max_new_tokens: 400, samples: 2, ..request(&[1; 30]) };
    for _ in 0..20 {
        drop(house.ask(endless()));
    }
    // Two of these fill the memory: without the aborts this would wait for all of them.
    let outcome = house.sample(ValidRequest { max_new_tokens: 1000, ..request(&[1, 2]) }).unwrap();
    assert_eq!(outcome.sequences[0].tokens.len(), 1000);
    assert!(house.stats.generated() < 20 * 2 * 400);
}

#[test]
fn prompt_logprobs_cover_all_but_the_first_token_across_tiles() {
    let house = House::open();
    let prompt: Vec<u32> = (0..20).collect();
    let wants = || PromptWants { logprobs: true, ..PromptWants::default() };
    let outcome = house.sample(ValidRequest { wants: wants(), max_new_tokens: 1, ..request(&prompt) }).unwrap();
    let logprobs = outcome.prompt_logprobs.unwrap();
    assert_eq!(logprobs[0], None);
    assert_eq!(logprobs[1..], (1..20).map(|token| Some(-(token as f32))).collect::<Vec<_>>());
    let short = house.sample(ValidRequest { wants: wants(), ..request(&[4]) }).unwrap();
    assert_eq!(short.prompt_logprobs, Some(vec![None]));
}

#[test]
fn a_request_ends_at_its_length_or_its_stop() {
    let house = House::open();
    let greedy = DrawParams { temperature: 0.0, top_k: None, top_p: 1.0 };
    let whole = house.sample(ValidRequest { draw: greedy, ..request(&[1, 2]) }).unwrap().sequences.remove(0);
    assert_eq!((whole.tokens.len(), whole.stop_reason), (12, StopReason::Length));
    let stop_token = whole.tokens[4];
    let first = whole.tokens.iter().position(|token| *token == stop_token).unwrap();
    let stop = StopRule::read(&twinkle_core::call::Stop::Tokens(vec![stop_token]), &[], VOCABULARY, None).unwrap();
    let stopped = house.sample(ValidRequest { draw: greedy, stop, ..request(&[1, 2]) }).unwrap().sequences.remove(0);
    let tokens = whole.tokens[..=first].to_vec();
    let expected = SampledSequence::new(tokens, whole.logprobs[..=first].to_vec(), StopReason::Stop);
    assert_eq!(stopped, expected);
}

#[test]
fn a_drained_engine_answers_what_it_could_not_finish() {
    let house = House::open();
    let endless = house.ask(ValidRequest { max_new_tokens: 1900, ..request(&[1, 2]) });
    let (done, stopped) = oneshot::channel();
    assert!(house.line.blocking_send(Command::Drain { deadline: Instant::now(), done }).is_ok());
    stopped.blocking_recv().unwrap();
    assert_eq!(endless.blocking_recv().unwrap().unwrap_err().code, ErrorCode::Draining);
    std::mem::forget(house);
}

#[test]
fn the_samples_of_a_request_share_one_prefill() {
    let house = House::open();
    let outcome = house.sample(ValidRequest { samples: 9, ..request(&[1; 30]) }).unwrap();
    assert_eq!(outcome.sequences.len(), 9);
    assert_eq!(house.model.prefilled.load(Ordering::Acquire), 30);
    assert_eq!(house.model.scored.load(Ordering::Acquire), 0, "nothing was wanted of the prompt");
}

#[test]
fn only_the_last_prompt_tokens_go_through_the_head_when_only_they_are_wanted() {
    let house = House::open();
    let prompt: Vec<u32> = (0..28).collect();
    let wants = PromptWants { logprobs: true, likeliest: 2, from: 22, ..PromptWants::default() };
    let outcome = house.sample(ValidRequest { wants, ..request(&prompt) }).unwrap();
    assert_eq!(house.model.scored.load(Ordering::Acquire), 5);
    let logprobs = outcome.prompt_logprobs.unwrap();
    assert!(logprobs[..23].iter().all(Option::is_none));
    assert_eq!(logprobs[23..], [-23.0, -24.0, -25.0, -26.0, -27.0].map(Some));
    let top = outcome.topk_prompt_logprobs.unwrap();
    assert!(top.rows[..23].iter().all(Vec::is_empty));
    assert_eq!(top.rows[23], [(0, -0.0), (1, -1.0)]);
}

#[test]
fn each_new_token_has_its_likeliest_ones_and_the_tag_of_its_weights() {
    let house = House::open();
    let plain = house.sample(ValidRequest { samples: 3, ..request(&[1, 2, 3]) }).unwrap();
    let (ticket, answer) = ticket(&house.pulse);
    let version = WeightVersion { adapter: Some("a".into()), operation: Some(3), optimizer_steps: Some(2) };
    let weights = Weights { adapter: None, version: version.clone() };
    let asked = ValidRequest { samples: 3, top: 4, ..request(&[1, 2, 3]) };
    let carried = twinkle_core::telemetry::carried::Carried::from_here();
    let work = Work { tenant: TenantId::new("t"), request: asked, weights, ticket, carried };
    assert!(house.line.blocking_send(Command::Sample(Box::new(work))).is_ok());
    let outcome = Asked(answer).blocking_recv().unwrap().unwrap();
    for (sequence, plain) in outcome.sequences.iter().zip(&plain.sequences) {
        assert_eq!(
            (&sequence.tokens, &sequence.logprobs),
            (&plain.tokens, &plain.logprobs),
            "asking changed the draws"
        );
        assert_eq!(sequence.weights, version);
        let top = sequence.topk_logprobs.as_ref().unwrap();
        assert_eq!((top.k, top.rows.len()), (4, sequence.tokens.len()));
        for row in &top.rows {
            assert!(row.len() == 4 && row.is_sorted_by(|left, right| left.1 >= right.1));
        }
    }
}
