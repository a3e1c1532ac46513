//! Server-sent events: `data: {…}` per event, `data: [DONE]` at the end.

use std::collections::VecDeque;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{BoxStream, unfold};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinkle_core::error::{Error, Result};

use super::answer::{OpenAiError, Outcome};
use crate::streaming::Sampled;

/// What comes of several prompts, each with its number.
pub(super) type Samples = BoxStream<'static, (usize, Result<Sampled>)>;

/// Tells a stream of samples as events.
pub(super) trait Narrator: Send + 'static {
    /// What one sampled thing of a prompt is told as.
    fn tell(&mut self, prompt: usize, sampled: Sampled, events: &mut Events);

    /// What is told at the end, once everything went well.
    fn end(&mut self, events: &mut Events);
}

/// `stream_options` of a request.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    /// Whether the last event tells how many tokens there were.
    #[serde(default)]
    pub(super) include_usage: Option<bool>,
    /// Padding against listeners on the network; there is none.
    #[serde(default, rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

impl StreamOptions {
    /// Whether the last event tells how many tokens there were; only a stream has options.
    pub(super) fn includes_usage(options: Option<Self>, stream: Option<bool>) -> Result<bool, OpenAiError> {
        let Some(options) = options else { return Ok(false) };
        if !stream.unwrap_or(false) {
            let error = Error::invalid("`stream_options` is given without `stream`");
            return Err(OpenAiError::of("stream_options", error.hint("send `stream: true` too, or leave it out")));
        }
        Ok(options.include_usage.unwrap_or(false))
    }
}

/// Events on their way to the client.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<Bytes>);

impl Events {
    /// Adds an event.
    pub(super) fn push(&mut self, event: &impl Serialize) {
        let mut line = b"data: ".to_vec();
        // What is told is numbers and texts, which are always JSON.
        if serde_json::to_writer(&mut line, event).is_ok() {
            line.extend_from_slice(b"\n\n");
            self.0.push_back(line.into());
        }
    }

    fn push_bytes(&mut self, json: &[u8]) {
        self.0.push_back([b"data: ", json, b"\n\n"].concat().into());
    }

    fn done(&mut self) {
        self.push_bytes(b"[DONE]");
    }
}

/// Answers with a stream of events. A request that fails before its first token gets a status, not a stream.
pub(super) async fn answer(
    mut samples: Samples,
    mut narrator: impl Narrator,
    refuse: impl Fn(Error) -> OpenAiError + Send + 'static,
) -> Outcome {
    let mut events = Events::default();
    let is_over = match samples.next().await {
        Some((_, Err(error))) => return Err(refuse(error)),
        Some((prompt, Ok(first))) => {
            narrator.tell(prompt, first, &mut events);
            false
        }
        None => {
            narrator.end(&mut events);
            events.done();
            true
        }
    };
    let told = Told { samples, narrator, events, is_over, refuse };
    let body = unfold(told, |mut told| async {
        told.next().await.map(|event| (Ok::<_, std::convert::Infallible>(event), told))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that collect a response would hold the tokens back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// A stream that has begun.
struct Told<N, F> {
    samples: Samples,
    narrator: N,
    events: Events,
    is_over: bool,
    refuse: F,
}

impl<N: Narrator, F: Fn(Error) -> OpenAiError> Told<N, F> {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.events.0.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            match self.samples.next().await {
                Some((prompt, Ok(sampled))) => self.narrator.tell(prompt, sampled, &mut self.events),
                Some((_, Err(error))) => {
                    let body = (self.refuse)(error).body();
                    self.events.push_bytes(&body);
                    self.finish();
                }
                None => {
                    self.narrator.end(&mut self.events);
                    self.finish();
                }
            }
        }
    }

    fn finish(&mut self) {
        self.events.done();
        self.is_over = true;
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::BodyExt;
    use twinkle_core::call::SampleOutcome;

    use super::*;

    struct Counting(usize);

    impl Narrator for Counting {
        fn tell(&mut self, prompt: usize, _: Sampled, events: &mut Events) {
            self.0 += 1;
            events.push(&prompt);
        }

        fn end(&mut self, events: &mut Events) {
            events.push(&format!("{} told", self.0));
        }
    }

    fn sampled() -> Sampled {
        Sampled::Done(SampleOutcome::default())
    }

    async fn text(samples: Vec<(usize, Result<Sampled>)>) -> std::result::Result<String, OpenAiError> {
        let response = answer(stream::iter(samples).boxed(), Counting(0), OpenAiError::from).await?;
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_stream_ends_with_done() {
        let told = text(vec![(0, Ok(sampled())), (1, Ok(sampled()))]).await.unwrap();
        assert_eq!(told, "data: 0\n\ndata: 1\n\ndata: \"2 told\"\n\ndata: [DONE]\n\n");
        assert_eq!(text(vec![]).await.unwrap(), "data: \"0 told\"\n\ndata: [DONE]\n\n");
    }

    #[tokio::test]
    async fn an_error_has_a_status_before_the_first_token_and_an_event_after_it() {
        assert!(text(vec![(0, Err(Error::invalid("no")))]).await.is_err());
        let told = text(vec![(0, Ok(sampled())), (0, Err(Error::invalid("no"))), (0, Ok(sampled()))]).await.unwrap();
        let events: Vec<&str> = told.trim_end().split("\n\n").collect();
        assert_eq!((events.len(), events[0], events[2]), (3, "data: 0", "data: [DONE]"));
        assert!(events[1].starts_with("data: {\"error\":{\"message\":\"no\""), "{told}");
    }
}
