//! Idle long polls: connections that wait for results which do not come while we measure.
//!
//! A training run is given operations whose predecessors are missing. The server keeps them pending until its grace
//! for gaps is over (a minute), and every poll of their results is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::http::{Connection, request};

/// Pending results that the polls share.
const RESULTS: usize = 50;
/// The first number that is sent: those before it are missing.
const FIRST_NUMBER: usize = 1_000;

/// Parked polls; dropped, they hang up.
pub(crate) struct IdlePolls {
    polls: JoinSet<Result<()>>,
}

impl IdlePolls {
    /// Opens `count` connections with one poll each and returns when all of them wait.
    pub(crate) async fn park(address: &str, prefix: &str, base_model: &str, count: usize) -> Result<Self> {
        let requests = pending_results(address, prefix, base_model).await?;
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut polls = JoinSet::new();
        for index in 0..count {
            let body = json!({ "request_id": requests[index % requests.len()] }).to_string();
            let poll = request(address, "POST", &format!("{prefix}/retrieve_future"), &body);
            let mut connection = Connection::open(address).await?;
            let waiting = Arc::clone(&waiting);
            polls.spawn(async move {
                loop {
                    waiting.fetch_add(1, Ordering::Relaxed);
                    // 408 is "nothing yet": the SDK asks again at once, and so do we.
                    let answer = connection.ask(&poll).await?;
                    let text = String::from_utf8_lossy(answer.body);
                    ensure!(answer.status == 408, "a poll was answered with {}: {text}", answer.status);
                }
            });
        }
        while waiting.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Self { polls })
    }

    /// Fails when a poll was answered or cut off meanwhile: then something else was measured.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.polls.try_join_next() {
            None => Ok(()),
            Some(ended) => ended?,
        }
    }
}

/// Opens a run and gives it operations that must wait: their request ids.
async fn pending_results(address: &str, prefix: &str, base_model: &str) -> Result<Vec<String>> {
    let mut connection = Connection::open(address).await?;
    let session = post(&mut connection, address, prefix, "create_session", &json!({ "tags": [] })).await?;
    let create = json!({
        "session_id": session["session_id"],
        "model_seq_id": 0,
        "base_model": base_model,
        "lora_config": { "rank": 4, "seed": 1 },
    });
    let created = post(&mut connection, address, prefix, "create_model", &create).await?;
    let done =
        post(&mut connection, address, prefix, "retrieve_future", &json!({ "request_id": created["request_id"] }))
            .await?;
    let mut requests = Vec::with_capacity(RESULTS);
    for number in 0..RESULTS {
        let body = json!({
            "model_id": done["model_id"],
            "seq_id": FIRST_NUMBER + number,
            "adam_params": { "learning_rate": 1e-4 },
        });
        let accepted = post(&mut connection, address, prefix, "optim_step", &body).await?;
        requests.push(accepted["request_id"].as_str().context("no request id")?.to_owned());
    }
    Ok(requests)
}

/// Posts and expects success.
pub(crate) async fn post(
    connection: &mut Connection,
    address: &str,
    prefix: &str,
    route: &str,
    body: &Value,
) -> Result<Value> {
    let request = request(address, "POST", &format!("{prefix}/{route}"), &body.to_string());
    let answer = connection.ask(&request).await?;
    let text = String::from_utf8_lossy(answer.body).into_owned();
    ensure!(answer.status == 200, "{route} answered {}: {text}", answer.status);
    serde_json::from_str(&text).with_context(|| format!("{route} answered {text}"))
}
