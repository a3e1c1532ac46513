//! One HTTP connection pool, one API key, and the rules of sending again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::answer::Answer;
use crate::error::{Error, Result};
use crate::request::Request;
use crate::retry::{Backoff, RetryPolicy};

/// How long an answer may be silent: longer than servers hold a question for a result.
const READ_LIMIT: Duration = Duration::from_mins(2);

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const TWINKLE_AUTHORIZATION: HeaderName = HeaderName::from_static("twinkle-authorization");
const DEPRECATION_NOTE: HeaderName = HeaderName::from_static("x-deprecation-note");

/// A cheap handle to the connection pool.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    /// For links to files, which carry their own permission: the key is not sent with them.
    keyless: Client,
    base_url: String,
    retry: RetryPolicy,
}

impl Http {
    /// A pool for `base_url`; a trailing slash is dropped, a path prefix is kept. `headers` go with every request.
    pub(crate) fn new(
        base_url: &str,
        api_key: &str,
        headers: &BTreeMap<String, String>,
        retry: RetryPolicy,
    ) -> Result<Self> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        if !base_url.starts_with("http://") && !base_url.starts_with("https://") {
            return Err(Error::InvalidArgument(format!("`{base_url}` is not an address like `http://127.0.0.1:8000`")));
        }
        let mut all = credentials(api_key)?;
        for (name, value) in headers {
            let header = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
            let (name, value) = header
                .ok_or_else(|| Error::InvalidArgument(format!("`{name}` is not a header with a printable value")))?;
            all.insert(name, value);
        }
        let build = |headers| {
            Client::builder()
                .default_headers(headers)
                .user_agent(concat!("twinkle-client/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(Duration::from_secs(10))
                .read_timeout(READ_LIMIT)
                // A redirection must not be followed to another host with the key.
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|source| Error::Connection { url: base_url.clone(), source })
        };
        let (client, keyless) = (build(all)?, build(HeaderMap::new())?);
        Ok(Self { inner: Arc::new(Inner { client, keyless, base_url, retry }) })
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(&self.inner.retry)
    }

    /// The address of a path.
    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.inner.base_url)
    }

    /// Opens a link to a file, without the key; `url` may be relative to the server.
    pub(crate) async fn open_link(&self, url: &str) -> Result<reqwest::Response> {
        let base = reqwest::Url::parse(&self.inner.base_url).ok();
        let absolute = base.and_then(|base| base.join(url).ok());
        let absolute = absolute.ok_or_else(|| Error::malformed(url, &"this is no address"))?;
        self.inner
            .keyless
            .get(absolute)
            .send()
            .await
            .map_err(|source| Error::Connection { url: url.to_owned(), source })
    }

    /// Sends once and leaves the body to the caller. Any status is an answer; only a failed connection is an error.
    async fn open(&self, request: &Request, idempotency_key: Option<&str>) -> Result<reqwest::Response> {
        let url = self.url(&request.path);
        let mut builder = self.inner.client.request(request.method.clone(), &url).timeout(request.limit);
        if let Some(content_type) = request.content_type {
            builder = builder.header(CONTENT_TYPE, content_type).body(request.body.clone());
        }
        if let Some(encoding) = request.content_encoding {
            builder = builder.header(CONTENT_ENCODING, encoding);
        }
        if let Some(media_type) = request.accept {
            builder = builder.header(ACCEPT, media_type);
        }
        if let Some((name, value)) = request.header {
            builder = builder.header(name, value);
        }
        if let Some(key) = idempotency_key {
            builder = builder.header("x-idempotency-key", key);
        }
        builder.send().await.map_err(|source| Error::Connection { url, source })
    }

    /// Sends once and reads the whole answer.
    pub(crate) async fn attempt(&self, request: &Request, idempotency_key: Option<&str>) -> Result<Answer> {
        let response = self.open(request, idempotency_key).await?;
        let answer = self.read(response, &request.path).await?;
        if let Some(note) = answer.header(DEPRECATION_NOTE) {
            warn!(note, path = request.path, "the server says that this is deprecated");
        }
        Ok(answer)
    }

    async fn read(&self, response: reqwest::Response, path: &str) -> Result<Answer> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.map_err(|source| Error::Connection { url: self.url(path), source })?;
        Ok(Answer { status, headers, body })
    }

    /// Sends until there is an answer that another try would not change; refusals are errors.
    pub(crate) async fn send(&self, request: &Request) -> Result<Answer> {
        self.send_until(request, Answer::is_success).await
    }

    /// [`Self::send`] where `is_wanted` says which answers are no refusals.
    pub(crate) async fn send_until(&self, request: &Request, is_wanted: fn(&Answer) -> bool) -> Result<Answer> {
        let key = idempotency_key();
        let mut backoff = self.backoff();
        loop {
            let (error, pause) = match self.attempt(request, Some(&key)).await {
                Ok(answer) if is_wanted(&answer) => return Ok(answer),
                Ok(answer) => (answer.rejection(), backoff.after(&answer)),
                Err(error) => (error, backoff.next(None)),
            };
            let Some(pause) = pause else { return Err(error) };
            warn!(%error, path = request.path, ?pause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends until the answer is a success, and leaves its body to the caller.
    pub(crate) async fn send_open(&self, request: &Request) -> Result<reqwest::Response> {
        let key = idempotency_key();
        let mut backoff = self.backoff();
        loop {
            let (error, pause) = match self.open(request, Some(&key)).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let answer = self.read(response, &request.path).await?;
                    (answer.rejection(), backoff.after(&answer))
                }
                Err(error) => (error, backoff.next(None)),
            };
            let Some(pause) = pause else { return Err(error) };
            warn!(%error, path = request.path, ?pause, "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Posts JSON and reads JSON, with retries.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.send(&Request::json(path, body)?).await?.decode(path)
    }

    /// Gets JSON, with retries.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: String) -> Result<T> {
        let request = Request::get(path);
        self.send(&request).await?.decode(request.path())
    }
}

/// One for every request, the same for each time it is sent.
pub(crate) fn idempotency_key() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The key in every header that some server looks for it in: Tinker's own, Twinkle's, and that of everybody else.
fn credentials(api_key: &str) -> Result<HeaderMap> {
    let unusable = || Error::InvalidArgument("the API key is empty or not printable".to_owned());
    let key = api_key.trim();
    if key.is_empty() {
        return Err(unusable());
    }
    let value = |text: &str| {
        let mut value = HeaderValue::from_str(text).map_err(|_| unusable())?;
        value.set_sensitive(true);
        Ok::<_, Error>(value)
    };
    let bearer = value(&format!("Bearer {key}"))?;
    Ok(HeaderMap::from_iter([
        (X_API_KEY, value(key)?),
        (TWINKLE_AUTHORIZATION, bearer.clone()),
        (AUTHORIZATION, bearer),
    ]))
}
