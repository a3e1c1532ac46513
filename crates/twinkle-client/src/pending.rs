//! Results that are not there yet.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use crate::error::{Error, Result};
use crate::progress::{Progress, Reporter};

/// An operation the server has accepted; await it for the result.
///
/// The result is fetched in the background from the start, so any number of operations may be under way and be awaited
/// in any order. Dropping it gives the result up: a training operation is executed all the same, a sample is cancelled.
#[must_use = "the operation's errors would go unseen, and a sample would be cancelled"]
pub struct Pending<T> {
    request_ids: Vec<String>,
    progress: watch::Receiver<Progress>,
    task: JoinHandle<Result<T>>,
}

impl<T: Send + 'static> Pending<T> {
    /// Fetches the result of these requests by `work` in a task of its own.
    pub(crate) fn spawn<F>(request_ids: Vec<String>, work: impl FnOnce(Reporter) -> F) -> Self
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (reporter, progress) = Reporter::new(request_ids.len());
        Self { request_ids, progress, task: tokio::spawn(work(reporter)) }
    }
}

impl<T> Pending<T> {
    /// The server's ids of the operation: one, or one for each chunk of a large batch.
    #[must_use]
    pub fn request_ids(&self) -> &[String] {
        &self.request_ids
    }

    /// Whether awaiting it would return at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// How far the operation is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits for news of the operation; `None` when there will be none, because it is over.
    ///
    /// ```no_run
    /// # async fn example(mut pending: twinkle_client::Pending<()>) -> twinkle_client::Result<()> {
    /// while let Some(progress) = pending.next_progress().await {
    ///     println!("{} of {} chunks", progress.finished, progress.requests);
    /// }
    /// pending.await
    /// # }
    /// ```
    pub async fn next_progress(&mut self) -> Option<Progress> {
        self.progress.changed().await.ok()?;
        Some(self.progress.borrow_and_update().clone())
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.task).poll(context).map(|ended| ended.map_err(ended_early)?)
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.progress();
        formatter
            .debug_struct("Pending")
            .field("request_ids", &self.request_ids)
            .field("progress", &progress)
            .finish_non_exhaustive()
    }
}

/// What became of a task that has no result: its panic goes on here, else the runtime is shutting down.
pub(crate) fn ended_early(error: JoinError) -> Error {
    if error.is_panic() {
        std::panic::resume_unwind(error.into_panic());
    }
    Error::ShuttingDown
}
