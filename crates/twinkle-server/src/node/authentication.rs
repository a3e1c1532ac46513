//! Who asks: turns a credential into a [`TenantId`].

use std::net::SocketAddr;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use futures::future::{Either, Ready, ready};
use http::header::{AUTHORIZATION, FORWARDED, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use tower::{Layer, Service};
use tracing::Span;
use twinkle_core::error::{Error, ErrorCode};
use twinkle_core::ids::TenantId;
use twinkle_core::telemetry::spans::Attribute;
use twinkle_core::telemetry::trace;

use super::request_id::RequestTag;
use crate::downloads::is_link;
use crate::error_response::respond;
use crate::keys::KeyRing;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const TWINKLE_AUTHORIZATION: HeaderName = HeaderName::from_static("twinkle-authorization");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Every header a credential may be in. Tinker clients send the first, Twinkle's the others, both with the same key.
const CREDENTIAL_HEADERS: [HeaderName; 3] = [X_API_KEY, TWINKLE_AUTHORIZATION, AUTHORIZATION];

/// Longest credential looked at, in bytes.
const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;

/// Which credentials are accepted.
#[derive(Clone, Debug, Default)]
pub enum Authentication {
    /// Any non-empty one; each is its own tenant. For a server that only this machine, or a trusted network, reaches.
    #[default]
    Open,
    /// Those of a key ring.
    Keys(KeyRing),
}

impl Authentication {
    /// The tenant of a request, or why it has none.
    fn tenant(&self, headers: &HeaderMap) -> Result<TenantId, Error> {
        let Some(key) = credential(headers)? else {
            return Err(Error::new(ErrorCode::Unauthenticated, "the request carries no API key")
                .hint("send it as `X-API-Key: <key>` or `Authorization: Bearer <key>`"));
        };
        if key.len() > MAX_CREDENTIAL_BYTES {
            return Err(not_valid());
        }
        match self {
            Self::Open => Ok(TenantId::of_key(key)),
            Self::Keys(ring) => ring.tenant_of(key).ok_or_else(not_valid),
        }
    }

    /// Whether a request may go without a credential.
    fn is_exempt(&self, request: &Request<Body>) -> bool {
        match access(request.uri().path()) {
            Access::Anyone => true,
            Access::ThisMachine => matches!(self, Self::Open) || is_from_here(request),
            Access::Key => false,
        }
    }
}

/// Requires a credential on every route but the health probes and signed links, and puts its [`TenantId`] into the request.
#[derive(Clone, Debug)]
pub struct AuthenticationLayer {
    authentication: Authentication,
}

impl AuthenticationLayer {
    /// A layer that accepts what `authentication` accepts.
    #[must_use]
    pub const fn new(authentication: Authentication) -> Self {
        Self { authentication }
    }
}

impl<S> Layer<S> for AuthenticationLayer {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authenticated { inner, authentication: self.authentication.clone() }
    }
}

/// The service of [`AuthenticationLayer`].
#[derive(Clone, Debug)]
pub struct Authenticated<S> {
    inner: S,
    authentication: Authentication,
}

impl<S> Service<Request<Body>> for Authenticated<S>
where
    S: Service<Request<Body>, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let tenant = if self.authentication.is_exempt(&request) {
            Ok(None)
        } else {
            self.authentication.tenant(request.headers()).map(Some)
        };
        // Whatever a handler logs of a request, there is no key in it.
        for name in CREDENTIAL_HEADERS {
            request.headers_mut().remove(name);
        }
        match tenant {
            Ok(Some(tenant)) => {
                Span::current().record("tenant", tenant.as_str());
                trace::set(Attribute::TokenId, tenant.as_str().to_owned());
                request.extensions_mut().insert(tenant);
                Either::Right(self.inner.call(request))
            }
            Ok(None) => Either::Right(self.inner.call(request)),
            Err(error) => {
                let id = request.extensions().get::<RequestTag>().map(RequestTag::as_str);
                let mut response = respond(&error, id);
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                Either::Left(ready(Ok(response)))
            }
        }
    }
}

/// Who may call a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Whoever reaches the node.
    Anyone,
    /// Programs on this machine, and whoever has a key.
    ThisMachine,
    /// Whoever has a key.
    Key,
}

/// Who may call this path, be it a request's or a route's.
pub(crate) fn access(path: &str) -> Access {
    if is_probe(path) || is_link(path) {
        return Access::Anyone;
    }
    if path == "/metrics" { Access::ThisMachine } else { Access::Key }
}

