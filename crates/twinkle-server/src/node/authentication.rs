//! Who asks: turns a credential into a [`TenantId`].

use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use futures::future::{Either, Ready, ready};
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use tower::{Layer, Service};
use tracing::Span;
use twinkle_core::error::{Error, ErrorCode};
use twinkle_core::ids::TenantId;

use super::request_id::RequestTag;
use crate::error_response::respond;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const TWINKLE_AUTHORIZATION: HeaderName = HeaderName::from_static("twinkle-authorization");

/// Longest credential looked at, in bytes.
const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;

/// Which credentials are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// Any non-empty one; each is its own tenant. For a server that only this machine, or a trusted network, reaches.
    #[default]
    Open,
}

impl Authentication {
    /// The tenant of a request, or why it has none.
    fn tenant(self, headers: &HeaderMap) -> Result<TenantId, Error> {
        let Some(key) = credential(headers) else {
            return Err(Error::new(ErrorCode::Unauthenticated, "the request carries no API key")
                .hint("send it as `X-API-Key: <key>` or `Authorization: Bearer <key>`"));
        };
        if key.len() > MAX_CREDENTIAL_BYTES {
            return Err(Error::new(ErrorCode::Unauthenticated, "the API key is too long"));
        }
        match self {
            Self::Open => Ok(TenantId::of_key(key)),
        }
    }
}

/// Requires a credential on every route but the health probes and puts its [`TenantId`] into the request.
#[derive(Clone, Copy, Debug)]
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
        Authenticated { inner, authentication: self.authentication }
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
        if is_probe(request.uri().path()) {
            return Either::Right(self.inner.call(request));
        }
        match self.authentication.tenant(request.headers()) {
            Ok(tenant) => {
                Span::current().record("tenant", tenant.as_str());
                request.extensions_mut().insert(tenant);
                Either::Right(self.inner.call(request))
            }
            Err(error) => {
                let id = request.extensions().get::<RequestTag>().map(RequestTag::as_str);
                let mut response = respond(&error, id);
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                Either::Left(ready(Ok(response)))
            }
        }
    }
}

/// Whether this is a health probe: those come from load balancers, which have no key, and tell no tenant's secret.
fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz") || path.ends_with("/healthz")
}

/// The credential of a request, without its scheme. Tinker clients send the first header, Twinkle's the others.
fn credential(headers: &HeaderMap) -> Option<&str> {
    for name in [X_API_KEY, TWINKLE_AUTHORIZATION, AUTHORIZATION] {
        let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) else { continue };
        let key = without_scheme(value.trim());
        if !key.is_empty() {
            return Some(key);
        }
    }
    None
}

fn without_scheme(value: &str) -> &str {
    match value.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        _ if value.eq_ignore_ascii_case("bearer") => "",
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(headers: &[(&'static str, &str)]) -> Result<TenantId, Error> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::try_from(*value).unwrap());
        }
        Authentication::Open.tenant(&map)
    }

    #[test]
    fn every_way_to_send_a_key_names_the_same_tenant() {
        let alice = TenantId::of_key("tml-alice");
        assert_eq!(tenant(&[("x-api-key", "tml-alice")]), Ok(alice.clone()));
        assert_eq!(tenant(&[("authorization", "Bearer tml-alice")]), Ok(alice.clone()));
        assert_eq!(tenant(&[("authorization", "bearer  tml-alice ")]), Ok(alice.clone()));
        assert_eq!(tenant(&[("twinkle-authorization", "tml-alice")]), Ok(alice));
    }

    #[test]
    fn no_key_and_an_empty_key_are_refused() {
        for headers in [&[][..], &[("x-api-key", "")], &[("authorization", "Bearer ")], &[("x-api-key", "  ")]] {
            assert_eq!(tenant(headers).unwrap_err().code, ErrorCode::Unauthenticated, "{headers:?} was accepted");
        }
    }

    #[test]
    fn two_keys_are_two_tenants() {
        assert_ne!(tenant(&[("x-api-key", "tml-alice")]), tenant(&[("x-api-key", "tml-bob")]));
    }

    #[test]
    fn only_health_probes_are_open() {
        assert!(is_probe("/livez") && is_probe("/readyz") && is_probe("/api/v1/healthz"));
        assert!(!is_probe("/api/v1/create_session") && !is_probe("/") && !is_probe("/api/v1/healthz/x"));
    }
}
