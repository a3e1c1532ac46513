//! Loads one route of a running node and prints throughput and latency as one line of JSON.
//!
//! Each connection sends a request, reads the whole answer and sends the next: closed loop, keep-alive.
//!
//! ```text
//! control_plane --route create-session --connections 64 --seconds 5
//! control_plane --route heartbeat --connections 512 --idle-polls 2000 --base-model tiny/llama3
//! control_plane --burst 512 --idle-polls 2000 --base-model tiny/llama3
//! ```

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

mod burst;
mod http;
mod polls;

use burst::{Burst, Node};
use http::{Connection, request};
use polls::IdlePolls;

/// Loads one route of a running node and prints throughput and latency.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where the node listens
    #[arg(long, default_value = "127.0.0.1:8000")]
    address: String,
    /// The `route_prefix` of its `server` application
    #[arg(long, default_value = "/api/v1")]
    prefix: String,
    /// What to ask
    #[arg(long, value_enum, default_value = "healthz")]
    route: Route,
    /// Connections, each with one request under way
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How long to measure, after one second of warming up
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// What a connection waits after each answer, in milliseconds; 0 loads the server as much as it can take
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Further connections, each with a long poll that is not answered meanwhile
    #[arg(long, default_value_t = 0)]
    idle_polls: usize,
    /// A base model the node serves; idle polls wait for a training run of it, samples are drawn from it
    #[arg(long)]
    base_model: Option<String>,
    /// Draw so many samples at once, instead of loading a route
    #[arg(long)]
    burst: Option<usize>,
    /// Tokens of each sample of a burst
    #[arg(long, default_value_t = 4)]
    tokens: u32,
    /// Whether a burst's client asks for completions in bulk
    #[arg(long)]
    bulk: bool,
}

#[derive(Clone, Copy, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Route {
    /// No work at all
    Healthz,
    /// One durable write
    CreateSession,
    /// A client's sign of life; each connection is a client of its own
    Heartbeat,
}

impl Route {
    /// The whole request, ready to be written.
    async fn request(self, address: &str, prefix: &str) -> Result<Vec<u8>> {
        let post = |path: &str, body: &str| request(address, "POST", &format!("{prefix}/{path}"), body);
        Ok(match self {
            Self::Healthz => request(address, "GET", &format!("{prefix}/healthz"), ""),
            Self::CreateSession => post(
                "create_session",
                r#"{"tags":[],"user_metadata":{},"sdk_version":"0.38.0","type":"create_session"}"#,
            ),
            Self::Heartbeat => {
                let mut connection = Connection::open(address).await?;
                let body = json!({ "tags": [] });
                let session = polls::post(&mut connection, address, prefix, "create_session", &body).await?;
                post("session_heartbeat", &json!({ "session_id": session["session_id"] }).to_string())
            }
        })
    }
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    route: Route,
    connections: usize,
    idle_polls: usize,
    pause_ms: u64,
    seconds: f64,
    requests: usize,
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut polls = None;
    if arguments.idle_polls > 0 {
        let base_model = arguments.base_model.as_deref().context("`--idle-polls` needs `--base-model`")?;
        let parked = IdlePolls::park(&arguments.address, &arguments.prefix, base_model, arguments.idle_polls).await?;
        polls = Some(parked);
    }
    if let Some(samples) = arguments.burst {
        let base_model = arguments.base_model.clone().context("`--burst` needs `--base-model`")?;
        let node = Node { address: arguments.address, prefix: arguments.prefix, base_model };
        let (tokens, bulk, idle_polls) = (arguments.tokens, arguments.bulk, arguments.idle_polls);
        let report = burst::run(&node, Burst { samples, tokens, bulk, idle_polls }).await?;
        if let Some(polls) = &mut polls {
            polls.check()?;
        }
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    let mut requests = Vec::with_capacity(arguments.connections);
    for _ in 0..arguments.connections {
        requests.push(arguments.route.request(&arguments.address, &arguments.prefix).await?);
    }
    let start = Instant::now() + Duration::from_secs(1);
    let end = start + Duration::try_from_secs_f64(arguments.seconds).context("`--seconds` is not a duration")?;
    let mut clients = JoinSet::new();
    let pause = Duration::from_millis(arguments.pause_ms);
    for request in requests {
        clients.spawn(load(arguments.address.clone(), request, pause, start, end));
    }
    let mut latencies: Vec<Duration> = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client??);
    }
    if let Some(polls) = &mut polls {
        polls.check()?;
    }
    latencies.sort_unstable();
    ensure!(!latencies.is_empty(), "no request was answered in time");
    let milliseconds = |share: f64| {
        let index = ((latencies.len() - 1) as f64 * share) as usize;
        latencies[index].as_secs_f64() * 1_000.0
    };
    let report = Report {
        route: arguments.route,
        connections: arguments.connections,
        idle_polls: arguments.idle_polls,
        pause_ms: arguments.pause_ms,
        seconds: arguments.seconds,
        requests: latencies.len(),
        requests_per_second: latencies.len() as f64 / arguments.seconds,
        p50_ms: milliseconds(0.5),
        p99_ms: milliseconds(0.99),
        max_ms: milliseconds(1.0),
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

/// Sends requests until `end`; answers the latencies of those that began after `start`.
async fn load(
    address: String,
    request: Vec<u8>,
    pause: Duration,
    start: Instant,
    end: Instant,
) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(&address).await?;
    let mut latencies = Vec::with_capacity(1 << 12);
    loop {
        let began = Instant::now();
        if began >= end {
            return Ok(latencies);
        }
        let answer = connection.ask(&request).await?;
        if answer.status != 200 {
            bail!("the server answered {}: {}", answer.status, String::from_utf8_lossy(answer.body));
        }
        if began >= start {
            latencies.push(began.elapsed());
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}
