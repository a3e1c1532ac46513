//! What recording costs: nanoseconds per metric and per span, with and without a destination.
//!
//! ```text
//! cargo run -p twinkle-server --example telemetry_cost
//! ```

use std::hint::black_box;
use std::io::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use twinkle_core::config::TelemetryConfig;
use twinkle_core::telemetry::labels::{Deployment, HttpAnswer, HttpStatus, Route, Task, TaskType, Whole};
use twinkle_core::telemetry::metrics::{HTTP_REQUESTS, STORE_COMMIT, TASK_EXECUTION};
use twinkle_core::telemetry::spans;
use twinkle_core::telemetry::trace::server_span;
use twinkle_server::telemetry::{Settings, Telemetry};

const ROUNDS: u32 = 200_000;

/// Nanoseconds that one `action` takes.
fn cost(mut action: impl FnMut()) -> f64 {
    for _ in 0..ROUNDS / 10 {
        action();
    }
    let began = Instant::now();
    for _ in 0..ROUNDS {
        action();
    }
    began.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
}

fn show(title: &str) -> std::io::Result<()> {
    let route = Route("/api/v1/create_session".into());
    let deployment = Deployment::Gateway;
    let counter = cost(|| {
        let labels = HttpAnswer { deployment, method: route.clone(), status: HttpStatus(200) };
        HTTP_REQUESTS.add(1, black_box(labels));
    });
    let task = cost(|| {
        let labels = Task { deployment, task_type: TaskType("serve") };
        TASK_EXECUTION.record(Duration::from_millis(3), black_box(labels));
    });
    let plain = cost(|| STORE_COMMIT.record(Duration::from_millis(3), black_box(Whole)));
    let stage = cost(|| drop(black_box(spans::begin(spans::QUOTA))));
    let request = cost(|| {
        let origin = server_span(deployment, "request", opentelemetry::Context::new);
        let _inside = origin.as_ref().map(twinkle_core::telemetry::trace::Origin::enter);
        drop(black_box(spans::begin(spans::QUOTA)));
    });
    writeln!(
        std::io::stdout(),
        "{title:<28} counter of 3 labels {counter:6.0} ns   histogram of 2 {task:6.0} ns   of none {plain:6.0} ns   \
         stage outside a trace {stage:6.0} ns   request span with a stage {request:6.0} ns"
    )
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    show("nothing installed")?;
    // Nobody listens there: the exporters fail in the background, as they may.
    let enabled = std::env::args().nth(1).is_some_and(|argument| argument == "--otlp");
    let config =
        TelemetryConfig { enabled, otlp_endpoint: "http://127.0.0.1:1".to_owned(), ..TelemetryConfig::default() };
    let _telemetry = Telemetry::start(&Settings::new(&config)?)?;
    show(if enabled { "metrics and traces by OTLP" } else { "metrics for Prometheus" })?;
    Ok(())
}
