//! Packed rows: sequences laid end to end, without padding.

use std::ops::Range;

use twinkle_core::{Error, Result};

use crate::config::ModelConfig;

/// Sequences of one pass, end to end. Positions restart at 0 in each segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pack {
    /// The token ids of all segments, `[T]`.
    pub tokens: Vec<u32>,
    /// How the rows are divided; the lengths add up to `tokens.len()`.
    pub segments: Vec<Segment>,
}

/// One sequence of a [`Pack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// How many rows it has, at least 1.
    pub length: usize,
    /// Which adapter of the pass it uses; `None` is the bare base model.
    pub adapter: Option<usize>,
}

impl Pack {
    /// A pack of no rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A pack of one sequence.
    #[must_use]
    pub fn single(tokens: &[u32], adapter: Option<usize>) -> Self {
        let mut pack = Self::new();
        pack.push(tokens, adapter);
        pack
    }

    /// Appends a sequence; a sequence of no tokens is left out.
    pub fn push(&mut self, tokens: &[u32], adapter: Option<usize>) {
        if tokens.is_empty() {
            return;
        }
        self.tokens.extend_from_slice(tokens);
        self.segments.push(Segment { length: tokens.len(), adapter });
    }

    /// How many rows there are, `T`.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The row range of each segment, in order.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let mut start = 0;
        let mut spans = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            spans.push(Span { start, length: segment.length, adapter: segment.adapter });
            start += segment.length;
        }
        spans
    }

    /// Checks what the network relies on: lengths, token ids, adapter indices.
    pub(crate) fn validate(&self, config: &ModelConfig, adapters: usize) -> Result<()> {
        if self.tokens.is_empty() {
            return Err(Error::invalid("a pack needs at least one token"));
        }
        let rows: usize = self.segments.iter().map(|segment| segment.length).sum();
        if rows != self.tokens.len() {
            return Err(Error::invalid(format!(
                "the segments cover `{rows}` rows, the pack has `{}` tokens",
                self.tokens.len()
            )));
        }
        if self.segments.iter().any(|segment| segment.length == 0) {
            return Err(Error::invalid("a segment needs at least one token"));
        }
        if let Some(index) = self.segments.iter().filter_map(|segment| segment.adapter).find(|index| *index >= adapters)
        {
            return Err(Error::invalid(format!("a segment names adapter `{index}`, the pass has `{adapters}`")));
        }
        validate_tokens(&self.tokens, config)
    }
}

/// Refuses token ids outside the model's vocabulary.
pub(crate) fn validate_tokens(tokens: &[u32], config: &ModelConfig) -> Result<()> {
    let vocabulary = config.vocab_size;
    match tokens.iter().find(|token| **token as usize >= vocabulary) {
        Some(token) => {
            Err(Error::invalid(format!("token id `{token}` is outside the vocabulary of `{vocabulary}` entries")))
        }
        None => Ok(()),
    }
}

/// The rows of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first row.
    pub(crate) start: usize,
    /// How many rows.
    pub(crate) length: usize,
    /// Which adapter of the pass.
    pub(crate) adapter: Option<usize>,
}

impl Span {
    /// The rows as a range.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.start..self.start + self.length
    }
}
