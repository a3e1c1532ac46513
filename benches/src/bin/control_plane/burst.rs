//! Samples at once: how long each takes from its submission to its result, and a sign of life meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::http::{Connection, request};
use super::polls::post;

/// Where the node is.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) address: String,
    pub(crate) prefix: String,
    pub(crate) base_model: String,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct BurstReport {
    samples: usize,
    tokens: u32,
    bulk: bool,
    idle_polls: usize,
    seconds: f64,
    samples_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    healthz_p99_ms: f64,
    healthz_max_ms: f64,
}

/// How a burst is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burst {
    pub(crate) samples: usize,
    pub(crate) tokens: u32,
    /// Whether completions are asked for in bulk.
    pub(crate) bulk: bool,
    pub(crate) idle_polls: usize,
}

/// Submits all samples at the same time, each on a connection of its own, and waits for every result.
pub(crate) async fn run(node: &Node, burst: Burst) -> Result<BurstReport> {
    let mut control = Connection::open(&node.address).await?;
    let session = ask(&mut control, node, "create_session", &json!({ "tags": [] })).await?;
    let wanted = json!({
        "session_id": session["session_id"],
        "sampling_session_seq_id": 0,
        "base_model": node.base_model,
    });
    let opened = ask(&mut control, node, "create_sampling_session", &wanted).await?;
    let session = opened["sampling_session_id"].as_str().context("no sampling session")?.to_owned();
    // The first samples make the engine ready.
    let mut warm = Connection::open(&node.address).await?;
    one(&mut warm, node, &body(&session, 1_000_000, burst.tokens), None).await?;

    let mut connections = Vec::with_capacity(burst.samples);
    for _ in 0..burst.samples {
        connections.push(Connection::open(&node.address).await?);
    }
    let (enough, stopped) = oneshot::channel();
    let life = tokio::spawn(signs_of_life(node.clone(), stopped));
    let told = burst.bulk.then(Arc::<Told>::default);
    let poller = told.clone().map(|told| tokio::spawn(listen(node.clone(), session.clone(), told)));
    let began = Instant::now();
    let mut samples = JoinSet::new();
    for (number, mut connection) in connections.into_iter().enumerate() {
        let (node, body, told) = (node.clone(), body(&session, number, burst.tokens), told.clone());
        samples.spawn(async move {
            let began = Instant::now();
            one(&mut connection, &node, &body, told.as_deref()).await?;
            anyhow::Ok(began.elapsed())
        });
    }
    let mut latencies = Vec::with_capacity(burst.samples);
    while let Some(sample) = samples.join_next().await {
        latencies.push(sample??);
    }
    let seconds = began.elapsed().as_secs_f64();
    let _ = enough.send(());
    if let Some(poller) = poller {
        poller.abort();
    }
    let mut life = life.await??;
    latencies.sort_unstable();
    life.sort_unstable();
    Ok(BurstReport {
        samples: burst.samples,
        tokens: burst.tokens,
        bulk: burst.bulk,
        idle_polls: burst.idle_polls,
        seconds,
        samples_per_second: burst.samples as f64 / seconds,
        p50_ms: quantile(&latencies, 0.5),
        p99_ms: quantile(&latencies, 0.99),
        healthz_p99_ms: quantile(&life, 0.99),
        healthz_max_ms: quantile(&life, 1.0),
    })
}

fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * share) as usize;
    sorted.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1_000.0)
}

fn body(session: &str, number: usize, tokens: u32) -> Value {
    json!({
        "sampling_session_id": session,
        "seq_id": number,
        "num_samples": 1,
        "prompt": { "chunks": [{ "tokens": [5, 9, 31, number % 200] }] },
        "sampling_params": { "max_tokens": tokens, "stop": [], "temperature": 1.0, "seed": number },
    })
}

async fn ask(connection: &mut Connection, node: &Node, route: &str, body: &Value) -> Result<Value> {
    post(connection, &node.address, &node.prefix, route, body).await
}

/// Submits a sample and fetches its result: at once, or when it was told that there is one.
async fn one(connection: &mut Connection, node: &Node, body: &Value, told: Option<&Told>) -> Result<()> {
    let accepted = ask(connection, node, "asample", body).await?;
    let id = accepted["request_id"].as_str().context("no request id")?;
    if let Some(told) = told {
        told.wait(id).await;
    }
    let poll = json!({ "request_id": id }).to_string();
    let poll = request(&node.address, "POST", &format!("{}/retrieve_future", node.prefix), &poll);
    loop {
        let answer = connection.ask(&poll).await?;
        if answer.status != 408 {
            let text = String::from_utf8_lossy(answer.body);
            ensure!(answer.status == 200 && text.contains("sequences"), "a sample ended in {}: {text}", answer.status);
            return Ok(());
        }
    }
}

/// Completions that were told, and who waits for one.
#[derive(Debug, Default)]
struct Told {
    by_request: Mutex<HashMap<String, Arc<Notify>>>,
}

impl Told {
    async fn of(&self, request: &str) -> Arc<Notify> {
        Arc::clone(self.by_request.lock().await.entry(request.to_owned()).or_default())
    }

    async fn wait(&self, request: &str) {
        self.of(request).await.notified().await;
    }
}

/// Polls for completions, as the SDK does.
async fn listen(node: Node, session: String, told: Arc<Told>) -> Result<()> {
    let mut connection = Connection::open(&node.address).await?;
    let mut cursor = json!(0);
    loop {
        let poll = json!({ "target": { "sampling_session_id": session }, "prev_cursor": cursor });
        let mut answer = ask(&mut connection, &node, "retrieve_futures", &poll).await?;
        cursor = answer["cursor"].take();
        for completion in answer["completions"].as_array().context("no completions")? {
            told.of(completion["request_id"].as_str().context("no request id")?).await.notify_one();
        }
    }
}

/// Asks `healthz` every few milliseconds: how long each answer took.
async fn signs_of_life(node: Node, mut stopped: oneshot::Receiver<()>) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(&node.address).await?;
    let request = request(&node.address, "GET", &format!("{}/healthz", node.prefix), "");
    let mut latencies = Vec::new();
    while stopped.try_recv().is_err() {
        let began = Instant::now();
        let answer = connection.ask(&request).await?;
        ensure!(answer.status == 200, "`healthz` answered {}", answer.status);
        latencies.push(began.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
    Ok(latencies)
}
