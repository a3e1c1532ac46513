//! Refusals of the node's layers, in the form that clients of this protocol read.

use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use futures::future::{Either, MapOk, TryFutureExt};
use http::Request;
use tower::{Layer, Service};
use twinkle_core::error::Error;

use super::answer::{is_openai_path, reshaped};

/// Rewrites the bodies of errors on this protocol's paths. Around the layers that refuse requests before a handler sees
/// them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ErrorFormLayer;

impl<S> Layer<S> for ErrorFormLayer {
    type Service = ErrorForm<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ErrorForm { inner }
    }
}

/// The service of [`ErrorFormLayer`].
#[derive(Clone, Debug)]
pub(crate) struct ErrorForm<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for ErrorForm<S>
where
    S: Service<Request<Body>, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<S::Future, MapOk<S::Future, fn(Response) -> Response>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_openai = is_openai_path(request.uri().path());
        let answer = self.inner.call(request);
        if is_openai { Either::Right(answer.map_ok(in_openai_form)) } else { Either::Left(answer) }
    }
}

/// What [`crate::error_response`] made is told anew; everything else is left as it is.
fn in_openai_form(mut response: Response) -> Response {
    match response.extensions_mut().remove::<Error>() {
        Some(error) => reshaped(response, error),
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::error_response::respond;

    async fn refusal(path: &str) -> serde_json::Value {
        let refusing =
            service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(respond(&Error::invalid("no"), Some("r1"))) });
        let service = ErrorFormLayer.layer(refusing);
        let response = service.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), length);
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn each_protocol_reads_its_own_form() {
        assert_eq!(refusal("/v1/chat/completions").await["error"]["message"], "no");
        let own = refusal("/api/v1/create_model").await;
        assert_eq!((own["detail"].as_str(), own.get("error")), (Some("no"), None));
    }
}
