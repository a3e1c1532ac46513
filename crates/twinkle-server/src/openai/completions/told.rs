//! Completions as a stream of events.

use std::collections::BTreeMap;

use twinkle_core::call::{DrawnToken, SampleOutcome};

use super::super::answer::{PieceUsage, Usage};
use super::super::events::{Events, Narrator};
use super::super::writer::Writer;
use super::Work;
use super::reply::{Choice, Completion};
use super::scores::Scores;
use crate::streaming::Sampled;

/// Tells the choices of all prompts as they are written.
pub(super) struct Told {
    work: Work,
    include_usage: bool,
    /// By the choice's index.
    writing: BTreeMap<usize, Writing>,
    generated: usize,
}

/// A choice that is being written.
struct Writing {
    writer: Writer,
    /// Letters that were told.
    offset: usize,
}

impl Told {
    pub(super) fn new(work: Work, include_usage: bool) -> Self {
        Self { work, include_usage, writing: BTreeMap::new(), generated: 0 }
    }

    fn index(&self, prompt: usize, sample: u32) -> usize {
        let choices = self.work.jobs.get(prompt).map_or(1, |job| job.request.num_samples as usize);
        prompt * choices + sample as usize
    }

    fn push(&self, choices: Vec<Choice>, usage: Option<Usage>, events: &mut Events) {
        let Work { id, created, model, .. } = &self.work;
        let usage = self.include_usage.then_some(PieceUsage(usage));
        events.push(&Completion::piece(id, *created, model, choices, usage));
    }

    /// Begins a choice, with its prompt if that is to be repeated.
    fn begin(&mut self, prompt: usize, index: usize, events: &mut Events) {
        if self.writing.contains_key(&index) {
            return;
        }
        let echo = self.work.jobs.get(prompt).map(|job| job.echo.clone()).unwrap_or_default();
        let writing = Writing { writer: self.work.writer(), offset: echo.chars().count() };
        self.writing.insert(index, writing);
        if !echo.is_empty() {
            self.push(vec![Choice::piece(index, echo, None, None)], None, events);
        }
    }

    fn token(&mut self, prompt: usize, drawn: &DrawnToken, events: &mut Events) {
        let index = self.index(prompt, drawn.sample);
        self.begin(prompt, index, events);
        self.generated += 1;
        let (wants_scores, top) = (self.work.wishes.logprobs.is_some(), self.work.wishes.top());
        let Some(writing) = self.writing.get_mut(&index) else { return };
        let mut text = writing.writer.push(drawn.token);
        if drawn.ends.is_some() {
            text.push_str(&writing.writer.finish());
        }
        let logprobs = wants_scores.then(|| {
            let mut scores = Scores::after(writing.offset);
            scores.add(&self.work.tokenizer, drawn);
            writing.offset = scores.offset();
            scores.told(top)
        });
        if !text.is_empty() || logprobs.is_some() || drawn.ends.is_some() {
            self.push(vec![Choice::piece(index, text, logprobs, drawn.ends)], None, events);
        }
    }

    /// Tells of choices without a token, of which nothing was told yet.
    fn done(&mut self, prompt: usize, outcome: &SampleOutcome, events: &mut Events) {
        for (sample, sequence) in (0..).zip(&outcome.sequences) {
            if sequence.tokens.is_empty() {
                let index = self.index(prompt, sample);
                self.begin(prompt, index, events);
                let piece = Choice::piece(index, String::new(), None, Some(sequence.stop_reason));
                self.push(vec![piece], None, events);
            }
        }
    }
}

impl Narrator for Told {
    fn tell(&mut self, prompt: usize, sampled: Sampled, events: &mut Events) {
        match sampled {
            Sampled::Token(drawn) => self.token(prompt, &drawn, events),
            Sampled::Done(outcome) => self.done(prompt, &outcome, events),
        }
    }

    fn end(&mut self, events: &mut Events) {
        if self.include_usage {
            let usage = self.work.usage(self.generated);
            self.push(Vec::new(), Some(usage), events);
        }
    }
}
