//! Answers and errors in the form of the `OpenAI` protocol.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use schemars::JsonSchema;
use serde::Serialize;
use twinkle_core::error::{Error, ErrorCode};

use super::ROOT;
use crate::error_response::{ErrorResponse, status};

/// What a handler gives back.
pub(super) type Outcome = Result<Response, OpenAiError>;

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) struct OpenAiError {
    error: Error,
    /// The field that is wrong.
    param: Option<String>,
    /// A code that clients know, where there is one.
    code: Option<&'static str>,
}

/// The body of every failed request, and of the last event of a failed stream.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OpenAiError")]
pub(super) struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OpenAiErrorObject")]
struct ErrorObject<'a> {
    /// Message and hint in one text.
    message: String,
    /// The protocol's own word for the kind of failure.
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    /// The protocol's code, else this server's own stable one.
    code: Option<serde_json::Value>,
}

impl From<Error> for OpenAiError {
    fn from(error: Error) -> Self {
        let code = matches!(error.code, ErrorCode::QuotaExceeded).then_some("rate_limit_exceeded");
        Self { error, param: None, code }
    }
}

impl OpenAiError {
    /// An error about this field.
    pub(super) fn of(param: &str, error: Error) -> Self {
        Self { param: Some(param.to_owned()), ..Self::from(error) }
    }

    /// No model of that name: 404, as clients expect it.
    pub(super) fn unknown_model(error: Error) -> Self {
        let error = Error { code: ErrorCode::NotFound, ..error };
        Self { error, param: Some("model".to_owned()), code: Some("model_not_found") }
    }

    /// The body, as bytes of JSON.
    pub(super) fn body(&self) -> Bytes {
        let own = serde_json::to_value(self.error.code).ok();
        let object = ErrorObject {
            message: self.error.to_string(),
            kind: kind(self.error.code),
            param: self.param.as_deref(),
            code: self.code.map(Into::into).or(own),
        };
        serde_json::to_vec(&ErrorBody { error: object }).unwrap_or_default().into()
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        let body = self.body();
        let mut response = ErrorResponse(self.error).into_response();
        set_body(&mut response, body);
        // It has its form already.
        response.extensions_mut().remove::<Error>();
        response
    }
}

/// The protocol's word for a kind of failure.
fn kind(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Unauthenticated => "authentication_error",
        ErrorCode::QuotaExceeded => "rate_limit_error",
        _ if status(code).is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

/// Whether errors of this path are told in the form of this protocol.
pub(crate) fn is_openai_path(path: &str) -> bool {
    let below_root = path.strip_prefix(ROOT).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below_root || path.ends_with("/chat/completions") || path.ends_with("/completions")
}

/// A refusal of one of the node's layers, in the form of this protocol.
pub(crate) fn reshaped(mut response: Response, error: Error) -> Response {
    let body = OpenAiError::from(error).body();
    set_body(&mut response, body);
    response
}

fn set_body(response: &mut Response, body: Bytes) {
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = Body::from(body);
}

/// How many tokens a request took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[expect(clippy::struct_field_names, reason = "the protocol's names")]
pub(super) struct Usage {
    prompt_tokens: usize,
    /// Of all choices, with the tokens that ended them.
    completion_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    pub(super) const fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// The counts of a piece of a stream: `null` in all but the last.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub(super) struct PieceUsage(pub(super) Option<Usage>);

/// 200 with a JSON body.
pub(super) fn ok(body: &impl Serialize) -> Outcome {
    let bytes = serde_json::to_vec(body).map_err(|error| Error::internal(format!("an answer is not JSON: {error}")))?;
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    set_body(&mut response, bytes.into());
    Ok(response)
}

/// An id as the protocol writes them: `<prefix>-<24 hex digits>`.
pub(super) fn fresh_id(prefix: &str) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}{}", random.get(..24).unwrap_or(&random))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};

    use super::*;

    fn body(error: &OpenAiError) -> Value {
        serde_json::from_slice(&error.body()).unwrap()
    }

    #[test]
    fn an_error_has_the_protocols_four_fields() {
        let error = OpenAiError::of("n", Error::invalid("`n` is 0").hint("ask for one"));
        let expected = json!({"error": {
            "message": "`n` is 0 (hint: ask for one)", "type": "invalid_request_error", "param": "n",
            "code": "invalid_argument"}});
        assert_eq!(body(&error), expected);
        let error = OpenAiError::unknown_model(Error::unsupported("no"));
        assert_eq!(body(&error)["error"]["code"], "model_not_found");
        let error = OpenAiError::from(Error::new(ErrorCode::QuotaExceeded, "slow down"));
        assert_eq!(body(&error)["error"]["type"], "rate_limit_error");
        let error = OpenAiError::from(Error::new(ErrorCode::Overloaded, "full"));
        assert_eq!(body(&error)["error"]["type"], "server_error");
    }

    #[test]
    fn an_unknown_model_is_404() {
        let response = OpenAiError::unknown_model(Error::unsupported("no")).into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn only_paths_of_this_protocol_have_its_errors() {
        for path in ["/v1", "/v1/models", "/v1/x", "/api/v1/chat/completions", "/api/v1/completions"] {
            assert!(is_openai_path(path), "{path}");
        }
        for path in ["/api/v1/create_model", "/v12/models", "/", "/api/v1/twinkle/sample"] {
            assert!(!is_openai_path(path), "{path}");
        }
    }
}
