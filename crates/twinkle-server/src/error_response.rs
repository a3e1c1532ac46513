//! The one place where an [`Error`] becomes an HTTP response.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;
use twinkle_core::error::{Error, ErrorCode};

/// Milliseconds until trying again makes sense; the Tinker SDK prefers it to `retry-after`.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// The JSON body of every failed request.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(crate) struct ErrorBody<'a> {
    /// Message and hint in one text: the Tinker SDK shows this field to its user.
    detail: String,
    /// The stable code, for programs.
    code: ErrorCode,
    /// The id to quote when reporting a defect.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

/// An error on its way to the client.
///
/// The body always has a `Content-Length`: the Tinker SDK takes a 400 without one for a proxy's artefact and retries it.
#[derive(Debug)]
pub struct ErrorResponse(pub Error);

impl From<Error> for ErrorResponse {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        respond(&self.0, None)
    }
}

/// The response for `error`, naming the request if `request_id` is known.
pub(crate) fn respond(error: &Error, request_id: Option<&str>) -> Response {
    let body = ErrorBody { detail: error.to_string(), code: error.code, request_id };
    let bytes = serde_json::to_vec(&body).unwrap_or_else(|_| br#"{"detail":"internal error"}"#.to_vec());
    let length = HeaderValue::from(bytes.len());
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status(error.code);
    // For a layer that tells it in the form of another protocol.
    response.extensions_mut().insert(error.clone());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, length);
    if let Some(milliseconds) = error.retry_after_ms {
        headers.insert(RETRY_AFTER, HeaderValue::from(milliseconds.div_ceil(1000).max(1)));
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(milliseconds.max(1)));
    }
    response
}

/// The HTTP status of an error code.
///
/// A permanent mistake of the user is never 408, 409, 429 or 5xx: clients retry those for minutes.
#[must_use]
pub const fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::Unsupported | ErrorCode::Conflict | ErrorCode::LimitReached => {
            StatusCode::BAD_REQUEST
        }
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Gone => StatusCode::GONE,
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Overloaded | ErrorCode::Draining | ErrorCode::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::ResourceExhausted => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_error_carries_its_code_its_hint_and_a_length() {
        let error = Error::invalid("unknown loss `cross_entrpy`").hint("did you mean `cross_entropy`?");
        let response = ErrorResponse(error).into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let length: usize = response.headers()[CONTENT_LENGTH].to_str().unwrap().parse().unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), length);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], "invalid_argument");
        assert_eq!(body["detail"], "unknown loss `cross_entrpy` (hint: did you mean `cross_entropy`?)");
    }

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds() {
        let error = Error::new(ErrorCode::QuotaExceeded, "too fast").retry_after(Duration::from_millis(1_200));
        let response = respond(&error, None);
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[RETRY_AFTER_MS], "1200");
    }

    #[test]
    fn no_permanent_mistake_has_a_status_that_clients_retry() {
        for code in [
            ErrorCode::InvalidArgument,
            ErrorCode::Unsupported,
            ErrorCode::Unauthenticated,
            ErrorCode::NotFound,
            ErrorCode::Gone,
            ErrorCode::Conflict,
            ErrorCode::TooLarge,
            ErrorCode::LimitReached,
        ] {
            assert!(code.is_users_fault());
            let number = status(code).as_u16();
            assert!(number < 500 && ![408, 409, 429].contains(&number), "{code:?} answers {number}");
        }
    }
}
