//! A panic in one request must not take the node, or another request, down.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::Request;
use tower::{Layer, Service};
use tracing::error;
use twinkle_core::error::Error;

use super::request_id::RequestTag;
use crate::error_response::respond;

/// Turns a panic into a 500 that names the request; the panic's text goes to the log only.
#[derive(Clone, Copy, Debug, Default)]
pub struct PanicCatchLayer;

impl<S> Layer<S> for PanicCatchLayer {
    type Service = PanicCatch<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PanicCatch { inner }
    }
}

/// The service of [`PanicCatchLayer`].
#[derive(Clone, Debug)]
pub struct PanicCatch<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for PanicCatch<S>
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
        let tag = request.extensions().get::<RequestTag>().cloned();
        // The state a panic may leave behind is owned by the request's own future, which is dropped here.
        let answer = std::panic::catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        Box::pin(async move {
            let outcome = match answer {
                Ok(future) => AssertUnwindSafe(future).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            outcome.unwrap_or_else(|panic| {
                error!(panic = panic_text(panic.as_ref()), "a request panicked");
                let request = tag.as_ref().map(RequestTag::as_str);
                let defect = Error::internal("internal error").hint("quote the request id when reporting this");
                Ok(respond(&defect, request))
            })
        })
    }
}

/// The text given to `panic!`, where there is one.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        return text;
    }
    panic.downcast_ref::<String>().map_or("a panic without a text", String::as_str)
}
