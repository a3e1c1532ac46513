//! Results that are not there yet.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;
use twinkle_core::wire::tinker::json::RetrieveFuture;

use crate::error::{Error, Result};
use crate::http::{Answer, Http, Request};
use crate::retry;

/// The route of every result.
const RETRIEVE: &str = "/api/v1/retrieve_future";
/// How long one question for a result may take; servers answer "not yet" before.
const POLL_LIMIT: Duration = Duration::from_secs(45);
/// Servers hold a question until there is a result. One that answers "not yet" sooner than this is asked less often.
const HASTY: Duration = Duration::from_secs(1);
/// How much less often.
const PAUSE_AFTER_HASTY: Duration = Duration::from_millis(100);

/// An operation the server has accepted; await it for the result.
///
/// Dropping it does not undo the operation, only its result is lost.
#[must_use = "the operation runs anyway, but its errors would go unseen"]
pub struct Pending<T> {
    request_ids: Vec<String>,
    result: Pin<Box<dyn Future<Output = Result<T>> + Send>>,
}

impl<T> Pending<T> {
    pub(crate) fn new(request_ids: Vec<String>, result: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self { request_ids, result: Box::pin(result) }
    }

    /// The server's ids of the operation: one, or one for each chunk of a large batch.
    #[must_use]
    pub fn request_ids(&self) -> &[String] {
        &self.request_ids
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.result.as_mut().poll(context)
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pending").field("request_ids", &self.request_ids).finish_non_exhaustive()
    }
}

/// A finished operation, in the codec the request asked for.
#[derive(Clone, Debug)]
pub(crate) enum Retrieved {
    Json(Value),
    Protobuf(Bytes),
}

impl Retrieved {
    /// Reads a JSON result.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(self) -> Result<T> {
        match self {
            Self::Json(value) => serde_json::from_value(value).map_err(|error| Error::malformed(RETRIEVE, &error)),
            Self::Protobuf(_) => Err(Error::malformed(RETRIEVE, &"protobuf where JSON was expected")),
        }
    }

    /// Reads a protobuf result.
    pub(crate) fn protobuf<T: prost::Message + Default>(self) -> Result<T> {
        match self {
            Self::Protobuf(bytes) => T::decode(bytes).map_err(|error| Error::malformed(RETRIEVE, &error)),
            Self::Json(_) => Err(Error::malformed(RETRIEVE, &"JSON where protobuf was expected")),
        }
    }
}

/// Asks for a result until it is there, through restarts of the server.
pub(crate) async fn retrieve(http: &Http, request_id: &str, media_type: &'static str) -> Result<Retrieved> {
    let body = RetrieveFuture { request_id: request_id.to_owned(), allow_metadata_only: false };
    let request = Request::json(RETRIEVE, &body)?.accepting(media_type).within(POLL_LIMIT);
    let mut backoff = http.backoff();
    loop {
        let asked = Instant::now();
        let (error, wish) = match http.attempt(&request, None).await {
            Ok(answer) => match read(&answer, request_id) {
                Polled::Done(result) => return result,
                Polled::NotYet => {
                    backoff.reset();
                    if asked.elapsed() < HASTY {
                        tokio::time::sleep(PAUSE_AFTER_HASTY).await;
                    }
                    continue;
                }
                Polled::TryAgain => (answer.rejection(), retry::wish(&answer.headers)),
            },
            Err(error) => (error, None),
        };
        let Some(pause) = backoff.next(wish) else { return Err(error) };
        warn!(%error, request_id, ?pause, "asking for the result again");
        tokio::time::sleep(pause).await;
    }
}

/// What one answer of `retrieve_future` means.
enum Polled {
    Done(Result<Retrieved>),
    NotYet,
    TryAgain,
}

fn read(answer: &Answer, request_id: &str) -> Polled {
    match answer.status {
        200 if answer.is_protobuf() => Polled::Done(Ok(Retrieved::Protobuf(answer.body.clone()))),
        200 => match answer.decode::<Value>(RETRIEVE) {
            Ok(body) if body["type"] == "try_again" => Polled::NotYet,
            Ok(body) => Polled::Done(failure(&body, request_id).map_or(Ok(Retrieved::Json(body)), Err)),
            Err(error) => Polled::Done(Err(error)),
        },
        408 => Polled::NotYet,
        410 => Polled::Done(Err(Error::Expired { request_id: request_id.to_owned() })),
        429 | 500.. => Polled::TryAgain,
        _ => Polled::Done(Err(answer.rejection())),
    }
}

/// The error an operation ended with, if it did.
fn failure(body: &Value, request_id: &str) -> Option<Error> {
    let message = body["error"].as_str()?.to_owned();
    let category = body["category"].as_str().unwrap_or("unknown").to_ascii_lowercase();
    Some(Error::Failed { category, message, request_id: request_id.to_owned() })
}
