//! What a node tells a collector and Prometheus, and that a collector which is not there does no harm.

mod collector;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use twinkle_core::telemetry::document::prometheus_name;
use twinkle_core::telemetry::metrics::METRICS;
use twinkle_tests::{Node, NodeOptions, TinkerHttp};

use collector::{Collector, attribute};

const KEY: &str = "tml-telemetry-secret";
const TOKENS: [u32; 9] = [5, 9, 31, 7, 120, 44, 3, 250, 18];

/// The trace and the span in which the client says it is.
const CLIENT_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT_SPAN: &str = "00f067aa0ba902b7";

async fn node_with(endpoint: &str) -> Node {
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen2");
    options.settings = format!(
        "telemetry: {{enabled: true, service_name: twinkle-under-test, otlp_endpoint: '{endpoint}', export_interval_ms: 100}}"
    );
    Node::start(options).await.expect("the server starts")
}

/// Sends one forward-backward from inside the client's span, and waits for its result.
async fn traced_forward_backward(node: &Node, client: &TinkerHttp, run: &str) -> Value {
    let (inputs, targets) = (&TOKENS[..TOKENS.len() - 1], &TOKENS[1..]);
    let body = json!({
        "model_id": run,
        "seq_id": 1,
        "forward_backward_input": {
            "loss_fn": "cross_entropy",
            "data": [{
                "model_input": { "chunks": [{ "tokens": inputs }] },
                "loss_fn_inputs": {
                    "target_tokens": { "data": targets, "dtype": "int64" },
                    "weights": { "data": vec![1.0; targets.len()], "dtype": "float32" },
                },
            }],
        },
    });
    let accepted: Value = reqwest::Client::new()
        .post(format!("{}/api/v1/forward_backward", node.base_url()))
        .header("x-api-key", KEY)
        .header("traceparent", format!("00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"))
        .json(&body)
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    let request = accepted["request_id"].as_str().unwrap_or_else(|| panic!("not accepted: {accepted}"));
    client.result(request).await.expect("a result")
}

async fn scrape(node: &Node) -> String {
    let response = reqwest::get(format!("{}/metrics", node.base_url())).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(response.headers()["content-type"].to_str().expect("text").starts_with("text/plain"));
    response.text().await.expect("text")
}

/// The names of the metrics in the text format, each with its type. Every other line must be a sample of one of them.
fn parse(text: &str) -> BTreeMap<String, String> {
    let mut types = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            types.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') && !line.is_empty() {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
            assert!(types.contains_key(name) || types.contains_key(base), "a sample without a type: {line}");
            let value = line.rsplit(' ').next().unwrap_or_default();
            assert!(value.parse::<f64>().is_ok(), "not a number: {line}");
        }
    }
    types
}

