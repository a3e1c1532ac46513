//! `POST sample_stream`: one sample, read while it is drawn, as a line of JSON for each piece of text.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body as HttpBody, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures::stream::{self, BoxStream, StreamExt};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use serde_json::json;
use twinkle_core::error::{Error, Result};

use super::answer::stop_reason;
use super::prompts::{Asked, Body};
use crate::streaming::{self, Detokenizer, Sampled};
use crate::twinkle::{Answer, Caller, Json, TwinkleFront};

/// Lines of JSON.
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// `POST sample_stream`. A request that is refused has a status; what fails later is a line with `error`.
pub(super) async fn sample_stream(State(front): State<TwinkleFront>, caller: Caller, Json(body): Json<Body>) -> Answer {
    let asked = Asked::read(&front, &caller, body).await?;
    let [prompt] = &asked.prompts[..] else {
        return Err(Error::invalid("Streaming only supports a single input").into());
    };
    if asked.wanted.samples > 1 || asked.wanted.only_prompt {
        return Err(Error::invalid("a stream is of one sample with at least one token").hint("use `sample`").into());
    }
    let model = front.model()?;
    let request = asked.request(prompt, model.max_context);
    let tokenizer = front.context.templates.tokenizer(&model.tokenizer).await?;
    let mut sampled = streaming::sample(&front.component, caller.tenant, request).boxed();
    let first = sampled.next().await.ok_or_else(|| Error::internal("the sampler said nothing"))??;
    let text = Text { sampled, first: Some(first), detokenizer: Detokenizer::new(Arc::clone(&tokenizer), true) };
    let lines = stream::unfold(Some(text), |text| async {
        let (line, text) = text?.next().await;
        Some((Ok::<_, Infallible>(line), text))
    });
    let mut response = Response::new(HttpBody::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, NDJSON);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A sample on its way to its reader.
struct Text {
    sampled: BoxStream<'static, Result<Sampled>>,
    first: Option<Sampled>,
    detokenizer: Detokenizer,
}

impl Text {
    /// The next line, and what is left after it.
    async fn next(mut self) -> (Bytes, Option<Self>) {
        loop {
            let sampled = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => self.sampled.next().await,
            };
            match sampled {
                Some(Ok(Sampled::Token(drawn))) => {
                    let mut delta = self.detokenizer.push(drawn.token);
                    if let Some(reason) = drawn.ends {
                        delta.push_str(&self.detokenizer.finish());
                        // Left before its outcome, the sample would count as one that its client gave up.
                        while self.sampled.next().await.is_some() {}
                        return (line(&json!({ "delta": delta, "finish_reason": stop_reason(reason) })), None);
                    }
                    if !delta.is_empty() {
                        return (line(&json!({ "delta": delta, "finish_reason": null })), Some(self));
                    }
                }
                // A sample without a token that ends it.
                Some(Ok(Sampled::Done(outcome))) => {
                    let reason = outcome.sequences.first().map(|sequence| stop_reason(sequence.stop_reason));
                    let delta = self.detokenizer.finish();
                    return (line(&json!({ "delta": delta, "finish_reason": reason.unwrap_or("length") })), None);
                }
                Some(Err(error)) => return (line(&json!({ "error": error.to_string() })), None),
                None => return (line(&json!({ "error": "the sample was not finished" })), None),
            }
        }
    }
}

fn line(value: &serde_json::Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}
