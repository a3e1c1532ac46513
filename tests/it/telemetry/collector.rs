//! A stand-in for an OpenTelemetry collector: takes traces, metrics and logs over gRPC and keeps them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::routing::post;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// How long the node may take to export something.
const LIMIT: Duration = Duration::from_secs(30);
/// What stands before a message of gRPC over HTTP/2: whether it is compressed, and its length in four bytes.
const MESSAGE_HEAD: usize = 5;

/// A collector on a port of its own; it ends with the test's runtime.
pub(super) struct Collector {
    port: u16,
    received: Arc<Received>,
}

/// What has arrived.
#[derive(Default)]
struct Received {
    everything: Mutex<Everything>,
    arrived: Notify,
}

#[derive(Default)]
pub(super) struct Everything {
    /// The spans, each with the name of its tracer.
    pub(super) spans: Vec<(String, Span)>,
    /// The names of the metrics.
    pub(super) metrics: BTreeSet<String>,
    /// The texts of the log lines.
    pub(super) logs: Vec<String>,
    /// The resources' `service.name`s.
    pub(super) services: BTreeSet<String>,
    /// Every request as it came.
    pub(super) bytes: Vec<u8>,
}

impl Collector {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let received = Arc::new(Received::default());
        let router = Router::new()
            .route(&path("trace.v1.TraceService"), taking(&received, Everything::add_spans))
            .route(&path("metrics.v1.MetricsService"), taking(&received, Everything::add_metrics))
            .route(&path("logs.v1.LogsService"), taking(&received, Everything::add_logs));
        tokio::spawn(axum::serve(listener, router).into_future());
        Self { port, received }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits until `enough` says so, and returns what `then` makes of everything.
    pub(super) async fn wait_for<T>(
        &self,
        what: &str,
        enough: impl Fn(&Everything) -> bool,
        then: impl FnOnce(&Everything) -> T,
    ) -> T {
        let arrival = async {
            loop {
                let arrived = self.received.arrived.notified();
                if enough(&self.received.everything.lock()) {
                    return;
                }
                arrived.await;
            }
        };
        let came = tokio::time::timeout(LIMIT, arrival).await;
        let everything = self.received.everything.lock();
        assert!(came.is_ok(), "{what} did not arrive; there are {}", everything.summary());
        then(&everything)
    }
}

impl Everything {
    fn add_spans(&mut self, request: &ExportTraceServiceRequest) {
        for resource in &request.resource_spans {
            for attribute in resource.resource.iter().flat_map(|resource| &resource.attributes) {
                if attribute.key == "service.name"
                    && let Some(Value::StringValue(name)) =
                        attribute.value.as_ref().and_then(|value| value.value.clone())
                {
                    self.services.insert(name);
                }
            }
            for scope in &resource.scope_spans {
                let tracer = scope.scope.as_ref().map(|scope| scope.name.clone()).unwrap_or_default();
                self.spans.extend(scope.spans.iter().map(|span| (tracer.clone(), span.clone())));
            }
        }
    }

    fn add_metrics(&mut self, request: &ExportMetricsServiceRequest) {
        let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        self.metrics.extend(scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()));
    }

    fn add_logs(&mut self, request: &ExportLogsServiceRequest) {
        let scopes = request.resource_logs.iter().flat_map(|resource| &resource.scope_logs);
        for record in scopes.flat_map(|scope| &scope.log_records) {
            self.logs.push(format!("{:?}", record.body));
        }
    }

    fn summary(&self) -> String {
        let spans: BTreeSet<&str> = self.spans.iter().map(|(_, span)| span.name.as_str()).collect();
        format!("spans {spans:?}, metrics {:?}, {} log lines", self.metrics, self.logs.len())
    }
}

/// The text of an attribute of a span.
pub(super) fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

/// Where a service of the collector is called.
fn path(service: &str) -> String {
    format!("/opentelemetry.proto.collector.{service}/Export")
}

/// The method of a service that takes one message and answers with an empty one.
fn taking<M: Message + Default + 'static>(
    received: &Arc<Received>,
    add: fn(&mut Everything, &M),
) -> axum::routing::MethodRouter {
    let received = Arc::clone(received);
    post(async move |body: Bytes| {
        let Some(message) = body.get(MESSAGE_HEAD..).and_then(|message| M::decode(message).ok()) else {
            return with_status(StatusCode::BAD_REQUEST);
        };
        let mut everything = received.everything.lock();
        everything.bytes.extend_from_slice(&body);
        add(&mut everything, &message);
        drop(everything);
        received.arrived.notify_waiters();
        with_status(StatusCode::OK)
    })
}

/// The answer of a gRPC method: an empty message, and how it went in the trailers.
fn with_status(status: StatusCode) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Frame::data(Bytes::from_static(&[0; MESSAGE_HEAD])), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
    let answer = Response::builder().status(status).header("content-type", "application/grpc");
    answer.body(Body::new(body)).expect("headers that are right")
}
