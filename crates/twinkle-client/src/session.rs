//! A session on the server: what its clients share, kept alive in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, warn};
use twinkle_core::wire::tinker::json::{ClientConfig, FinishReason, FinishSession, Heartbeat};

use crate::error::Result;
use crate::http::Http;
use crate::request::Request;

/// How long one heartbeat may take.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);
/// Lost heartbeats for this long are worth a warning; servers wait longer before they give a session up.
const WORRY_AFTER: Duration = Duration::from_mins(2);

/// Shared by every client made from one `ServiceClient`; the heartbeat ends with the last of them.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) http: Http,
    pub(crate) id: String,
    /// The server's limits for one request.
    pub(crate) config: ClientConfig,
    /// Whether the server wants to know of samples that nobody waits for any more.
    pub(crate) cancels_samples: bool,
    next_model: AtomicU64,
    next_sampler: AtomicU64,
    heartbeat: JoinHandle<()>,
}

impl Session {
    pub(crate) fn new(
        http: Http,
        id: String,
        config: ClientConfig,
        cancels_samples: bool,
        heartbeat_interval: Duration,
    ) -> Arc<Self> {
        let heartbeat = tokio::spawn(keep_alive(http.clone(), id.clone(), heartbeat_interval));
        let (next_model, next_sampler) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { http, id, config, cancels_samples, next_model, next_sampler, heartbeat })
    }

    /// The number of the next training run.
    pub(crate) fn next_model(&self) -> u64 {
        self.next_model.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of the next sampling session.
    pub(crate) fn next_sampler(&self) -> u64 {
        self.next_sampler.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the server that nothing more will come, and how it went.
    pub(crate) async fn finish(&self, reason: &str, detail: Option<String>) -> Result<()> {
        self.heartbeat.abort();
        let body = FinishSession { reason: Some(FinishReason { kind: reason.to_owned() }), detail };
        let request = Request::json(format!("/api/v1/sessions/{}/finish", self.id), &body)?;
        self.http.send(&request).await.map(drop)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// Says every few seconds that this session is still used. A lost heartbeat is no error: the next one counts.
async fn keep_alive(http: Http, session_id: String, interval: Duration) {
    let path = "/api/v1/session_heartbeat";
    let Ok(request) = Request::json(path, &Heartbeat { session_id }) else { return };
    let request = request.within(HEARTBEAT_LIMIT);
    let mut last_heard = Instant::now();
    loop {
        tokio::time::sleep(interval).await;
        let trouble = match http.attempt(&request, None).await {
            Ok(answer) if answer.is_success() => {
                last_heard = Instant::now();
                continue;
            }
            Ok(answer) if answer.status == 410 => {
                debug!("the session is finished");
                return;
            }
            Ok(answer) => answer.rejection(),
            Err(error) => error,
        };
        if last_heard.elapsed() < WORRY_AFTER {
            debug!(error = %trouble, "a heartbeat is lost");
        } else {
            warn!(error = %trouble, "no heartbeat has reached the server for minutes: it may end the session");
            last_heard = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::retry::RetryPolicy;

    #[tokio::test]
    async fn the_heartbeat_ends_with_the_last_client() {
        let http = Http::new("http://127.0.0.1:9", "tml-test", &BTreeMap::new(), RetryPolicy::default()).unwrap();
        let hour = Duration::from_hours(1);
        let session = Session::new(http, "s-1".to_owned(), ClientConfig::default(), true, hour);
        let heartbeat = session.heartbeat.abort_handle();
        let other_client = session.clone();
        drop(session);
        tokio::task::yield_now().await;
        assert!(!heartbeat.is_finished());
        drop(other_client);
        while !heartbeat.is_finished() {
            tokio::task::yield_now().await;
        }
    }
}