fn hex_id(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

#[tokio::test]
async fn one_forward_backward_is_one_trace_with_every_stage() {
    let collector = Collector::start().await;
    let node = node_with(&collector.endpoint()).await;
    let client = TinkerHttp::new(&node.base_url(), KEY);
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let result = traced_forward_backward(&node, &client, &run).await;
    assert!(result["loss_fn_outputs"].is_array(), "{result}");

    let expected: BTreeMap<&str, &str> = [
        ("quota", "POST /api/v1/forward_backward"),
        ("queue", "POST /api/v1/forward_backward"),
        ("journal.commit", "POST /api/v1/forward_backward"),
        ("journal.turn", "POST /api/v1/forward_backward"),
        ("task_queue.execute", "POST /api/v1/forward_backward"),
        ("engine.queue", "task_queue.execute"),
        ("Model.forward_backward", "task_queue.execute"),
        ("journal.result", "task_queue.execute"),
        ("engine.pass", "Model.forward_backward"),
    ]
    .into();
    let in_trace = |span: &Span| hex_id(&span.trace_id) == CLIENT_TRACE;
    let spans: BTreeMap<String, (String, Span)> = collector
        .wait_for(
            "the whole trace",
            |everything| {
                let names: BTreeSet<&str> = everything
                    .spans
                    .iter()
                    .filter(|(_, span)| in_trace(span))
                    .map(|(_, span)| span.name.as_str())
                    .collect();
                expected.iter().all(|(name, parent)| names.contains(name) && names.contains(parent))
            },
            |everything| {
                let own = everything.spans.iter().filter(|(_, span)| in_trace(span));
                own.map(|(tracer, span)| (span.name.clone(), (tracer.clone(), span.clone()))).collect()
            },
        )
        .await;

    let (tracer, request) = &spans["POST /api/v1/forward_backward"];
    assert_eq!(tracer, "twinkle.server.Gateway");
    assert_eq!(hex_id(&request.parent_span_id), CLIENT_SPAN, "the request is not in the client's span");
    let tenant = hex::encode(&Sha256::digest(KEY)[..16]);
    for (key, value) in [
        ("http.method", "POST"),
        ("http.route", "/api/v1/forward_backward"),
        ("http.url", "/api/v1/forward_backward"),
        ("http.scheme", "http"),
        ("http.status_code", "200"),
        ("service.component", "Gateway"),
        ("twinkle.token_id", &tenant),
        ("twinkle.model_id", &run),
    ] {
        assert_eq!(attribute(request, key).as_deref(), Some(value), "{key}");
    }
    for (name, parent) in expected {
        let (tracer, span) = &spans[name];
        assert_eq!(tracer, "twinkle.server.business");
        assert_eq!(span.parent_span_id, spans[parent].1.span_id, "`{name}` is not below `{parent}`");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "`{name}` ends before it begins");
    }
    let (_, execution) = &spans["task_queue.execute"];
    assert_eq!(attribute(execution, "twinkle.task_type").as_deref(), Some("forward_backward"));
    assert_eq!(attribute(execution, "twinkle.token_id").as_deref(), Some(tenant.as_str()));
    assert!(execution.end_time_unix_nano >= spans["journal.result"].1.end_time_unix_nano);
}

#[tokio::test]
async fn metrics_reach_both_systems_under_documented_names_and_no_key_leaves_the_node() {
    let collector = Collector::start().await;
    let node = node_with(&collector.endpoint()).await;
    let client = TinkerHttp::new(&node.base_url(), KEY);
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    traced_forward_backward(&node, &client, &run).await;

    let shown = parse(&scrape(&node).await);
    let documented: BTreeMap<String, (&str, bool)> = METRICS
        .iter()
        .map(|metric| {
            let from_the_start = metric.description().appears.is_empty();
            (prometheus_name(*metric), (metric.kind(), from_the_start))
        })
        .collect();
    for (name, kind) in &shown {
        if name == "target_info" {
            continue;
        }
        let (documented, _) = documented.get(name).unwrap_or_else(|| panic!("`{name}` is not in docs/metrics.md"));
        let expected = if documented.contains("up-down") { "gauge" } else { documented };
        assert_eq!(kind, expected, "{name}");
    }
    for (name, (_, from_the_start)) in &documented {
        assert!(!from_the_start || shown.contains_key(name), "`{name}` is said to be there always");
    }
    for name in [
        "twinkle_tasks_total",
        "twinkle_task_wait_seconds",
        "twinkle_journal_commit_seconds",
        "twinkle_store_group_size",
        "twinkle_engine_pass_seconds",
        "twinkle_engine_turn_seconds",
        "twinkle_tokens_trained_total",
        "twinkle_runs_resident",
    ] {
        assert!(shown.contains_key(name), "`{name}` is missing after a forward-backward");
    }

    let wanted = |everything: &collector::Everything| {
        let all = ["twinkle.http.requests.total", "twinkle.tasks.total", "twinkle.process.memory.usage_bytes"];
        all.iter().all(|name| everything.metrics.contains(*name))
            && everything.spans.iter().any(|(_, span)| span.name == "task_queue.execute")
            && !everything.logs.is_empty()
    };
    let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.description().name).collect();
    collector
        .wait_for("metrics, spans and logs", wanted, |everything| {
            for name in &everything.metrics {
                assert!(names.contains(name.as_str()), "`{name}` is exported, but not documented");
            }
            assert!(everything.services.contains("twinkle-under-test"), "{:?}", everything.services);
            let key_somewhere = everything.bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes());
            assert!(!key_somewhere, "an API key was exported");
        })
        .await;
    assert!(!scrape(&node).await.contains(KEY), "an API key is in the metrics");
    assert!(!node.log().contains(KEY), "an API key is in the log");
}

