//! Loads one route of a running node and prints throughput and latency as one line of JSON.
//!
//! Each connection sends a request, reads the whole answer and sends the next: closed loop, keep-alive, HTTP/1.1 written
//! by hand, because the generator shares its cores with the server and should cost as little as it can.
//!
//! ```text
//! control_plane --route create-session --connections 64 --seconds 5
//! ```

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

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
}

#[derive(Clone, Copy, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Route {
    /// No work at all
    Healthz,
    /// One durable write
    CreateSession,
}

impl Route {
    /// The whole request, ready to be written.
    fn request(self, address: &str, prefix: &str) -> Vec<u8> {
        let (method, path, body) = match self {
            Self::Healthz => ("GET", "healthz", ""),
            Self::CreateSession => (
                "POST",
                "create_session",
                r#"{"tags":[],"user_metadata":{},"sdk_version":"0.38.0","type":"create_session"}"#,
            ),
        };
        let length = body.len();
        format!(
            "{method} {prefix}/{path} HTTP/1.1\r\nhost: {address}\r\nx-api-key: tml-bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    route: Route,
    connections: usize,
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
    let request = arguments.route.request(&arguments.address, &arguments.prefix);
    let start = Instant::now() + Duration::from_secs(1);
    let end = start + Duration::try_from_secs_f64(arguments.seconds).context("`--seconds` is not a duration")?;
    let mut clients = JoinSet::new();
    for _ in 0..arguments.connections {
        clients.spawn(load(arguments.address.clone(), request.clone(), start, end));
    }
    let mut latencies: Vec<Duration> = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client??);
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
async fn load(address: String, request: Vec<u8>, start: Instant, end: Instant) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(&address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4_096);
    let mut latencies = Vec::with_capacity(1 << 16);
    loop {
        let began = Instant::now();
        if began >= end {
            return Ok(latencies);
        }
        stream.write_all(&request).await?;
        read_answer(&mut stream, &mut buffer).await?;
        if began >= start {
            latencies.push(began.elapsed());
        }
    }
}

/// Reads exactly one answer, which must be a 200 with a `content-length`.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    loop {
        let count = stream.read_buf(buffer).await?;
        ensure!(count > 0, "the server closed the connection");
        let Some(head_length) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&buffer[..head_length]).context("the answer's head is not text")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("the server answered: {}", String::from_utf8_lossy(buffer));
        }
        let length = content_length(head).context("the answer has no content-length")?;
        if buffer.len() >= head_length + 4 + length {
            return Ok(());
        }
    }
}

fn content_length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}
