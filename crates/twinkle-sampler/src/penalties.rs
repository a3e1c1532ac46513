//! Holding back tokens that are already there. Pure.
//!
//! The formulas and their order are vLLM's: repetition (Keskar et al. 2019, CTRL) over prompt and answer, then frequency
//! and presence over the answer only, all before the temperature.

use std::collections::BTreeMap;
use std::sync::Arc;

use twinkle_core::call::Penalties;
use twinkle_core::{Error, Result};

/// Repetition penalties from here on keep logits finite.
const LEAST_REPETITION: f32 = 1e-3;
/// Repetition penalties up to here keep logits finite.
const MOST_REPETITION: f32 = 1e3;
/// Largest size of the other two.
const MOST_TAKEN: f32 = 100.0;

/// Refuses penalties that are no numbers or too large to compute with.
pub(crate) fn check_penalties(penalties: &Penalties) -> Result<()> {
    let Penalties { repetition, frequency, presence } = *penalties;
    if !(LEAST_REPETITION..=MOST_REPETITION).contains(&repetition) {
        return Err(Error::invalid(format!(
            "`repetition_penalty` is `{repetition}`, it must be from {LEAST_REPETITION} to {MOST_REPETITION}, 1 is off"
        )));
    }
    for (name, taken) in [("frequency_penalty", frequency), ("presence_penalty", presence)] {
        if !(-MOST_TAKEN..=MOST_TAKEN).contains(&taken) {
            return Err(Error::invalid(format!(
                "`{name}` is `{taken}`, it must be from -{MOST_TAKEN} to {MOST_TAKEN}, 0 is off"
            )));
        }
    }
    Ok(())
}

/// The tokens that one sample has seen so far, and what they cost.
#[derive(Clone, Debug)]
pub struct Seen {
    penalties: Penalties,
    /// The prompt's tokens, ascending, each once; shared by the samples of a request.
    prompt: Arc<[u32]>,
    /// How often each token was drawn.
    drawn: BTreeMap<u32, u32>,
}

impl Seen {
    /// A sample of this prompt before its first token; `None` when nothing is held back.
    #[must_use]
    pub fn new(penalties: Penalties, prompt: &[u32]) -> Option<Self> {
        if penalties == Penalties::default() {
            return None;
        }
        let mut prompt = prompt.to_vec();
        prompt.sort_unstable();
        prompt.dedup();
        Some(Self { penalties, prompt: prompt.into(), drawn: BTreeMap::new() })
    }

    /// A token was drawn.
    pub fn drew(&mut self, token: u32) {
        *self.drawn.entry(token).or_default() += 1;
    }

    /// Holds back what was seen, in a row of logits `[V]`.
    pub fn hold_back(&self, logits: &mut [f32]) {
        let Penalties { repetition, frequency, presence } = self.penalties;
        let drawn_only = self.drawn.keys().filter(|token| self.prompt.binary_search(token).is_err());
        for token in self.prompt.iter().chain(drawn_only) {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        }
        for (token, count) in &self.drawn {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit -= frequency * *count as f32;
            *logit -= presence;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(penalties: Penalties, prompt: &[u32], drawn: &[u32]) -> Vec<f32> {
        let mut seen = Seen::new(penalties, prompt).unwrap();
        for token in drawn {
            seen.drew(*token);
        }
        let mut logits = vec![2.0, -2.0, 2.0, -2.0, 0.5];
        seen.hold_back(&mut logits);
        logits
    }

    #[test]
    fn repetition_counts_once_for_prompt_and_answer() {
        let penalties = Penalties { repetition: 2.0, ..Penalties::default() };
        assert_eq!(row(penalties, &[0, 1, 0], &[1, 3, 3]), [1.0, -4.0, 2.0, -4.0, 0.5]);
    }

    #[test]
    fn frequency_counts_every_time_and_presence_once_and_neither_the_prompt() {
        let frequency = Penalties { frequency: 0.5, ..Penalties::default() };
        assert_eq!(row(frequency, &[0], &[2, 2, 4]), [2.0, -2.0, 1.0, -2.0, 0.0]);
        let presence = Penalties { presence: 0.5, ..Penalties::default() };
        assert_eq!(row(presence, &[0], &[2, 2, 4]), [2.0, -2.0, 1.5, -2.0, 0.0]);
    }

    #[test]
    fn all_three_come_in_the_order_of_vllm() {
        let penalties = Penalties { repetition: 2.0, frequency: 0.25, presence: 0.5 };
        // 2 / 2 - 2 * 0.25 - 0.5
        assert_eq!(row(penalties, &[], &[0, 0])[..1], [0.0]);
    }

    #[test]
    fn ids_without_a_row_and_no_penalties_change_nothing() {
        let penalties = Penalties { repetition: 2.0, ..Penalties::default() };
        assert_eq!(row(penalties, &[99], &[98]), [2.0, -2.0, 2.0, -2.0, 0.5]);
        assert!(Seen::new(Penalties::default(), &[1]).is_none());
    }

    #[test]
    fn numbers_that_cannot_be_computed_with_are_refused_by_name() {
        let refused = |penalties| check_penalties(&penalties).unwrap_err().to_string();
        for repetition in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e30] {
            assert!(refused(Penalties { repetition, ..Penalties::default() }).contains("repetition_penalty"));
        }
        for taken in [f32::NAN, f32::INFINITY, -101.0] {
            assert!(refused(Penalties { frequency: taken, ..Penalties::default() }).contains("frequency_penalty"));
            assert!(refused(Penalties { presence: taken, ..Penalties::default() }).contains("presence_penalty"));
        }
        assert_eq!(check_penalties(&Penalties::default()), Ok(()));
    }
}
