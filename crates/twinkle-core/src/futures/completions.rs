//! Waiting for whichever sample finishes next, and what clients are told after a restart.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout, timeout_at};

use super::streams::{Completion, StreamKey};
use super::{Board, Futures, Outcome, Shared};
use crate::error::Result;
use crate::ids::{RequestId, TenantId};
use crate::state::AwaitedSample;

/// Completions in one answer at most; the rest is in the next.
const MOST_AT_ONCE: usize = 4096;

/// How long a sample's client waits for its name to be noted: it is only of use after a restart.
const NOTING: Duration = Duration::from_secs(1);

impl Futures {
    /// Waits up to `limit` for completions after `cursor`: them, and the cursor to go on from.
    ///
    /// Those up to `cursor` are acknowledged by that and not told again.
    pub async fn completions(&self, key: &StreamKey, cursor: u64, limit: Duration) -> (Vec<Completion>, u64) {
        let deadline = Instant::now() + limit;
        self.board.acknowledge(key, cursor);
        let look = Look::begin(&self.board, key);
        loop {
            let mut changed = std::pin::pin!(look.changed.notified());
            changed.as_mut().enable();
            let found = self.board.streams.lock().after(key, cursor, MOST_AT_ONCE);
            if !found.0.is_empty() || timeout_at(deadline, changed).await.is_err() {
                return found;
            }
        }
    }

    /// The tenant has fetched these results: they need not be kept.
    pub fn discard(&self, tenant: &TenantId, requests: impl IntoIterator<Item = RequestId>) {
        let mine = |request: &RequestId| {
            request.is_ephemeral()
                && self.board.finished.get(request).is_some_and(|finished| finished.tenant == *tenant)
        };
        for request in requests.into_iter().filter(mine) {
            self.fetched(&request);
            self.board.finished.invalidate(&request);
        }
    }

    /// A result was handed to its owner: its completion need not be told any more.
    pub fn fetched(&self, request: &RequestId) {
        if self.board.streams.lock().fetched(request) {
            self.board.forget(vec![request.clone()]);
        }
    }

    /// Notes durably that a client waits for a sample, so that it hears of it after a restart.
    pub async fn note(&self, request: &RequestId, stream: &StreamKey) {
        let sample = AwaitedSample {
            request: request.clone(),
            tenant: stream.tenant.clone(),
            session: stream.session.clone(),
            client: stream.client,
        };
        match timeout(NOTING, self.board.store.keep_sample(sample)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%request, %error, "a sample's name could not be noted"),
            Err(_) => tracing::warn!(%request, "a sample's name could not be noted in time"),
        }
    }

    /// After a start: tells the clients of samples that were lost with the last server, so that they submit them again.
    pub async fn take_up(&self) -> Result<()> {
        let lost = self.board.store.awaited_samples().await?;
        if lost.is_empty() {
            return Ok(());
        }
        tracing::info!(samples = lost.len(), "samples were lost with the last server, their clients are told");
        let mut given_up = Vec::new();
        let mut streams = self.board.streams.lock();
        for AwaitedSample { request, tenant, session, client } in lost.into_iter().rev() {
            streams.expect(&request, StreamKey { tenant, session, client });
            given_up.extend(streams.finish(Completion { request, bytes: None }, microseconds()));
        }
        drop(streams);
        self.board.forget(given_up);
        Ok(())
    }
}

impl Board {
    /// Tells the stream of a sample that it has finished.
    pub(super) fn announce(&self, request: &RequestId, result: &Shared) {
        let bytes = result.as_ref().as_ref().ok().map(|outcome: &Outcome| outcome.bytes() as u64);
        let completion = Completion { request: request.clone(), bytes };
        let given_up = self.streams.lock().finish(completion, microseconds());
        self.forget(given_up);
    }

    fn acknowledge(&self, key: &StreamKey, cursor: u64) {
        let seen = self.streams.lock().acknowledge(key, cursor);
        self.forget(seen);
    }

    /// Removes the names of samples from the store, later: a name too many costs a client nothing.
    fn forget(&self, requests: Vec<RequestId>) {
        if requests.is_empty() {
            return;
        }
        let store = self.store.clone();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = store.forget_samples(requests).await {
                tracing::debug!(%error, "names of samples could not be forgotten");
            }
        });
    }
}

/// A poll that looks at a stream, until it is dropped.
struct Look<'a> {
    board: &'a Board,
    key: &'a StreamKey,
    changed: std::sync::Arc<tokio::sync::Notify>,
}

impl<'a> Look<'a> {
    fn begin(board: &'a Board, key: &'a StreamKey) -> Self {
        Self { board, key, changed: board.streams.lock().look(key) }
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.board.streams.lock().look_away(self.key);
    }
}

/// Now, since 1970.
fn microseconds() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default()
}