/// Whether this is a health probe: those come from load balancers, which have no key, and tell no tenant's secret.
fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz") || path.ends_with("/healthz")
}

/// Whether the request comes from a program on this machine, and not through a proxy on it.
fn is_from_here(request: &Request<Body>) -> bool {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let proxied = request.headers().contains_key(X_FORWARDED_FOR) || request.headers().contains_key(FORWARDED);
    peer.is_some_and(|ConnectInfo(address)| address.ip().to_canonical().is_loopback()) && !proxied
}

/// The answer to a key that is unknown, revoked, or no key at all: the three are not told apart.
fn not_valid() -> Error {
    Error::new(ErrorCode::Unauthenticated, "the API key is not valid")
}

/// The credential of a request, without its scheme; headers that contradict each other are an error.
///
/// With a key in `Twinkle-Authorization`, `Authorization` is a proxy's: clients send the first for that very reason.
fn credential(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    let mut found: Option<&str> = None;
    for name in CREDENTIAL_HEADERS {
        let is_proxys = name == AUTHORIZATION && headers.get_all(TWINKLE_AUTHORIZATION).iter().any(holds_key);
        if is_proxys {
            continue;
        }
        for value in headers.get_all(name) {
            let Some(key) = key_in(value.to_str().map_err(|_| not_valid())?) else { continue };
            if found.is_some_and(|other| other != key) {
                return Err(Error::new(ErrorCode::Unauthenticated, "the request carries two different API keys")
                    .hint("send one, as `X-API-Key: <key>` or `Authorization: Bearer <key>`"));
            }
            found = Some(key);
        }
    }
    Ok(found)
}

fn holds_key(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|value| key_in(value).is_some())
}

