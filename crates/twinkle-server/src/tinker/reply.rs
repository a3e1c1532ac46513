//! Answers as bytes. Every one has a `Content-Length`.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::tinker::PROTOBUF;

use crate::error_response::ErrorResponse;

/// What a handler gives back.
pub(super) type Answer = std::result::Result<Response, ErrorResponse>;

/// 200 with a JSON body.
pub(super) fn ok(body: &impl Serialize) -> Answer {
    Ok(json(StatusCode::OK, body)?)
}

/// Any status with a JSON body.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Result<Response> {
    let bytes = serde_json::to_vec(body).map_err(|error| Error::internal(format!("an answer is not JSON: {error}")))?;
    Ok(whole(status, "application/json", bytes.into()))
}

/// 200 with a protobuf message.
pub(super) fn protobuf(message: &impl prost::Message) -> Response {
    whole(StatusCode::OK, PROTOBUF, message.encode_to_vec().into())
}

/// 204: done, nothing to tell.
pub(super) fn done() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn whole(status: StatusCode, media_type: &'static str, bytes: Bytes) -> Response {
    let length = HeaderValue::from(bytes.len());
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}
