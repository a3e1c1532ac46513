//! One HTTP connection pool, one API key, and the rules of sending again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;
use twinkle_core::wire::tinker::PROTOBUF;

use crate::error::{Error, Result};
use crate::retry::{self, Backoff, RetryPolicy};

/// How long one attempt may take unless said otherwise.
const ATTEMPT_LIMIT: Duration = Duration::from_mins(1);
/// Longest error text that is shown.
const MESSAGE_LIMIT: usize = 2000;

/// A cheap handle to the connection pool.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    base_url: String,
    retry: RetryPolicy,
}

/// One request, to be sent as often as needed.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: Method,
    /// Below the base URL, with the leading slash.
    path: String,
    content_type: Option<&'static str>,
    body: Bytes,
    accept: Option<&'static str>,
    limit: Duration,
}

/// An answer of any status.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Request {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        let (path, body) = (path.into(), Bytes::new());
        Self { method: Method::GET, path, content_type: None, body, accept: None, limit: ATTEMPT_LIMIT }
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    /// The same request by PUT.
    pub(crate) fn put(self) -> Self {
        Self { method: Method::PUT, ..self }
    }

    pub(crate) fn json(path: impl Into<String>, body: &impl Serialize) -> Result<Self> {
        let path = path.into();
        let body = serde_json::to_vec(body).map_err(|error| Error::InvalidArgument(error.to_string()))?;
        Ok(Self { method: Method::POST, content_type: Some("application/json"), body: body.into(), ..Self::get(path) })
    }

    pub(crate) fn protobuf(path: impl Into<String>, message: &impl prost::Message) -> Self {
        let body = message.encode_to_vec().into();
        Self { method: Method::POST, content_type: Some(PROTOBUF), body, ..Self::get(path) }
    }

    pub(crate) fn accepting(self, media_type: &'static str) -> Self {
        Self { accept: Some(media_type), ..self }
    }

    pub(crate) fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(crate) fn is_protobuf(&self) -> bool {
        let content_type = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        content_type.is_some_and(|value| value.contains(PROTOBUF))
    }

    /// The JSON body.
    pub(crate) fn decode<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| Error::malformed(path, &error))
    }

    /// The refusal as an error, in the server's words.
    pub(crate) fn rejection(&self) -> Error {
        let text = String::from_utf8_lossy(&self.body);
        let detail = serde_json::from_slice::<serde_json::Value>(&self.body).ok();
        let detail = detail.as_ref().and_then(|body| body["detail"].as_str().or(body["error"].as_str()));
        let message = detail.unwrap_or(&text).chars().take(MESSAGE_LIMIT).collect();
        Error::Rejected { status: self.status, message }
    }
}

impl Http {
    /// A pool for `base_url`; a trailing slash is dropped, a path prefix is kept.
    pub(crate) fn new(base_url: &str, api_key: &str, retry: RetryPolicy) -> Result<Self> {
        let mut key = HeaderValue::from_str(api_key)
            .ok()
            .filter(|key| !key.is_empty())
            .ok_or_else(|| Error::InvalidArgument("the API key is empty or not printable".to_owned()))?;
        key.set_sensitive(true);
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-api-key"), key)]);
        let base_url = base_url.trim_end_matches('/').to_owned();
        if !base_url.starts_with("http://") && !base_url.starts_with("https://") {
            return Err(Error::InvalidArgument(format!("`{base_url}` is not an address like `http://127.0.0.1:8000`")));
        }
        let client = Client::builder()
            .default_headers(headers)
            .user_agent(concat!("twinkle-client/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            // A refusal must not be followed to another host with the key.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|source| Error::Connection { url: base_url.clone(), source })?;
        Ok(Self { inner: Arc::new(Inner { client, base_url, retry }) })
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(&self.inner.retry)
    }

    /// Sends once. Any status is an answer; only a failed connection is an error.
    pub(crate) async fn attempt(&self, request: &Request, idempotency_key: Option<&str>) -> Result<Answer> {
        let url = format!("{}{}", self.inner.base_url, request.path);
        let mut builder = self.inner.client.request(request.method.clone(), &url).timeout(request.limit);
        if let Some(content_type) = request.content_type {
            builder = builder.header(CONTENT_TYPE, content_type).body(request.body.clone());
        }
        if let Some(media_type) = request.accept {
            builder = builder.header(ACCEPT, media_type);
        }
        if let Some(key) = idempotency_key {
            builder = builder.header("x-idempotency-key", key);
        }
        let failed = |source| Error::Connection { url: url.clone(), source };
        let response = builder.send().await.map_err(failed)?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.map_err(failed)?;
        Ok(Answer { status, headers, body })
    }

    /// Sends until there is an answer that another try would not change; refusals are errors.
    pub(crate) async fn send(&self, request: &Request) -> Result<Answer> {
        let key = uuid::Uuid::new_v4().to_string();
        let mut backoff = self.backoff();
        loop {
            let (error, wish) = match self.attempt(request, Some(&key)).await {
                Ok(answer) if answer.is_success() => return Ok(answer),
                Ok(answer) if !retry::is_retryable(answer.status, &answer.headers) => return Err(answer.rejection()),
                Ok(answer) => (answer.rejection(), retry::wish(&answer.headers)),
                Err(error) => (error, None),
            };
            let Some(pause) = backoff.next(wish) else { return Err(error) };
            warn!(%error, path = request.path, ?pause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Posts JSON and reads JSON, with retries.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.send(&Request::json(path, body)?).await?.decode(path)
    }
}
