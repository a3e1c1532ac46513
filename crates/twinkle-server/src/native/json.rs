//! A JSON body whose errors are answered like every other error.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use twinkle_core::error::{Error, ErrorCode};

use crate::error_response::ErrorResponse;
use crate::openapi::{Body, Extracted, Operation, SchemaOf};

/// A JSON request body. Unlike axum's own, it does not ask for a content type: `curl -d` works.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: JsonSchema> Extracted for Json<T> {
    fn note(operation: &mut Operation) {
        operation.body = Body::Json { schema: SchemaOf::of::<T>(), or_protobuf: false };
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ErrorResponse;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let too_large = rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE;
            let code = if too_large { ErrorCode::TooLarge } else { ErrorCode::InvalidArgument };
            Error::new(code, format!("the request body could not be read: {}", rejection.body_text()))
        })?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid(format!("the request body is not what this route takes: {error}")))?;
        Ok(Self(value))
    }
}
