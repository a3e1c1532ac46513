//! A span per request, so that every log line below says which request it belongs to.

use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use futures::future::BoxFuture;
use http::Request;
use tokio::time::Instant;
use tower::{Layer, Service};
use tracing::{Instrument, debug, info_span};

use super::request_id::RequestTag;

/// Puts each request in a span with its id, method, path and, once it is known, its tenant.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Trace { inner }
    }
}

/// The service of [`TraceLayer`].
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Trace<S>
where
    S: Service<Request<Body>, Response = Response, Future: Send + 'static>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let id = request.extensions().get::<RequestTag>().map(RequestTag::as_str).unwrap_or_default();
        // The tenant is a hash, never a key; the query is left out because clients put names of files there.
        let span = info_span!(
            "request",
            id,
            method = request.method().as_str(),
            path = request.uri().path(),
            tenant = tracing::field::Empty,
        );
        let began = Instant::now();
        let answer = span.in_scope(|| self.inner.call(request));
        let answered = async move {
            let response = answer.await?;
            // Below `info`: a polling client would fill any log.
            debug!(status = response.status().as_u16(), elapsed_us = began.elapsed().as_micros() as u64, "answered");
            Ok(response)
        };
        Box::pin(answered.instrument(span))
    }
}