#[tokio::test]
async fn a_sample_shows_its_stages_below_its_request() {
    let collector = Collector::start().await;
    let node = node_with(&collector.endpoint()).await;
    let client = TinkerHttp::new(&node.base_url(), KEY);
    let session =
        client.ask("create_session", &json!({ "tags": [], "sdk_version": "0.16.1" })).await.expect("a session");
    let body = json!({
        "session_id": session["session_id"],
        "sampling_session_seq_id": 0,
        "base_model": node.model(),
    });
    let opened = client.ask("create_sampling_session", &body).await.expect("a sampling session");
    let body = json!({
        "sampling_session_id": opened["sampling_session_id"],
        "seq_id": 0,
        "num_samples": 1,
        "prompt": { "chunks": [{ "tokens": TOKENS }] },
        "sampling_params": { "max_tokens": 3, "seed": 1 },
    });
    let request = client.submit("asample", &body).await.expect("accepted");
    client.result(&request).await.expect("a sample");

    let expected = [
        ("Sampler.sample", "POST /api/v1/asample"),
        ("engine.queue", "Sampler.sample"),
        ("engine.prefill", "Sampler.sample"),
        ("engine.decode", "Sampler.sample"),
    ];
    let named = |everything: &collector::Everything, name: &str| {
        everything.spans.iter().find(|(_, span)| span.name == name).map(|(_, span)| span.clone())
    };
    let complete = |everything: &collector::Everything| {
        expected.iter().all(|(name, parent)| named(everything, name).is_some() && named(everything, parent).is_some())
    };
    collector
        .wait_for("the trace of a sample", complete, |everything| {
            for (name, parent) in expected {
                let (span, parent) = (named(everything, name), named(everything, parent));
                let (span, parent) = (span.expect("waited for"), parent.expect("waited for"));
                assert_eq!(span.trace_id, parent.trace_id, "`{name}` is in another trace");
                assert_eq!(span.parent_span_id, parent.span_id, "`{name}` is not below `{}`", parent.name);
            }
        })
        .await;
    let shown = parse(&scrape(&node).await);
    for name in ["twinkle_tokens_prompt_total", "twinkle_tokens_generated_total", "twinkle_kv_cache_used_bytes"] {
        assert!(shown.contains_key(name), "`{name}` is missing after a sample");
    }
}

#[tokio::test]
async fn a_collector_that_is_not_there_does_no_harm() {
    // A port that was free a moment ago: nobody answers there.
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", dead.local_addr().expect("an address"));
    drop(dead);
    let node = node_with(&endpoint).await;
    let client = TinkerHttp::new(&node.base_url(), KEY);
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let result = traced_forward_backward(&node, &client, &run).await;
    assert!(result["loss_fn_outputs"].is_array(), "{result}");

    let failures = "twinkle_telemetry_export_failures_total";
    let deadline = Instant::now() + Duration::from_secs(30);
    while !scrape(&node).await.contains(failures) {
        assert!(Instant::now() < deadline, "failed exports are not counted");
        tokio::task::yield_now().await;
    }
    let warnings = node.log().matches("telemetry could not be exported").count();
    assert!((1..=3).contains(&warnings), "{warnings} warnings: at most one for each signal in a minute");
}
