//! A span per request: in the log, so that every line below says which request it belongs to, and in the trace.

use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::MatchedPath;
use axum::response::Response;
use futures::future::BoxFuture;
use http::{HeaderMap, Request};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tokio::time::Instant;
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, info_span};
use twinkle_core::telemetry::labels::{Deployment, HttpAnswer, HttpRoute, HttpStatus, Route};
use twinkle_core::telemetry::metrics::{HTTP_DURATION, HTTP_REQUESTS};
use twinkle_core::telemetry::spans::Attribute;
use twinkle_core::telemetry::trace::{Origin, server_span};

use super::request_id::RequestTag;

/// The route of a request that none answers.
const UNMATCHED: &str = "unmatched";

/// Which kind of application answers below which path.
#[derive(Clone, Debug, Default)]
pub struct Mounts(Arc<[(String, Deployment)]>);

impl Mounts {
    /// Of applications and their `route_prefix`es.
    #[must_use]
    pub fn new(prefixes: impl IntoIterator<Item = (String, Deployment)>) -> Self {
        let mut prefixes: Vec<_> = prefixes.into_iter().collect();
        // The longest first: `/api/v1/processor` lies below `/api/v1`.
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Self(prefixes.into())
    }

    /// The gateway answers what no application claims.
    fn answering(&self, path: &str) -> Deployment {
        let below = |prefix: &str| {
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix == "/")
        };
        self.0.iter().find(|(prefix, _)| below(prefix)).map_or(Deployment::Gateway, |(_, deployment)| *deployment)
    }
}

/// Puts each request in a span with its id, method, path and, once they are known, its tenant and run; counts it.
#[derive(Clone, Debug)]
pub struct TraceLayer {
    mounts: Mounts,
}

impl TraceLayer {
    /// A layer that tells by `mounts` who answers.
    #[must_use]
    pub const fn new(mounts: Mounts) -> Self {
        Self { mounts }
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Trace { inner, mounts: self.mounts.clone() }
    }
}

/// The service of [`TraceLayer`].
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
    mounts: Mounts,
}

impl<S> Service<Request<Body>> for Trace<S>
where
    S: Service<Request<Body>, Response = Response, Future: Send + 'static>,
    S::Error: Send,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let began = Instant::now();
        let deployment = self.mounts.answering(request.uri().path());
        let span = log_span(&request);
        let origin = begin(deployment, &request);
        let method = request.method().clone();
        let answer = {
            let _in_trace = origin.as_ref().map(Origin::enter);
            span.in_scope(|| self.inner.call(request))
        };
        let place = origin.clone().unwrap_or_default();
        let answered = async move {
            let mut response = answer.await?;
            let route = response.extensions_mut().remove::<MatchedRoute>();
            let route = Route(route.map_or_else(|| Arc::from(UNMATCHED), |matched| matched.0));
            let status = response.status().as_u16();
            // Below `info`: a polling client would fill any log.
            debug!(status, elapsed_us = began.elapsed().as_micros() as u64, "answered");
            if let Some(origin) = origin {
                end(&origin, &method, &route, status);
            }
            HTTP_DURATION.record(began.elapsed(), HttpRoute { deployment, method: route.clone() });
            HTTP_REQUESTS.add(1, HttpAnswer { deployment, method: route, status: HttpStatus(status) });
            Ok(response)
        };
        Box::pin(place.surround(answered.instrument(span)))
    }
}

/// The tenant is a hash or a name, never a key; the query is left out because clients put names of files there.
fn log_span(request: &Request<Body>) -> Span {
    let id = request.extensions().get::<RequestTag>().map(RequestTag::as_str).unwrap_or_default();
    info_span!(
        "request",
        id,
        method = request.method().as_str(),
        path = request.uri().path(),
        tenant = Empty,
        run = Empty,
    )
}

/// The request's span in the trace, unless nothing is exported or it is a probe, of which there are too many.
fn begin(deployment: Deployment, request: &Request<Body>) -> Option<Origin> {
    let path = request.uri().path();
    if matches!(path, "/livez" | "/readyz" | "/metrics") || path.ends_with("/healthz") {
        return None;
    }
    let origin = server_span(deployment, "request", || client_context(request.headers()))?;
    origin.set(Attribute::HttpMethod, request.method().as_str().to_owned());
    origin.set(Attribute::HttpUrl, path.to_owned());
    origin.set(Attribute::HttpScheme, request.uri().scheme_str().unwrap_or("http").to_owned());
    origin.set(Attribute::Component, deployment.as_str());
    if let Some(id) = request.extensions().get::<RequestTag>() {
        origin.set(Attribute::HttpRequestId, id.as_str().to_owned());
    }
    Some(origin)
}

/// The span in which the client says it is (W3C `traceparent`), if it says so.
fn client_context(headers: &HeaderMap) -> opentelemetry::Context {
    TraceContextPropagator::new().extract_with_context(&opentelemetry::Context::new(), &Headers(headers))
}

/// The route is known only now: the router is below.
fn end(origin: &Origin, method: &http::Method, route: &Route, status: u16) {
    origin.rename(format!("{method} {}", route.0));
    origin.set(Attribute::HttpRoute, route.0.to_string());
    origin.set(Attribute::HttpStatusCode, i64::from(status));
    if status >= 500 {
        origin.fail("");
    }
    origin.end();
}

/// The headers as the propagator reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// The route that answered, in the extensions of its answer.
#[derive(Clone, Debug)]
struct MatchedRoute(Arc<str>);

/// Tells the layers around the router which route answers; a layer of the router itself.
pub(crate) async fn tell_route(
    matched: Option<MatchedPath>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let mut response = next.run(request).await;
    if let Some(matched) = matched {
        response.extensions_mut().insert(MatchedRoute(Arc::from(matched.as_str())));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_says_who_answers() {
        let mounts = Mounts::new([
            ("/api/v1".to_owned(), Deployment::Gateway),
            ("/api/v1/processor".to_owned(), Deployment::Processor),
            ("/api/v1/model/a".to_owned(), Deployment::Model),
        ]);
        assert_eq!(mounts.answering("/api/v1/processor/encode"), Deployment::Processor);
        assert_eq!(mounts.answering("/api/v1/processors"), Deployment::Gateway);
        assert_eq!(mounts.answering("/api/v1/model/a"), Deployment::Model);
        assert_eq!(mounts.answering("/livez"), Deployment::Gateway);
        assert_eq!(Mounts::new([("/".to_owned(), Deployment::Sampler)]).answering("/x"), Deployment::Sampler);
    }
}
