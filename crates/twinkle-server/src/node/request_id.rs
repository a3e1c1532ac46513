//! Gives every request an id and repeats it in the response.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request};
use tower::{Layer, Service};
use uuid::Uuid;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken over from a client or proxy.
const MAX_LENGTH: usize = 128;

/// The id of an HTTP request, in its extensions. Not unique where clients choose it: for people and logs only.
#[derive(Clone, Debug)]
pub struct RequestTag(HeaderValue);

impl RequestTag {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Where fresh ids come from: a random start per process and a counter, so that one costs no system call.
#[derive(Debug)]
struct Source {
    process: u32,
    next: AtomicU64,
}

impl Source {
    fn fresh(&self) -> RequestTag {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let text = format!("req-{:08x}-{number:x}", self.process);
        RequestTag(HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("req")))
    }
}

/// Puts a [`RequestTag`] into each request: the client's `x-request-id` if it is sane, else a fresh one.
#[derive(Clone, Debug)]
pub struct RequestIdLayer {
    source: Arc<Source>,
}

impl Default for RequestIdLayer {
    fn default() -> Self {
        let process = Uuid::new_v4().as_fields().0;
        Self { source: Arc::new(Source { process, next: AtomicU64::new(1) }) }
    }
}

impl<S> Layer<S> for RequestIdLayer {
    type Service = RequestId<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestId { inner, source: Arc::clone(&self.source) }
    }
}

/// The service of [`RequestIdLayer`].
#[derive(Clone, Debug)]
pub struct RequestId<S> {
    inner: S,
    source: Arc<Source>,
}

impl<S> Service<Request<Body>> for RequestId<S>
where
    S: Service<Request<Body>, Response = Response, Future: Send + 'static>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let tag = request.headers().get(X_REQUEST_ID).and_then(taken_over).unwrap_or_else(|| self.source.fresh());
        request.extensions_mut().insert(tag.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            response.headers_mut().insert(X_REQUEST_ID, tag.0);
            Ok(response)
        })
    }
}

/// A client's own id, if it is short and printable.
fn taken_over(value: &HeaderValue) -> Option<RequestTag> {
    let text = value.to_str().ok()?;
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    (!text.is_empty() && text.len() <= MAX_LENGTH && printable).then(|| RequestTag(value.clone()))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{ServiceExt, service_fn};

    use super::*;

    async fn echoed(given: Option<&str>) -> String {
        let service = RequestIdLayer::default().layer(service_fn(|request: Request<Body>| async move {
            let tag = request.extensions().get::<RequestTag>().unwrap().as_str().to_owned();
            Ok::<_, Infallible>(Response::new(Body::from(tag)))
        }));
        let mut request = Request::new(Body::empty());
        if let Some(id) = given {
            request.headers_mut().insert(X_REQUEST_ID, HeaderValue::try_from(id).unwrap());
        }
        let response = service.oneshot(request).await.unwrap();
        response.headers()[X_REQUEST_ID].to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_sane_id_is_kept_and_any_other_is_replaced() {
        assert_eq!(echoed(Some("20260101_120000-0a1b2c3d")).await, "20260101_120000-0a1b2c3d");
        assert!(echoed(None).await.starts_with("req-"));
        assert!(echoed(Some("two words")).await.starts_with("req-"));
        assert!(echoed(Some(&"x".repeat(MAX_LENGTH + 1))).await.starts_with("req-"));
    }

    #[test]
    fn fresh_ids_differ() {
        let layer = RequestIdLayer::default();
        assert_ne!(layer.source.fresh().as_str(), layer.source.fresh().as_str());
    }
}
