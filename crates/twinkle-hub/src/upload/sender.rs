//! Requests of an upload: with the credential for the hub, without it for the storage behind the hub.

use futures::stream;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Body, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use twinkle_core::config::Hub;
use twinkle_core::{Error, Result};

use super::Progress;
use super::files::LocalFile;
use crate::download::{Patience, with_causes};
use crate::hubs::secret;

/// Attempts of one request; only answers that may be different next time are asked for again.
const ATTEMPTS: u32 = 4;

/// The largest answer that is read.
const LARGEST_ANSWER: usize = 4 << 20;

/// Bytes of a file that are sent at once.
const CHUNK: usize = 256 << 10;

/// What a hub answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// `Null` when it is not JSON.
    pub(super) body: Value,
}

/// Sends the requests of one upload.
pub(super) struct Sender {
    hub: Hub,
    client: reqwest::Client,
    credential: HeaderMap,
    patience: Patience,
    progress: Progress,
}

impl Sender {
    pub(super) fn new(hub: Hub, token: &str, patience: Patience, progress: Progress) -> Result<Self> {
        let mut credential = HeaderMap::new();
        credential.insert(AUTHORIZATION, secret(&format!("Bearer {token}"), "hub_token")?);
        if hub == Hub::ModelScope {
            // Some of the hub's routes read the one, some the other.
            credential.insert(COOKIE, secret(&format!("m_session_id={token}"), "hub_token")?);
        }
        let client = reqwest::Client::builder()
            .user_agent(concat!("twinkle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(patience.silence)
            .read_timeout(patience.silence)
            // A redirected upload would carry its body, and perhaps its credential, somewhere else.
            .redirect(Policy::none())
            .build()
            .map_err(|error| Error::internal(format!("no HTTP client can be made: {}", with_causes(&error))))?;
        Ok(Self { hub, client, credential, patience, progress })
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Asks the hub for a resource.
    pub(super) async fn get(&self, url: &Url) -> Result<Answer> {
        self.ask(|| self.client.get(url.clone()).headers(self.credential.clone())).await
    }

    /// Posts JSON to the hub.
    pub(super) async fn post(&self, url: &Url, media_type: &'static str, body: &Value) -> Result<Answer> {
        self.post_text(url, media_type, body.to_string()).await
    }

    /// Posts a text to the hub.
    pub(super) async fn post_text(&self, url: &Url, media_type: &'static str, body: String) -> Result<Answer> {
        self.ask(|| {
            let request = self.client.post(url.clone()).headers(self.credential.clone());
            request.header(CONTENT_TYPE, media_type).body(body.clone())
        })
        .await
    }

    /// Puts a file where the hub said, with the headers it said; the hub's own address gets the credential too.
    pub(super) async fn put(&self, url: &Url, headers: &HeaderMap, file: &LocalFile, endpoint: &Url) -> Result<()> {
        let is_hub = url.origin() == endpoint.origin();
        let mut attempt = 1;
        loop {
            let counted = Progress::default();
            let body = self.body(file, counted.clone()).await?;
            let mut request = self.client.put(url.clone()).headers(headers.clone()).header(CONTENT_LENGTH, file.size);
            if is_hub {
                request = request.headers(self.credential.clone());
            }
            let outcome = request.body(body).send().await;
            let why = match outcome {
                Ok(answer) if answer.status().is_success() => {
                    // A hub that knows the bytes may accept them before it has read them.
                    self.progress.take_back(counted.counted());
                    self.progress.add(file.size);
                    return Ok(());
                }
                Ok(answer) if !is_passing(answer.status()) => {
                    return Err(self.refused(&format!("`{}`", file.name), answer.status(), &read(answer).await));
                }
                Ok(answer) => format!("status {}", answer.status().as_u16()),
                Err(error) => with_causes(&error.without_url()),
            };
            self.progress.take_back(counted.counted());
            self.wait(&mut attempt, &why).await?;
        }
    }

    /// The file's bytes, counted as they go.
    async fn body(&self, file: &LocalFile, counted: Progress) -> Result<Body> {
        let name = &file.name;
        let opened = tokio::fs::File::open(&file.path).await;
        let opened = opened.map_err(|error| Error::internal(format!("`{name}` could not be read: {error}")))?;
        let all = self.progress.clone();
        let chunks = stream::try_unfold(opened, move |mut opened| {
            let (all, counted) = (all.clone(), counted.clone());
            async move {
                let mut chunk = vec![0; CHUNK];
                let read = opened.read(&mut chunk).await?;
                chunk.truncate(read);
                all.add(read as u64);
                counted.add(read as u64);
                Ok::<_, std::io::Error>((read > 0).then_some((chunk, opened)))
            }
        });
        Ok(Body::wrap_stream(chunks))
    }

    async fn ask(&self, request: impl Fn() -> RequestBuilder) -> Result<Answer> {
        let mut attempt = 1;
        loop {
            let why = match request().send().await {
                Ok(answer) if is_passing(answer.status()) => format!("status {}", answer.status().as_u16()),
                Ok(answer) => return Ok(Answer { status: answer.status(), body: read(answer).await }),
                Err(error) => with_causes(&error.without_url()),
            };
            self.wait(&mut attempt, &why).await?;
        }
    }

    /// Waits before the next attempt, or says that there is none.
    async fn wait(&self, attempt: &mut u32, why: &str) -> Result<()> {
        if *attempt >= ATTEMPTS {
            let hub = self.hub.name();
            return Err(Error::internal(format!("{hub} did not take the upload after {ATTEMPTS} attempts: {why}")));
        }
        let wait = self.patience.first_wait * 2_u32.saturating_pow(*attempt - 1);
        *attempt += 1;
        tokio::time::sleep(wait.min(self.patience.longest_wait)).await;
        Ok(())
    }

    /// What to tell about a refusal.
    pub(super) fn refused(&self, what: &str, status: StatusCode, body: &Value) -> Error {
        let reason = ["error", "Message", "message"].iter().find_map(|key| body.get(*key)?.as_str());
        let reason = reason.map_or_else(
            || status.canonical_reason().unwrap_or("refused").to_lowercase(),
            |reason| reason.chars().filter(|letter| !letter.is_control()).take(300).collect::<String>(),
        );
        let reason = reason.trim().trim_end_matches('.');
        let error = Error::invalid(format!("{} refused {what}: {}: {reason}", self.hub.name(), status.as_u16()));
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return error.hint("give a `hub_token` that may write to the repository");
        }
        error
    }
}

/// The address and the headers of an upload as a Git LFS server gives them.
pub(super) fn action(object: &Value, action: &str) -> Result<Option<(Url, HeaderMap)>> {
    let Some(action) = object.get("actions").and_then(|actions| actions.get(action)) else { return Ok(None) };
    let href = action.get("href").and_then(Value::as_str).unwrap_or_default();
    let url = Url::parse(href).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(|| Error::invalid("the hub named no address for a large file"))?;
    let mut headers = HeaderMap::new();
    for (name, value) in action.get("header").and_then(Value::as_object).into_iter().flatten() {
        let header =
            HeaderName::try_from(name).ok().zip(value.as_str().and_then(|text| HeaderValue::try_from(text).ok()));
        if let Some((name, value)) = header.filter(|(name, _)| *name != CONTENT_LENGTH) {
            headers.insert(name, value);
        }
    }
    Ok(Some((url, headers)))
}

/// Whether trying again may help.
fn is_passing(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) || status.is_server_error()
}

async fn read(mut answer: Response) -> Value {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Value::Null;
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).unwrap_or_default()
}
