//! Gradients of several backward passes that one update takes together.

use serde::{Deserialize, Serialize};
use twinkle_core::{Error, Result};

/// How far a run is on its way to the next update.
///
/// A loss is a sum over tokens or has divided already, and says which: the gradients of a window are divided by the tokens
/// of all its sums, each loss that has divided counting as one. So with sums the update is the mean over all tokens of the
/// window, whatever their number in each pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Accumulation {
    /// Backward passes of the run.
    pub steps: u64,
    /// Those since the last window was full.
    pub window: u64,
    /// Those whose gradients are held: since they were last set to zero.
    pub held: u64,
    /// Tokens counted since the gradients were last divided or set to zero.
    pub tokens: f64,
    /// Backward passes that fill a window, at least 1.
    pub every: u64,
}

impl Default for Accumulation {
    fn default() -> Self {
        Self { steps: 0, window: 0, held: 0, tokens: 0.0, every: 1 }
    }
}

impl Accumulation {
    /// A run's beginning, with windows of `every` passes.
    pub fn new(every: u64) -> Result<Self> {
        Self::default().with_every(every)
    }

    /// The same with windows of `every` passes. A window of another size holds the passes whose gradients are still there.
    pub fn with_every(self, every: u64) -> Result<Self> {
        if every == 0 {
            return Err(Error::invalid("`gradient_accumulation_steps` is 0, but must be at least 1"));
        }
        let window = if every == self.every { self.window } else { self.held };
        Ok(Self { window, every, ..self })
    }

    /// One backward pass more. `num_tokens` is what its loss is a sum over; 0: it has divided already.
    pub fn count(&mut self, num_tokens: f64) {
        if self.window >= self.every {
            self.window = 0;
        }
        self.steps += 1;
        self.window += 1;
        self.held += 1;
        self.tokens += if num_tokens > 0.0 { num_tokens } else { 1.0 };
    }

    /// Whether an update is due.
    #[must_use]
    pub const fn is_at_boundary(&self) -> bool {
        self.every == 1 || self.window >= self.every
    }

    /// What the gradients are divided by.
    #[must_use]
    pub fn divisor(&self) -> f64 {
        if self.tokens > 0.0 { self.tokens } else { 1.0 }
    }

    /// The gradients have been divided.
    pub const fn divided(&mut self) {
        self.tokens = 0.0;
    }

    /// The gradients have been set to zero.
    pub const fn cleared(&mut self) {
        self.tokens = 0.0;
        self.held = 0;
    }

    /// As a checkpoint continues: gradients are not part of it, so its next window is empty.
    #[must_use]
    pub const fn without_gradients(self) -> Self {
        Self { window: 0, held: 0, tokens: 0.0, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_is_full_after_as_many_passes() {
        let mut accumulation = Accumulation::new(3).unwrap();
        assert!(!accumulation.is_at_boundary(), "there is nothing to update with");
        let mut boundaries = Vec::new();
        for step in 1..=9 {
            accumulation.count(2.0);
            if accumulation.is_at_boundary() {
                boundaries.push(step);
                assert!((accumulation.divisor() - 6.0).abs() < f64::EPSILON);
                accumulation.divided();
            }
        }
        assert_eq!(boundaries, [3, 6, 9]);
        assert_eq!(accumulation.steps, 9);
    }

    #[test]
    fn a_boundary_lasts_until_the_next_pass() {
        let mut accumulation = Accumulation::new(2).unwrap();
        accumulation.count(1.0);
        accumulation.count(1.0);
        accumulation.divided();
        // Clipping, stepping, clearing and the schedule may come in four requests.
        assert!(accumulation.is_at_boundary());
        accumulation.count(1.0);
        assert!(!accumulation.is_at_boundary());
    }

    #[test]
    fn a_window_of_another_size_begins_with_what_is_held() {
        let mut accumulation = Accumulation::default();
        accumulation.count(1.0);
        accumulation.cleared();
        assert!(accumulation.with_every(1).unwrap().is_at_boundary());
        let mut wider = accumulation.with_every(2).unwrap();
        wider.count(1.0);
        assert!(!wider.is_at_boundary(), "the pass before has had its update");
        wider.count(1.0);
        assert!(wider.is_at_boundary());
        let narrower = wider.with_every(3).unwrap();
        assert_eq!((narrower.window, narrower.is_at_boundary()), (2, false), "two of three are held");
    }

    #[test]
    fn a_loss_that_has_divided_counts_as_one() {
        let mut accumulation = Accumulation::new(2).unwrap();
        accumulation.count(0.0);
        accumulation.count(0.0);
        assert!((accumulation.divisor() - 2.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_window_begins_anew_after_a_checkpoint() {
        let mut accumulation = Accumulation::new(2).unwrap();
        accumulation.count(5.0);
        let mut resumed = accumulation.without_gradients();
        resumed.count(7.0);
        assert!(!resumed.is_at_boundary());
        assert_eq!((resumed.steps, resumed.window), (2, 1));
        assert!((resumed.divisor() - 7.0).abs() < f64::EPSILON);
        assert!(accumulation.with_every(0).is_err());
    }
}
