//! Requests to a hub: redirects, proxies and small answers.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use tracing::warn;
use twinkle_core::{Error, Result};

use super::attempts::{Attempts, Patience};
use super::failure::{Failure, with_causes};

/// The largest answer that is read into memory: a list of files.
const LARGEST_ANSWER: usize = 32 << 20;

/// The most of a refusal's text that is shown.
const LONGEST_REASON: usize = 300;

/// Redirects that are followed.
const MOST_REDIRECTS: usize = 10;

/// A pool of connections, through the proxies the environment names.
#[derive(Clone)]
pub(crate) struct Client {
    following: reqwest::Client,
    staying: reqwest::Client,
    patience: Patience,
}

/// What a single attempt ended with, if not with an answer.
pub(crate) enum Setback {
    /// Trying again may help.
    Passing { why: String, retry_after: Option<Duration> },
    /// It will not.
    Final(Failure),
}

impl Client {
    pub(crate) fn new(patience: Patience) -> Result<Self> {
        // A credential never follows a redirect to another host: reqwest drops `Authorization` and `Cookie` there.
        Ok(Self {
            following: client(patience, Policy::custom(follow))?,
            staying: client(patience, Policy::none())?,
            patience,
        })
    }

    pub(crate) fn patience(&self) -> Patience {
        self.patience
    }

    /// A JSON answer.
    pub(crate) async fn json<T: DeserializeOwned>(&self, url: &Url, headers: &HeaderMap) -> Result<T, Failure> {
        let mut attempts = Attempts::new(self.patience);
        loop {
            let setback = match self.try_json(url, headers).await {
                Ok(answer) => return Ok(answer),
                Err(setback) => setback,
            };
            wait(&mut attempts, url, false, setback).await?;
        }
    }

    async fn try_json<T: DeserializeOwned>(&self, url: &Url, headers: &HeaderMap) -> Result<T, Setback> {
        let mut answer = self.get(url, headers, 0).await?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| broken(&error))? {
            if body.len() + chunk.len() > LARGEST_ANSWER {
                let text = format!("`{url}` answered with more than {} MiB", LARGEST_ANSWER >> 20);
                return Err(Setback::Final(Error::invalid(text).into()));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|error| {
            let text = format!("`{url}` did not answer as a model hub does: {error}");
            Setback::Final(
                Error::invalid(text).hint("check the endpoint, and that no proxy answers in its place").into(),
            )
        })
    }

    /// The headers of a file, as the hub itself gives them: redirects are not followed.
    pub(crate) async fn headers(&self, url: &Url, headers: &HeaderMap) -> Result<HeaderMap, Failure> {
        let mut attempts = Attempts::new(self.patience);
        loop {
            let request = self.staying.request(Method::HEAD, url.clone()).headers(headers.clone());
            let setback = match request.header(ACCEPT_ENCODING, "identity").send().await {
                Ok(answer) if answer.status().is_redirection() => return Ok(answer.headers().clone()),
                Ok(answer) => match accepted(answer).await {
                    Ok(answer) => return Ok(answer.headers().clone()),
                    Err(setback) => setback,
                },
                Err(error) => broken(&error),
            };
            wait(&mut attempts, url, false, setback).await?;
        }
    }

    /// One attempt to get a resource from a byte on. The answer is a success.
    pub(crate) async fn get(&self, url: &Url, headers: &HeaderMap, from: u64) -> Result<Response, Setback> {
        let mut request = self.following.get(url.clone()).headers(headers.clone()).header(ACCEPT_ENCODING, "identity");
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        accepted(request.send().await.map_err(|error| broken(&error))?).await
    }
}

