//! Answers of the native protocol.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use twinkle_core::error::{Error, ErrorCode};

use crate::error_response::{ErrorResponse, respond};

/// What a handler gives back.
pub(crate) type Answer = Result<Response, TwinkleError>;

/// Why a native request has no answer.
#[derive(Debug)]
pub(crate) enum TwinkleError {
    /// Any failure. Its status is never 410, which the client takes for the end of an iterator.
    Failed(Error),
    /// An iterator has no further element: the only 410.
    Exhausted,
}

impl From<Error> for TwinkleError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl IntoResponse for TwinkleError {
    fn into_response(self) -> Response {
        match self {
            Self::Exhausted => respond(&Error::new(ErrorCode::Gone, "Iterator exhausted"), None),
            Self::Failed(error) if error.code == ErrorCode::Gone => {
                ErrorResponse(Error { code: ErrorCode::NotFound, ..error }).into_response()
            }
            Self::Failed(error) => {
                // Nobody repeats native requests by status, so a conflict may be called one.
                let conflict = error.code == ErrorCode::Conflict;
                let mut response = ErrorResponse(error).into_response();
                if conflict {
                    *response.status_mut() = StatusCode::CONFLICT;
                }
                response
            }
        }
    }
}

/// 200 with a JSON body.
pub(crate) fn ok(body: &impl Serialize) -> Answer {
    json(StatusCode::OK, body)
}

/// 200: done, nothing to tell. Clients of 0.1 read `result` of every answer, later ones nothing.
pub(crate) fn null() -> Answer {
    ok(&serde_json::json!({ "result": null }))
}

/// Any status with a JSON body. Numbers that JSON does not have become `null`.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(body).map_err(|error| Error::internal(format!("an answer is not JSON: {error}")))?;
    let length = HeaderValue::from(bytes.len());
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exhausted_iterator_is_410() {
        let gone = TwinkleError::from(Error::new(ErrorCode::Gone, "session `s` is finished"));
        assert_eq!(gone.into_response().status(), StatusCode::NOT_FOUND);
        assert_eq!(TwinkleError::Exhausted.into_response().status(), StatusCode::GONE);
        let conflict = TwinkleError::from(Error::new(ErrorCode::Conflict, "held"));
        assert_eq!(conflict.into_response().status(), StatusCode::CONFLICT);
    }

    #[test]
    fn a_number_that_json_lacks_is_null() {
        assert_eq!(serde_json::to_string(&[f64::NAN, 1.0]).unwrap(), "[null,1.0]");
    }
}
