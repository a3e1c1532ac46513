//! How far an operation is.

use tokio::sync::watch;

/// How far an operation is, as far as its client knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many of its requests have a result.
    pub finished: usize,
    /// How many requests it is: one, or one for each chunk of a large batch.
    pub requests: usize,
    /// What the server last said about its queue: `active`, `paused_capacity` or `paused_rate_limit`.
    pub queue_state: Option<String>,
    /// Why it is in that state, in the server's words.
    pub queue_state_reason: Option<String>,
}

/// Where the task that waits for results says how far it is.
#[derive(Clone, Debug)]
pub(crate) struct Reporter(watch::Sender<Progress>);

impl Reporter {
    /// A reporter for so many requests, and what reads it.
    pub(crate) fn new(requests: usize) -> (Self, watch::Receiver<Progress>) {
        let (sender, receiver) = watch::channel(Progress { requests, ..Progress::default() });
        (Self(sender), receiver)
    }

    /// One more request has its result.
    pub(crate) fn finished_one(&self) {
        self.0.send_modify(|progress| progress.finished += 1);
    }

    /// The server's queue is in this state; the same again is no news.
    pub(crate) fn queue(&self, state: Option<&str>, reason: Option<&str>) {
        self.0.send_if_modified(|progress| {
            let changed = progress.queue_state.as_deref() != state || progress.queue_state_reason.as_deref() != reason;
            if changed {
                progress.queue_state = state.map(str::to_owned);
                progress.queue_state_reason = reason.map(str::to_owned);
            }
            changed
        });
    }
}