/// Waits before the next attempt, or says that there is none.
pub(crate) async fn wait(
    attempts: &mut Attempts,
    url: &Url,
    progressed: bool,
    setback: Setback,
) -> Result<(), Failure> {
    let (why, retry_after) = match setback {
        Setback::Passing { why, retry_after } => (why, retry_after),
        Setback::Final(failure) => return Err(failure),
    };
    match attempts.failed(progressed, retry_after) {
        Some(wait) => {
            warn!(host = url.host_str(), why, wait_s = wait.as_secs_f64(), "the hub is tried again");
            tokio::time::sleep(wait).await;
            Ok(())
        }
        None => Err(Failure::Unreachable(match retry_after {
            Some(wait) => format!("{why}, and it asks to come back in {} s", wait.as_secs()),
            None => why,
        })),
    }
}

/// The value of a header, if it is text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The content of an entity tag: `abc` of `"abc"` and `W/"abc"`.
pub(crate) fn etag(headers: &HeaderMap, name: &str) -> Option<String> {
    let tag = header(headers, name)?;
    Some(tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"').to_owned())
}

fn client(patience: Patience, redirects: Policy) -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .user_agent(concat!("twinkle/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(patience.silence)
        .read_timeout(patience.silence)
        .redirect(redirects)
        .build()
        .map_err(|error| Error::internal(format!("no HTTP client can be made: {}", with_causes(&error))))
}

fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let was_encrypted = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > MOST_REDIRECTS {
        attempt.error("too many redirects")
    } else if was_encrypted && attempt.url().scheme() != "https" {
        attempt.error("the hub redirects from https to http")
    } else {
        attempt.follow()
    }
}

/// The answer if it is a success.
async fn accepted(answer: Response) -> Result<Response, Setback> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let passing = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    );
    let retry_after = retry_after(answer.headers());
    let refused = Failure::Refused { status, reason: reason(answer).await };
    Err(if passing { Setback::Passing { why: refused.in_words(), retry_after } } else { Setback::Final(refused) })
}

fn broken(error: &reqwest::Error) -> Setback {
    let why = with_causes(error);
    if error.is_redirect() || error.is_builder() {
        return Setback::Final(Failure::Unreachable(why));
    }
    Setback::Passing { why, retry_after: None }
}

/// What the hub says about its refusal: a header of Hugging Face, or the message in `ModelScope`'s JSON.
async fn reason(mut answer: Response) -> Option<String> {
    if let Some(message) = header(answer.headers(), "x-error-message") {
        return shortened(message);
    }
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > 64 << 10 {
            return None;
        }
    }
    let body: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let message = ["Message", "message", "error"].iter().find_map(|key| body.get(*key)?.as_str())?;
    shortened(message)
}

/// The beginning of a foreign text, on one line.
fn shortened(text: &str) -> Option<String> {
    let text: String =
        text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(LONGEST_REASON).collect();
    let text = text.trim().trim_end_matches('.');
    (!text.is_empty()).then(|| text.to_owned())
}

/// `Retry-After`: seconds, or the time of day.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER).and_then(|value: &HeaderValue| value.to_str().ok())?;
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = DateTimeParser::new().parse_timestamp(value.trim()).ok()?;
    Some(Duration::try_from(until - Timestamp::now()).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_str(value).unwrap());
        retry_after(&headers)
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let far = after("Fri, 31 Dec 2100 23:59:59 GMT").unwrap();
        assert!(far > Duration::from_hours(24 * 365));
        assert_eq!(after("soon"), None);
    }

    #[test]
    fn a_foreign_reason_is_one_short_line() {
        assert_eq!(shortened("no\r\nsuch model."), Some("no  such model".to_owned()));
        assert_eq!(shortened(&"x".repeat(1000)).unwrap().len(), LONGEST_REASON);
        assert_eq!(shortened(" "), None);
    }

    #[test]
    fn an_entity_tag_is_what_is_between_the_quotes() {
        let mut headers = HeaderMap::new();
        headers.insert("etag", HeaderValue::from_static("W/\"abc\""));
        assert_eq!(etag(&headers, "etag").as_deref(), Some("abc"));
    }
}
