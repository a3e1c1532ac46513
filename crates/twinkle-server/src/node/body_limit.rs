//! Refuses bodies over a limit: by their stated length at once, otherwise as they are read.

use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use futures::future::{Either, Ready, ready};
use http::Request;
use http_body::Body as _;
use http_body_util::Limited;
use tower::{Layer, Service};
use twinkle_core::error::{Error, ErrorCode};

use super::request_id::RequestTag;
use crate::error_response::respond;

/// Refuses request bodies of more than `limit` bytes with 413.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimitLayer {
    limit: u64,
}

impl BodyLimitLayer {
    /// A limit in bytes on the wire.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self { limit }
    }
}

impl<S> Layer<S> for BodyLimitLayer {
    type Service = BodyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BodyLimit { inner, limit: self.limit }
    }
}

/// The service of [`BodyLimitLayer`].
#[derive(Clone, Debug)]
pub struct BodyLimit<S> {
    inner: S,
    limit: u64,
}

impl<S> Service<Request<Body>> for BodyLimit<S>
where
    S: Service<Request<Body>, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let stated = request.headers().get(http::header::CONTENT_LENGTH);
        let stated: Option<u64> = stated.and_then(|length| length.to_str().ok()?.parse().ok());
        let length = stated.unwrap_or_else(|| request.body().size_hint().lower());
        if length > self.limit {
            let id = request.extensions().get::<RequestTag>().map(RequestTag::as_str);
            let error = Error::new(
                ErrorCode::TooLarge,
                format!("a request body of {length} bytes is over this server's limit of {} bytes", self.limit),
            );
            return Either::Left(ready(Ok(respond(&error, id))));
        }
        // hyper holds a body to its stated length, so only a body without one has to be counted.
        if request.body().size_hint().upper().is_some() {
            return Either::Right(self.inner.call(request));
        }
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        Either::Right(self.inner.call(request.map(|body| Body::new(Limited::new(body, limit)))))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::stream;
    use http_body_util::BodyExt;
    use tower::{ServiceExt, service_fn};

    use super::*;

    /// Reads the body and answers its length, or the error's text.
    async fn read(limit: u64, body: Body) -> String {
        let service = BodyLimitLayer::new(limit).layer(service_fn(|request: Request<Body>| async move {
            let text = match request.into_body().collect().await {
                Ok(body) => body.to_bytes().len().to_string(),
                Err(error) => error.to_string(),
            };
            Ok::<_, Infallible>(Response::new(Body::from(text)))
        }));
        let response = service.oneshot(Request::new(body)).await.unwrap();
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    fn streamed(chunks: usize) -> Body {
        Body::from_stream(stream::iter((0..chunks).map(|_| Ok::<_, Infallible>(Bytes::from_static(b"0123456789")))))
    }

    #[tokio::test]
    async fn a_body_without_a_length_is_cut_off_at_the_limit() {
        assert_eq!(read(30, streamed(3)).await, "30");
        assert!(read(30, streamed(4)).await.contains("limit"));
    }

    #[tokio::test]
    async fn a_known_body_up_to_the_limit_passes() {
        assert_eq!(read(4, Body::from("1234")).await, "4");
        assert!(read(4, Body::from("12345")).await.contains("too_large"));
    }
}
