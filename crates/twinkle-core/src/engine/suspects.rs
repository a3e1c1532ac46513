//! Which questions an engine was working on when it was lost, and how often.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;

/// A question at which the engine was lost this often is not tried again.
pub const MOST_LOSSES: u32 = 2;
/// Questions remembered; far more than an engine can be lost over.
const MOST_REMEMBERED: usize = 1024;

/// Counts losses per question. Pure, apart from its lock.
#[derive(Debug)]
pub struct Suspects<Question> {
    losses: Mutex<HashMap<Question, u32>>,
}

impl<Question> Default for Suspects<Question> {
    fn default() -> Self {
        Self { losses: Mutex::default() }
    }
}

impl<Question: Eq + Hash> Suspects<Question> {
    /// The engine was lost while it worked on `question`. Says whether that was once too often; it is forgotten then.
    pub fn accuse(&self, question: Question) -> bool {
        let mut losses = self.losses.lock();
        let count = losses.remove(&question).unwrap_or(0) + 1;
        if count >= MOST_LOSSES {
            return true;
        }
        if losses.len() < MOST_REMEMBERED {
            losses.insert(question, count);
        }
        false
    }

    /// Whether the engine was lost while it worked on `question`, perhaps together with others.
    pub fn is_suspect(&self, question: &Question) -> bool {
        self.losses.lock().contains_key(question)
    }

    /// The question was answered.
    pub fn acquit(&self, question: &Question) {
        self.losses.lock().remove(question);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_loss_over_one_question_is_one_too_many() {
        let suspects = Suspects::default();
        assert!(!suspects.accuse("a"));
        assert!(!suspects.accuse("b"), "each is counted for itself");
        assert!(suspects.is_suspect(&"a") && !suspects.is_suspect(&"c"));
        assert!(suspects.accuse("a"));
        suspects.acquit(&"b");
        assert!(!suspects.accuse("b"), "an answered question starts afresh");
    }
}
