//! A question to an engine: it is answered, or it is known that the engine was lost.

use tokio::sync::oneshot;

use super::pulse::{Place, Pulse};
use crate::error::Result;

/// The engine's end of a question. Dropped without an answer, also by a panic, it says so.
#[derive(Debug)]
pub struct Ticket<T> {
    sender: Option<oneshot::Sender<Answer<T>>>,
    begun: bool,
    place: Option<Place>,
}

/// What became of a question.
#[derive(Debug)]
pub enum Answer<T> {
    /// The engine's answer.
    Given(Result<T>),
    /// The engine was lost before it answered.
    Lost {
        /// Whether it was working on this question at that moment.
        begun: bool,
    },
}

/// A new question: the engine's end, and the asker's.
#[must_use]
pub fn ticket<T>(pulse: &Pulse) -> (Ticket<T>, oneshot::Receiver<Answer<T>>) {
    let (sender, receiver) = oneshot::channel();
    (Ticket { sender: Some(sender), begun: false, place: Some(pulse.enter()) }, receiver)
}

impl<T> Ticket<T> {
    /// The engine works on it from now on.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// The engine puts it aside for a moment.
    pub fn pause(&mut self) {
        self.begun = false;
    }

    /// Whether nobody waits for the answer any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Answers. Nobody listening any more is not an error.
    pub fn answer(mut self, outcome: Result<T>) {
        self.send(Answer::Given(outcome));
    }

    fn send(&mut self, answer: Answer<T>) {
        // Before the answer: whoever has it does not see its own question in the line.
        self.place = None;
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(answer);
        }
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        let begun = self.begun;
        self.send(Answer::Lost { begun });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ticket_that_is_dropped_tells_whether_work_had_begun() {
        let pulse = Pulse::default();
        let (mut working, of_working) = ticket::<()>(&pulse);
        let (waiting, of_waiting) = ticket::<()>(&pulse);
        working.begin();
        assert_eq!(pulse.status().waiting, 2);
        drop((working, waiting));
        assert!(matches!(of_working.await, Ok(Answer::Lost { begun: true })));
        assert!(matches!(of_waiting.await, Ok(Answer::Lost { begun: false })));
        assert_eq!(pulse.status().waiting, 0);
    }

    #[tokio::test]
    async fn a_ticket_answers_once() {
        let (ticket, answer) = ticket(&Pulse::default());
        ticket.answer(Ok(7));
        assert!(matches!(answer.await, Ok(Answer::Given(Ok(7)))));
    }
}
