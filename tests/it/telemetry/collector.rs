//! A stand-in for an OpenTelemetry collector: takes traces, metrics and logs over gRPC and keeps them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// How long the node may take to export something.
const LIMIT: Duration = Duration::from_secs(30);

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
        let server = Server::builder()
            .add_service(TraceServiceServer::from_arc(Arc::clone(&received)))
            .add_service(MetricsServiceServer::from_arc(Arc::clone(&received)))
            .add_service(LogsServiceServer::from_arc(Arc::clone(&received)))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(server);
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

impl Received {
    fn take(&self, message: &impl Message, add: impl FnOnce(&mut Everything)) {
        let mut everything = self.everything.lock();
        everything.bytes.extend(message.encode_to_vec());
        add(&mut everything);
        drop(everything);
        self.arrived.notify_waiters();
    }
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        self.take(&request, |everything| {
            for resource in &request.resource_spans {
                for attribute in resource.resource.iter().flat_map(|resource| &resource.attributes) {
                    if attribute.key == "service.name"
                        && let Some(Value::StringValue(name)) =
                            attribute.value.as_ref().and_then(|value| value.value.clone())
                    {
                        everything.services.insert(name);
                    }
                }
                for scope in &resource.scope_spans {
                    let tracer = scope.scope.as_ref().map(|scope| scope.name.clone()).unwrap_or_default();
                    everything.spans.extend(scope.spans.iter().map(|span| (tracer.clone(), span.clone())));
                }
            }
        });
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let request = request.into_inner();
        self.take(&request, |everything| {
            let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
            everything.metrics.extend(scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()));
        });
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Received {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let request = request.into_inner();
        self.take(&request, |everything| {
            let scopes = request.resource_logs.iter().flat_map(|resource| &resource.scope_logs);
            for record in scopes.flat_map(|scope| &scope.log_records) {
                everything.logs.push(format!("{:?}", record.body));
            }
        });
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}
