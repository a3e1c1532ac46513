//! Ends requests whose body stops coming: a client that sends a byte now and then must not keep a place for ever.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tower::{Layer, Service};
use twinkle_core::error::Error;

use super::request_id::RequestTag;
use crate::error_response::respond;

/// Less than this within the time is no progress. Even a slow line carries it in a second.
const PROGRESS_BYTES: usize = 1024;

/// Answers 408 when a body brings less than [`PROGRESS_BYTES`] within a time in which somebody waits for it.
#[derive(Clone, Copy, Debug)]
pub struct BodyProgressLayer {
    within: Duration,
}

impl BodyProgressLayer {
    /// A layer that waits for `within`.
    #[must_use]
    pub const fn new(within: Duration) -> Self {
        Self { within }
    }
}

impl<S> Layer<S> for BodyProgressLayer {
    type Service = BodyProgress<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BodyProgress { inner, within: self.within }
    }
}

/// The service of [`BodyProgressLayer`].
#[derive(Clone, Debug)]
pub struct BodyProgress<S> {
    inner: S,
    within: Duration,
}

impl<S> Service<Request<Body>> for BodyProgress<S>
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
        if request.body().is_end_stream() {
            return Box::pin(self.inner.call(request));
        }
        let id = request.extensions().get::<RequestTag>().cloned();
        let (within, stalled) = (self.within, Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&stalled);
        let watched = request.map(|body| Body::new(WatchedBody::new(body, within, flag)));
        let answer = self.inner.call(watched);
        Box::pin(async move {
            let response = answer.await?;
            if !stalled.load(Ordering::Relaxed) {
                return Ok(response);
            }
            // What the front made of half a body is not the reason.
            let error = Error::invalid(format!("no more of the request body came within {} s", within.as_secs_f64()));
            let mut response = respond(&error, id.as_ref().map(RequestTag::as_str));
            *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
            Ok(response)
        })
    }
}

/// A body that fails when it stops coming. Time counts only while it is read and has nothing to give.
struct WatchedBody {
    body: Body,
    within: Duration,
    /// When it must have made progress; made at the first wait, which most bodies never have.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Bytes since the deadline was set.
    since: usize,
    stalled: Arc<AtomicBool>,
}

impl WatchedBody {
    const fn new(body: Body, within: Duration, stalled: Arc<AtomicBool>) -> Self {
        Self { body, within, deadline: None, since: 0, stalled }
    }

    /// Counts what came; enough of it moves the deadline.
    fn note(&mut self, bytes: usize) {
        self.since += bytes;
        if self.since >= PROGRESS_BYTES
            && let Some(deadline) = &mut self.deadline
        {
            deadline.as_mut().reset(Instant::now() + self.within);
            self.since = 0;
        }
    }

    /// Ready when the deadline is over.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let within = self.within;
        let since = &mut self.since;
        let deadline = self.deadline.get_or_insert_with(|| {
            *since = 0;
            Box::pin(sleep_until(Instant::now() + within))
        });
        deadline.as_mut().poll(context)
    }
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if let Some(Ok(frame)) = &frame {
                self.note(frame.data_ref().map_or(0, Bytes::len));
            }
            return Poll::Ready(frame);
        }
        ready!(self.poll_deadline(context));
        self.stalled.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(axum::Error::new("the body stopped coming"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body_util::BodyExt;
    use tokio::time::sleep;
    use tower::{ServiceExt, service_fn};

    use super::*;

    const WITHIN: Duration = Duration::from_secs(30);

    /// A body of `count` pieces of `size` bytes, with `pause` before each.
    fn dribbled(count: usize, size: usize, pause: Duration) -> Body {
        Body::from_stream(stream::unfold(0, move |sent| async move {
            if sent == count {
                return None;
            }
            sleep(pause).await;
            Some((Ok::<_, Infallible>(Bytes::from(vec![0; size])), sent + 1))
        }))
    }

    /// Status and text of a service that counts a body's bytes.
    async fn send(body: Body) -> (StatusCode, String) {
        let service = BodyProgressLayer::new(WITHIN).layer(service_fn(|request: Request<Body>| async move {
            let text = match request.into_body().collect().await {
                Ok(body) => body.to_bytes().len().to_string(),
                Err(error) => error.to_string(),
            };
            Ok::<_, Infallible>(Response::new(Body::from(text)))
        }));
        let response = service.oneshot(Request::new(body)).await.unwrap();
        let (head, body) = response.into_parts();
        (head.status, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_that_goes_on_passes() {
        let slow = dribbled(10, PROGRESS_BYTES, Duration::from_secs(29));
        assert_eq!(send(slow).await, (StatusCode::OK, (10 * PROGRESS_BYTES).to_string()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_is_a_408_at_the_deadline() {
        let began = Instant::now();
        let (status, text) = send(dribbled(2, PROGRESS_BYTES, Duration::from_hours(1))).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        assert!(text.contains("no more of the request body came within 30 s"), "{text}");
        assert_eq!(began.elapsed(), WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_no_progress() {
        let began = Instant::now();
        let (status, _) = send(dribbled(1_000, 1, Duration::from_secs(7))).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        assert!(began.elapsed() <= 2 * WITHIN, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_for_a_body_that_is_there() {
        assert_eq!(send(Body::from("1234")).await, (StatusCode::OK, "4".to_owned()));
        assert_eq!(send(Body::empty()).await, (StatusCode::OK, "0".to_owned()));
    }
}
