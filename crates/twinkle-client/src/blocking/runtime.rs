//! The runtime beneath the façade, and results that are waited for.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};

use crate::error::{Error, Result};
use crate::progress::Progress;

/// A runtime on one thread, shared by the clients made from one `ServiceClient`.
#[derive(Clone, Debug)]
pub(super) struct Runtime(Arc<Owned>);

#[derive(Debug)]
struct Owned(Option<tokio::runtime::Runtime>);

impl Drop for Owned {
    fn drop(&mut self) {
        // Dropping it plainly would wait for what is still running, and panic inside another runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Runtime {
    pub(super) fn start() -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("twinkle-client").enable_all().build();
        let runtime = runtime.map_err(|error| Error::InvalidArgument(format!("no thread can be started: {error}")))?;
        Ok(Self(Arc::new(Owned(Some(runtime)))))
    }

    /// Waits for `work` on this thread.
    pub(super) fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        if Handle::try_current().is_ok() {
            let message = "a blocking client would stop the async runtime it is used in; use the async clients there";
            return Err(Error::InvalidArgument(message.to_owned()));
        }
        let runtime = self.0.0.as_ref().ok_or(Error::ShuttingDown)?;
        runtime.block_on(work)
    }

    /// Waits until `work` has submitted an operation.
    pub(super) fn submit<T>(&self, work: impl Future<Output = Result<crate::Pending<T>>>) -> Result<Pending<T>> {
        let pending = self.wait(work)?;
        Ok(Pending { pending, runtime: self.clone() })
    }
}

/// An operation the server has accepted; its result is fetched in the background.
///
/// Dropping it gives the result up: a training operation is executed all the same, a sample is cancelled.
#[must_use = "the operation's errors would go unseen, and a sample would be cancelled"]
pub struct Pending<T> {
    pub(super) pending: crate::Pending<T>,
    runtime: Runtime,
}

impl<T> Pending<T> {
    /// Waits for the result.
    pub fn result(self) -> Result<T> {
        self.runtime.wait(self.pending)
    }

    /// Waits for the result for at most `limit`; `Err` holds the operation, which goes on, when it took longer.
    pub fn result_within(mut self, limit: Duration) -> Result<Result<T>, Self> {
        let waited = {
            let pending = &mut self.pending;
            self.runtime.wait(async { Ok(tokio::time::timeout(limit, pending).await) })
        };
        match waited {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_elapsed)) => Err(self),
            Err(error) => Ok(Err(error)),
        }
    }

    /// The server's ids of the operation: one, or one for each chunk of a large batch.
    #[must_use]
    pub fn request_ids(&self) -> &[String] {
        self.pending.request_ids()
    }

    /// Whether [`Self::result`] would return at once.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.pending.is_finished()
    }

    /// How far the operation is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.pending.progress()
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pending.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn inside_an_async_runtime_it_answers_an_error() {
        let runtime = Runtime::start().unwrap();
        let error = runtime.wait(async { Ok(()) }).unwrap_err();
        assert!(matches!(&error, Error::InvalidArgument(message) if message.contains("async")), "{error}");
    }

    #[test]
    fn a_result_that_takes_longer_can_be_waited_for_again() {
        let runtime = Runtime::start().unwrap();
        let (sender, receiver) = tokio::sync::oneshot::channel::<u32>();
        let submitted = async {
            Ok(crate::Pending::spawn(vec!["one".to_owned()], |_| async {
                receiver.await.map_err(|_| Error::ShuttingDown)
            }))
        };
        let pending = runtime.submit(submitted).unwrap();
        let pending = pending.result_within(Duration::from_millis(1)).expect_err("nothing was sent");
        assert!(!pending.is_finished() && pending.request_ids() == ["one"]);
        sender.send(7).unwrap();
        assert_eq!(pending.result().unwrap(), 7);
    }
}
