//! Tokens that are told while a request is still being sampled.
//!
//! The engine tells them through a [`TokenSender`], a front reads them from a [`TokenStream`]. The engine never waits: what
//! a slow reader has no room for is not told, and neither is anything later of that sample. The outcome has it all, so
//! [`TokenStream::rest`] makes the stream whole. An engine that takes over from a lost one draws the same tokens again;
//! those that were told are not told twice.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::sample::{SampleOutcome, SampledSequence, StopReason};

/// Most tokens of a request that wait for their reader.
const MOST_UNREAD: usize = 1 << 16;

/// A token, as soon as it is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnToken {
    /// Which of the request's samples, from 0.
    pub sample: u32,
    /// Its place among the sample's new tokens, from 0.
    pub place: usize,
    /// Its id.
    pub token: u32,
    /// Its logprob, as in [`SampledSequence::logprobs`].
    pub logprob: f32,
    /// The likeliest tokens in its place, as many as were asked for.
    pub likeliest: Vec<(u32, f32)>,
    /// Why the sample ends with it, if it does.
    pub ends: Option<StopReason>,
}

/// Both ends of a request's stream of tokens.
#[must_use]
pub fn token_stream() -> (TokenSender, TokenStream) {
    let (line, reader) = mpsc::channel(MOST_UNREAD);
    (TokenSender { line, told: Arc::default() }, TokenStream { line: reader, read: BTreeMap::new() })
}

/// The end that tells. Copies share what has been told.
#[derive(Clone)]
pub struct TokenSender {
    line: mpsc::Sender<DrawnToken>,
    /// Per sample the place of the token to tell next.
    told: Arc<Mutex<BTreeMap<u32, usize>>>,
}

impl TokenSender {
    /// Tells a token, unless it was told before, one before it could not be told, or nobody listens. Never waits.
    pub fn tell(&self, drawn: DrawnToken) {
        let mut told = self.told.lock();
        let next = told.entry(drawn.sample).or_default();
        if *next == drawn.place && self.line.try_send(drawn).is_ok() {
            *next += 1;
        }
    }
}

impl fmt::Debug for TokenSender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TokenSender").field("told", &self.told.lock()).finish_non_exhaustive()
    }
}

/// The end that listens. Dropping it costs the engine nothing.
#[derive(Debug)]
pub struct TokenStream {
    line: mpsc::Receiver<DrawnToken>,
    /// Per sample how many tokens were read.
    read: BTreeMap<u32, usize>,
}

impl TokenStream {
    /// The next token: the tokens of a sample are in order and without gaps. `None` once nobody tells any more.
    ///
    /// Dropping the future loses no token.
    pub async fn next(&mut self) -> Option<DrawnToken> {
        let drawn = self.line.recv().await?;
        *self.read.entry(drawn.sample).or_default() += 1;
        Some(drawn)
    }

    /// All tokens of a complete outcome that were not read, sample by sample.
    #[must_use]
    pub fn rest(&self, outcome: &SampleOutcome) -> Vec<DrawnToken> {
        let samples = (0_u32..).zip(&outcome.sequences);
        samples
            .flat_map(|(sample, sequence)| {
                let read = self.read.get(&sample).copied().unwrap_or(0);
                sequence.drawn(sample).skip(read)
            })
            .collect()
    }
}

impl SampledSequence {
    /// Its tokens as they were drawn, of the sample of this number.
    pub fn drawn(&self, sample: u32) -> impl Iterator<Item = DrawnToken> {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens.iter().zip(&self.logprobs).enumerate().map(move |(place, (token, logprob))| DrawnToken {
            sample,
            place,
            token: *token,
            logprob: *logprob,
            likeliest: self.topk_logprobs.as_ref().and_then(|top| top.rows.get(place)).cloned().unwrap_or_default(),
            ends: (place == last).then_some(self.stop_reason),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(sample: u32, place: usize) -> DrawnToken {
        DrawnToken { sample, place, token: place as u32, logprob: -1.0, likeliest: Vec::new(), ends: None }
    }

    fn outcome(lengths: &[usize]) -> SampleOutcome {
        let sequence = |length: &usize| {
            SampledSequence::new((0..*length as u32).collect(), vec![-1.0; *length], StopReason::Length)
        };
        SampleOutcome { sequences: lengths.iter().map(sequence).collect(), ..SampleOutcome::default() }
    }

    #[tokio::test]
    async fn what_is_told_again_is_read_once() {
        let (sender, mut stream) = token_stream();
        for place in 0..3 {
            sender.tell(drawn(0, place));
        }
        let next_engine = sender.clone();
        for place in 0..5 {
            next_engine.tell(drawn(0, place));
        }
        drop((sender, next_engine));
        let mut places = Vec::new();
        while let Some(drawn) = stream.next().await {
            places.push(drawn.place);
        }
        assert_eq!(places, [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_slow_reader_holds_nobody_and_gets_the_rest_from_the_outcome() {
        let (sender, mut stream) = token_stream();
        let length = MOST_UNREAD + 10;
        for place in 0..length {
            sender.tell(drawn(1, place));
        }
        assert_eq!(stream.next().await.map(|drawn| drawn.place), Some(0));
        // There is room again, but a gap would be worse than waiting for the outcome.
        sender.tell(drawn(1, length - 1));
        for place in 1..MOST_UNREAD {
            assert_eq!(stream.next().await.map(|drawn| drawn.place), Some(place));
        }
        let rest = stream.rest(&outcome(&[2, length]));
        let places: Vec<_> = rest.iter().map(|drawn| (drawn.sample, drawn.place)).collect();
        let expected: Vec<_> =
            [(0, 0), (0, 1)].into_iter().chain((MOST_UNREAD..length).map(|place| (1, place))).collect();
        assert_eq!(places, expected);
        assert_eq!(rest.iter().filter(|drawn| drawn.ends.is_some()).count(), 2);
    }

    #[test]
    fn nobody_listening_is_no_error() {
        let (sender, stream) = token_stream();
        drop(stream);
        sender.tell(drawn(0, 0));
    }
}
