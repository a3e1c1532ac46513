//! What a handler works with.

use axum::extract::{FromRequest, FromRequestParts, Request};
use bytes::Bytes;
use http::request::Parts;
use serde::de::DeserializeOwned;
use twinkle_core::call::{Call, Operation, Reply, ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::TenantId;

use super::answer::OpenAiError;
use super::fields::Fields;
use crate::front::FrontContext;
use crate::openapi::{Body as RequestBody, Extracted, Operation as RouteOperation};
use crate::tinker::body::{RawBody, off_runtime};
use crate::tinker::unexpected;

/// The node as this front sees it; a cheap handle.
#[derive(Clone)]
pub(crate) struct OpenAiFront {
    /// The node.
    pub(super) context: FrontContext,
    /// When it started, in seconds since 1970.
    pub(super) started: i64,
}

impl OpenAiFront {
    /// A front of this node.
    pub(crate) fn new(context: &FrontContext) -> Self {
        Self { context: context.clone(), started: now() }
    }

    /// Asks the `server` component.
    pub(super) async fn serve(&self, tenant: &TenantId, request: ServeRequest) -> Result<ServeOutcome> {
        let call = Call { tenant: tenant.clone(), operation: Operation::Serve(request) };
        match self.context.server.ask(call).await? {
            Reply::Serve(outcome) => Ok(outcome),
            other => Err(unexpected("the server component", &other)),
        }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Who asks, as the node stack found out.
pub(super) struct Tenant(pub(super) TenantId);

impl Extracted for Tenant {}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = OpenAiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, OpenAiError> {
        let tenant = parts.extensions.get::<TenantId>().cloned();
        let missing = || Error::new(ErrorCode::Unauthenticated, "the request has no tenant").into();
        tenant.map(Self).ok_or_else(missing)
    }
}

/// A request's body, as bytes.
pub(super) struct Body(pub(super) Bytes);

/// Of what form it is, the route says.
impl Extracted for Body {
    fn note(operation: &mut RouteOperation) {
        operation.body = RequestBody::Unnamed;
    }
}

impl<S: Sync> FromRequest<S> for Body {
    type Rejection = OpenAiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, OpenAiError> {
        let body = RawBody::from_request(request, state).await.map_err(|refused| OpenAiError::from(refused.0))?;
        Ok(Self(body.bytes))
    }
}

impl Body {
    /// Reads a request of which these fields are known, on a blocking thread when it is large.
    pub(super) async fn read<T>(self, fields: &'static Fields) -> Result<T, OpenAiError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        off_runtime(self.0.len(), move || fields.read(&self.0)).await?
    }
}
