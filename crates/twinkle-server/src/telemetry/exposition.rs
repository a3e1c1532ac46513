//! `GET /metrics`: the Prometheus text format.

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use prometheus::{Encoder, TEXT_FORMAT, TextEncoder};
use twinkle_core::error::Error;

use super::Telemetry;
use crate::error_response::ErrorResponse;

/// `GET /metrics`: everything recorded so far in this process.
pub(crate) async fn metrics() -> Response {
    let Some(telemetry) = Telemetry::running() else {
        return ErrorResponse(Error::internal("nothing is recorded in this process")).into_response();
    };
    let mut text = Vec::with_capacity(64 << 10);
    match TextEncoder::new().encode(&telemetry.registry().gather(), &mut text) {
        Ok(()) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            ErrorResponse(Error::internal(format!("the metrics could not be written: {error}"))).into_response()
        }
    }
}
