//! Who sends a native request, for which session, and what it says.

use axum::extract::{FromRequest, FromRequestParts, Request};
use http::HeaderMap;
use http::request::Parts;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use twinkle_core::call::ServeRequest;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{SessionId, TenantId};

use super::{TwinkleError, TwinkleFront};
use crate::openapi::{Body, Extracted, Header, Operation, SchemaOf};
use crate::tinker::body::RawBody;

/// The session of a client, once it has opened one.
pub(crate) const SESSION: &str = "x-twinkle-session-id";

/// Names of the client's process. Clients of the first generation open no session: their process is one.
const PROCESS: [&str; 2] = ["x-request-id", "x-ray-serve-request-id"];

/// Longest header that names a session or a process, in bytes.
const LONGEST: usize = 256;

/// Who asks, as the node stack found out.
#[derive(Clone, Debug)]
pub(crate) struct Tenant(pub(crate) TenantId);

/// Who asks, and the open session the request belongs to, which the request keeps alive.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The owner of everything the request may touch.
    pub(crate) tenant: TenantId,
    /// The tenant's session: of `X-Twinkle-Session-Id`, else the one of the client's process.
    pub(crate) session: SessionId,
}

/// A JSON body; none at all is an empty object.
pub(crate) struct Json<T>(pub(crate) T);

impl Extracted for Tenant {}

impl Extracted for Caller {
    fn note(operation: &mut Operation) {
        let meaning = "The session that the request belongs to, from `create_session`.";
        operation.headers.push(Header { name: SESSION, meaning });
    }
}

impl<T: JsonSchema> Extracted for Json<T> {
    fn note(operation: &mut Operation) {
        operation.body = Body::Json { schema: SchemaOf::of::<T>(), or_protobuf: false };
    }
}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = TwinkleError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, TwinkleError> {
        Ok(Self(tenant(parts)?))
    }
}

impl FromRequestParts<TwinkleFront> for Caller {
    type Rejection = TwinkleError;

    async fn from_request_parts(parts: &mut Parts, front: &TwinkleFront) -> Result<Self, TwinkleError> {
        let tenant = tenant(parts)?;
        if let Some(session) = header(&parts.headers, SESSION)? {
            let session = SessionId::new(session);
            front.serve(&tenant, ServeRequest::Heartbeat(session.clone())).await?;
            return Ok(Self { tenant, session });
        }
        for name in PROCESS {
            if let Some(process) = header(&parts.headers, name)? {
                let session = SessionId::of_request(&tenant, process);
                front.keep_implicit(&tenant, &session).await?;
                return Ok(Self { tenant, session });
            }
        }
        Err(Error::invalid("the request belongs to no session")
            .hint("create one with `create_session` and send its id as `X-Twinkle-Session-Id`")
            .into())
    }
}

impl<T: DeserializeOwned + Send + 'static, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = TwinkleError;

    async fn from_request(request: Request, state: &S) -> Result<Self, TwinkleError> {
        let mut body =
            RawBody::from_request(request, state).await.map_err(|rejected| TwinkleError::Failed(rejected.0))?;
        if body.bytes.is_empty() {
            body.bytes = bytes::Bytes::from_static(b"{}");
        }
        Ok(Self(body.json().await?))
    }
}

fn tenant(parts: &Parts) -> Result<TenantId> {
    let tenant = parts.extensions.get::<TenantId>().cloned();
    tenant.ok_or_else(|| Error::new(ErrorCode::Unauthenticated, "the request has no tenant"))
}

/// A header that names something; an empty one is none.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str().map(str::trim) {
        Ok("") => Ok(None),
        Ok(text) if text.len() <= LONGEST => Ok(Some(text)),
        _ => Err(Error::invalid(format!("the header `{name}` is not a text of at most {LONGEST} bytes"))),
    }
}