/// The key in a header: bare or behind `Bearer`. Other schemes, `Basic` for one, are meant for a proxy.
fn key_in(value: &str) -> Option<&str> {
    let value = value.trim();
    let key = match value.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        Some(_) => "",
        None if value.eq_ignore_ascii_case("bearer") => "",
        None => value,
    };
    (!key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::FutureExt;
    use http::StatusCode;
    use http_body_util::BodyExt;
    use tower::service_fn;
    use twinkle_core::state::ApiKeyRecord;

    use super::*;
    use crate::keys::ApiKey;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::try_from(*value).unwrap());
        }
        map
    }

    fn tenant(headers: &[(&'static str, &str)]) -> Result<TenantId, Error> {
        Authentication::Open.tenant(&map(headers))
    }

    /// What a request to `path` gets: its status, and its body as text.
    fn ask(
        authentication: &Authentication,
        path: &str,
        headers: &[(&'static str, &str)],
        peer: Option<&str>,
    ) -> (StatusCode, String) {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        *request.headers_mut() = map(headers);
        if let Some(peer) = peer {
            request.extensions_mut().insert(ConnectInfo::<SocketAddr>(peer.parse().unwrap()));
        }
        let mut service =
            AuthenticationLayer::new(authentication.clone()).layer(service_fn(|request: Request<Body>| async move {
                Ok::<_, Infallible>(Response::new(Body::from(format!("{request:?}"))))
            }));
        let response = service.call(request).now_or_never().unwrap().unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().now_or_never().unwrap().unwrap().to_bytes();
        (head.status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn every_way_to_send_a_key_names_the_same_tenant() {
        let alice = TenantId::of_key("tml-alice");
        assert_eq!(tenant(&[("x-api-key", "tml-alice")]), Ok(alice.clone()));
        assert_eq!(tenant(&[("authorization", "Bearer tml-alice")]), Ok(alice.clone()));
        assert_eq!(tenant(&[("authorization", "bearer  tml-alice ")]), Ok(alice.clone()));
        assert_eq!(tenant(&[("twinkle-authorization", "tml-alice")]), Ok(alice.clone()));
        assert_eq!(tenant(&[("x-api-key", "tml-alice"), ("authorization", "Bearer tml-alice")]), Ok(alice.clone()));
        assert_eq!(tenant(&[("x-api-key", "tml-alice"), ("authorization", "Basic cHJveHk=")]), Ok(alice));
    }

    #[test]
    fn no_key_and_an_empty_key_are_refused() {
        for headers in [&[][..], &[("x-api-key", "")], &[("authorization", "Bearer ")], &[("x-api-key", "  ")]] {
            assert_eq!(tenant(headers).unwrap_err().code, ErrorCode::Unauthenticated, "{headers:?} was accepted");
        }
    }

    #[test]
    fn two_keys_are_two_tenants_and_not_both_in_one_request() {
        assert_ne!(tenant(&[("x-api-key", "tml-alice")]), tenant(&[("x-api-key", "tml-bob")]));
        for other in ["x-api-key", "authorization", "twinkle-authorization"] {
            let refusal = tenant(&[("x-api-key", "tml-alice"), (other, "tml-bob")]).unwrap_err();
            assert_eq!(refusal.message, "the request carries two different API keys", "{other}");
        }
    }

    #[test]
    fn twinkles_own_header_wins_over_the_one_that_proxies_use() {
        let alice = TenantId::of_key("alice");
        assert_eq!(
            tenant(&[("authorization", "Bearer proxy"), ("twinkle-authorization", "Bearer alice")]),
            Ok(alice.clone())
        );
        assert_eq!(tenant(&[("authorization", "Bearer alice"), ("twinkle-authorization", " ")]), Ok(alice));
    }

    #[test]
    fn a_ring_accepts_its_keys_and_answers_all_others_alike() {
        let (alice, revoked) = (ApiKey::fresh(), ApiKey::fresh());
        let records: [ApiKeyRecord; 2] = [alice.record(Some("alice"), None), revoked.record(Some("bob"), None)];
        let ring = KeyRing::new(&records);
        let authentication = Authentication::Keys(ring.clone());
        assert_eq!(ask(&authentication, "/", &[("x-api-key", revoked.reveal())], None).0, StatusCode::OK);
        ring.replace(&records[..1]);

        assert_eq!(ask(&authentication, "/", &[("x-api-key", alice.reveal())], None).0, StatusCode::OK);
        let refusal = ask(&authentication, "/", &[("x-api-key", revoked.reveal())], None);
        assert_eq!(refusal.0, StatusCode::UNAUTHORIZED);
        let long = "x".repeat(MAX_CREDENTIAL_BYTES + 1);
        for key in [ApiKey::fresh().reveal(), "tml-", "anything", "\u{e9}", &long, &alice.reveal()[..46]] {
            assert_eq!(ask(&authentication, "/", &[("x-api-key", key)], None), refusal, "{key}");
        }
    }

    #[test]
    fn nothing_below_sees_the_key() {
        let key = ApiKey::fresh();
        for path in ["/", "/livez"] {
            let bearer = format!("Bearer {}", key.reveal());
            let headers = [("x-api-key", key.reveal()), ("authorization", bearer.as_str())];
            let (status, seen) = ask(&Authentication::Open, path, &headers, None);
            assert_eq!(status, StatusCode::OK);
            assert!(!seen.contains(key.reveal()), "{seen}");
        }
    }

    #[test]
    fn only_health_probes_are_open() {
        assert!(is_probe("/livez") && is_probe("/readyz") && is_probe("/api/v1/healthz"));
        assert!(!is_probe("/api/v1/create_session") && !is_probe("/") && !is_probe("/api/v1/healthz/x"));
    }

    #[test]
    fn with_keys_metrics_are_for_this_machine_and_for_keys() {
        let key = ApiKey::fresh();
        let keyed = Authentication::Keys(KeyRing::new(&[key.record(None, None)]));
        let status = |headers: &[(&'static str, &str)], peer| ask(&keyed, "/metrics", headers, peer).0;
        assert_eq!(status(&[], Some("127.0.0.1:5")), StatusCode::OK);
        assert_eq!(status(&[], Some("[::ffff:127.0.0.1]:5")), StatusCode::OK);
        assert_eq!(status(&[("x-api-key", key.reveal())], Some("10.0.0.5:5")), StatusCode::OK);
        assert_eq!(status(&[], Some("10.0.0.5:5")), StatusCode::UNAUTHORIZED);
        assert_eq!(status(&[("x-forwarded-for", "10.0.0.5")], Some("127.0.0.1:5")), StatusCode::UNAUTHORIZED);
        assert_eq!(status(&[], None), StatusCode::UNAUTHORIZED);
        assert_eq!(ask(&Authentication::Open, "/metrics", &[], Some("10.0.0.5:5")).0, StatusCode::OK);
    }
}
