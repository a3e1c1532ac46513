//! What every HTTP request passes before a protocol front sees it.
//!
//! One file a layer. None of them knows a protocol: they see heads and bodies only.
//!
//! A limit on *decompressed* bodies is not here: only a front knows whether its route takes compressed
//! bodies at all, so the front bounds what it unpacks, by [`MAX_DECOMPRESSED_BYTES`].

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use tower::{Service, ServiceBuilder};

mod authentication;
mod body_limit;
mod body_progress;
pub mod listener;
mod panic_catch;
mod request_id;
mod tls;
mod trace;

pub(crate) use authentication::{Access, access};
pub use authentication::{Authentication, AuthenticationLayer};
pub use body_limit::BodyLimitLayer;
pub use body_progress::BodyProgressLayer;
pub use panic_catch::PanicCatchLayer;
pub use request_id::{RequestIdLayer, RequestTag};
pub use tls::Tls;
pub(crate) use trace::tell_route;
pub use trace::{Mounts, TraceLayer};

use crate::openai::ErrorFormLayer;

/// Largest request body on the wire, in bytes. The largest honest request is a chunk of training data:
/// clients split at 5 MB of tokens, images and dense targets come on top.
pub const MAX_BODY_BYTES: u64 = 64 << 20;

/// Largest body after decompression, in bytes; bounds what a zip bomb can cost.
pub const MAX_DECOMPRESSED_BYTES: usize = 64 << 20;

/// How long a request body may make no progress.
pub const BODY_PROGRESS: Duration = Duration::from_secs(30);

/// A service from one HTTP request to one HTTP response that cannot fail.
pub trait HttpService:
    Service<Request<Body>, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> HttpService for S where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

/// Wraps the router in everything a request passes, outermost first.
pub fn node_stack(authentication: Authentication, mounts: Mounts, router: impl HttpService) -> impl HttpService {
    ServiceBuilder::new()
        // Outermost: whatever happens below, the response names the request.
        .layer(RequestIdLayer::default())
        // Next, so that every log line below carries the request's id, also those of refusals.
        .layer(TraceLayer::new(mounts))
        // Around every layer that refuses requests, whose refusals it tells in the form of the route's protocol.
        .layer(ErrorFormLayer)
        // Before anything reads a body; a stated length is refused without reading one byte of it.
        .layer(BodyLimitLayer::new(MAX_BODY_BYTES))
        // Around whatever reads the body, so that its reader need not know how slow a client may be.
        .layer(BodyProgressLayer::new(BODY_PROGRESS))
        // Around everything that runs code per request; inside the span, so the panic is logged with its id.
        .layer(PanicCatchLayer)
        // Innermost: a front can rely on a tenant being there.
        .layer(AuthenticationLayer::new(authentication))
        .service(router)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::Extension;
    use axum::routing::{get, post};
    use bytes::Bytes;
    use http::StatusCode;
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    use twinkle_core::ids::TenantId;

    use super::*;

    fn node() -> impl HttpService {
        let router = Router::new()
            .route("/whoami", get(|Extension(tenant): Extension<TenantId>| async move { tenant.to_string() }))
            .route("/boom", get(|| async { panic!("a defect") as &'static str }))
            .route("/echo", post(|body: Bytes| async move { body.len().to_string() }))
            .route("/api/v1/healthz", get(|| async { "ok" }));
        node_stack(Authentication::Open, Mounts::default(), router)
    }

    async fn ask(request: Request<Body>) -> (StatusCode, http::HeaderMap, serde_json::Value) {
        let response = node().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| serde_json::Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        (head.status, head.headers, value)
    }

    #[tokio::test]
    async fn a_request_with_a_key_reaches_the_front_as_its_tenant() {
        let request = Request::get("/whoami").header("x-api-key", "tml-alice").body(Body::empty()).unwrap();
        let (status, headers, body) = ask(request).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body.as_str().map(str::to_owned), Some(TenantId::of_key("tml-alice").to_string()));
        assert!(headers.contains_key("x-request-id"));
    }

    #[tokio::test]
    async fn a_panic_is_a_500_that_names_the_request() {
        let request = Request::get("/boom")
            .header("x-api-key", "tml-alice")
            .header("x-request-id", "mine-1")
            .body(Body::empty())
            .unwrap();
        let (status, headers, body) = ask(request).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(headers["x-request-id"], "mine-1");
        assert_eq!(body["request_id"], "mine-1");
        assert_eq!(body["code"], "internal");
        assert!(!body["detail"].as_str().unwrap().contains("a defect"), "the panic's text leaked: {body}");
    }

    #[tokio::test]
    async fn a_stated_length_over_the_limit_is_refused_unread() {
        let request = Request::post("/echo")
            .header("x-api-key", "tml-alice")
            .header("content-length", MAX_BODY_BYTES + 1)
            .body(Body::empty())
            .unwrap();
        let (status, _, body) = ask(request).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(body["code"], "too_large");
    }

    #[tokio::test]
    async fn health_needs_no_key_and_everything_else_does() {
        let (status, _, _) = ask(Request::get("/api/v1/healthz").body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::OK);
        let (status, headers, body) = ask(Request::get("/whoami").body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(body["code"], "unauthenticated");
        assert_eq!(headers["www-authenticate"], "Bearer");
    }
}
