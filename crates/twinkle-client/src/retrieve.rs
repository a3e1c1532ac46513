//! Asking for the result of an accepted operation until it is there.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;
use twinkle_core::wire::tinker::PROTOBUF;
use twinkle_core::wire::tinker::json::RetrieveFuture;

use crate::answer::Answer;
use crate::error::{Error, Result};
use crate::http::Http;
use crate::progress::Reporter;
use crate::request::Request;

/// The route of every result.
const ROUTE: &str = "/api/v1/retrieve_future";
/// How long one question for a result may take; servers answer "not yet" before.
const POLL_LIMIT: Duration = Duration::from_secs(45);
/// Servers hold a question until there is a result. One that answers "not yet" sooner than this is asked less often.
const HASTY: Duration = Duration::from_secs(1);
/// How much less often.
const PAUSE_AFTER_HASTY: Duration = Duration::from_millis(100);

/// Reads a JSON result.
pub(crate) async fn json<T: serde::de::DeserializeOwned>(
    http: &Http,
    request_id: &str,
    reporter: &Reporter,
) -> Result<T> {
    match retrieve(http, request_id, "application/json", reporter).await? {
        Retrieved::Json(value) => serde_json::from_value(value).map_err(|error| Error::malformed(ROUTE, &error)),
        Retrieved::Protobuf(_) => Err(Error::malformed(ROUTE, &"protobuf where JSON was expected")),
    }
}

/// Reads a protobuf result.
pub(crate) async fn protobuf<T: prost::Message + Default>(
    http: &Http,
    request_id: &str,
    reporter: &Reporter,
) -> Result<T> {
    match retrieve(http, request_id, PROTOBUF, reporter).await? {
        Retrieved::Protobuf(bytes) => T::decode(bytes).map_err(|error| Error::malformed(ROUTE, &error)),
        Retrieved::Json(_) => Err(Error::malformed(ROUTE, &"JSON where protobuf was expected")),
    }
}

/// A finished operation, in the codec the request asked for.
enum Retrieved {
    Json(Value),
    Protobuf(Bytes),
}

/// Asks through restarts of the server.
async fn retrieve(http: &Http, request_id: &str, media_type: &'static str, reporter: &Reporter) -> Result<Retrieved> {
    let body = RetrieveFuture { request_id: request_id.to_owned(), allow_metadata_only: false };
    let request = Request::json(ROUTE, &body)?.accepting(media_type).within(POLL_LIMIT);
    let mut backoff = http.backoff();
    loop {
        let asked = Instant::now();
        let (error, pause) = match http.attempt(&request, None).await {
            Ok(answer) => match read(&answer, request_id) {
                Polled::Done(result) => {
                    reporter.finished_one();
                    return result;
                }
                Polled::NotYet { state, reason } => {
                    reporter.queue(state.as_deref(), reason.as_deref());
                    backoff.reset();
                    if asked.elapsed() < HASTY {
                        tokio::time::sleep(PAUSE_AFTER_HASTY).await;
                    }
                    continue;
                }
                Polled::Refused => (answer.rejection(), backoff.after(&answer)),
            },
            Err(error) => (error, backoff.next(None)),
        };
        let Some(pause) = pause else { return Err(error) };
        warn!(%error, request_id, ?pause, "asking for the result again");
        tokio::time::sleep(pause).await;
    }
}

/// What one answer means.
enum Polled {
    Done(Result<Retrieved>),
    NotYet { state: Option<String>, reason: Option<String> },
    Refused,
}

fn read(answer: &Answer, request_id: &str) -> Polled {
    match answer.status {
        200 if answer.is_protobuf() => Polled::Done(Ok(Retrieved::Protobuf(answer.body.clone()))),
        200 => match answer.decode::<Value>(ROUTE) {
            Ok(body) if body["type"] == "try_again" => not_yet(&body),
            Ok(body) => Polled::Done(failure(&body, request_id).map_or(Ok(Retrieved::Json(body)), Err)),
            Err(error) => Polled::Done(Err(error)),
        },
        408 => not_yet(&answer.decode(ROUTE).unwrap_or_default()),
        410 => Polled::Done(Err(Error::Expired { request_id: request_id.to_owned() })),
        _ => Polled::Refused,
    }
}

fn not_yet(body: &Value) -> Polled {
    let text = |key: &str| body[key].as_str().map(str::to_owned);
    Polled::NotYet { state: text("queue_state"), reason: text("queue_state_reason") }
}

/// The error an operation ended with, if it did.
fn failure(body: &Value, request_id: &str) -> Option<Error> {
    let message = body["error"].as_str()?.to_owned();
    let category = body["category"].as_str().unwrap_or("unknown").to_ascii_lowercase();
    Some(Error::Failed { category, message, request_id: request_id.to_owned() })
}
