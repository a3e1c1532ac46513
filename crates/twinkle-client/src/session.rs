//! A session on the server: what its clients share, kept alive in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{debug, warn};
use twinkle_core::wire::tinker::json::{ClientConfig, FinishReason, FinishSession, Heartbeat};

use crate::error::Result;
use crate::http::{Http, Request};

/// How long one heartbeat may take.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

/// Shared by every client made from one `ServiceClient`; the heartbeat ends with the last of them.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) http: Http,
    pub(crate) id: String,
    /// The server's limits for one request.
    pub(crate) config: ClientConfig,
    next_model: AtomicU64,
    next_sampler: AtomicU64,
    heartbeat: JoinHandle<()>,
}

impl Session {
    pub(crate) fn new(http: Http, id: String, config: ClientConfig, heartbeat_interval: Duration) -> Arc<Self> {
        let heartbeat = tokio::spawn(keep_alive(http.clone(), id.clone(), heartbeat_interval));
        let (next_model, next_sampler) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { http, id, config, next_model, next_sampler, heartbeat })
    }

    /// The number of the next training run.
    pub(crate) fn next_model(&self) -> u64 {
        self.next_model.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of the next sampling session.
    pub(crate) fn next_sampler(&self) -> u64 {
        self.next_sampler.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the server that nothing more will come.
    pub(crate) async fn finish(&self) -> Result<()> {
        self.heartbeat.abort();
        let body = FinishSession { reason: Some(FinishReason { kind: "success".to_owned() }), detail: None };
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
    loop {
        tokio::time::sleep(interval).await;
        match http.attempt(&request, None).await {
            Ok(answer) if answer.is_success() => {}
            Ok(answer) if answer.status == 410 => {
                debug!("the session is finished");
                return;
            }
            Ok(answer) => warn!(status = answer.status, "heartbeat refused"),
            Err(error) => warn!(%error, "heartbeat lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::RetryPolicy;

    #[tokio::test]
    async fn the_heartbeat_ends_with_the_last_client() {
        let http = Http::new("http://127.0.0.1:9", "tml-test", RetryPolicy::default()).unwrap();
        let session = Session::new(http, "s-1".to_owned(), ClientConfig::default(), Duration::from_hours(1));
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
