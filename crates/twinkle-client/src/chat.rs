//! Conversations as text, answered piece by piece: the server's `OpenAI` routes.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use eventsource_stream::Eventsource;
use futures::stream::{BoxStream, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use twinkle_core::call::ChatMessage;

use crate::error::{Error, Result};
use crate::http::Http;
use crate::options::Weights;
use crate::request::Request;

const ROUTE: &str = "/v1/chat/completions";
/// How long an answer may take as a whole; between its pieces it may be silent for less.
const ANSWER_LIMIT: Duration = Duration::from_hours(1);
/// What ends a stream.
const DONE: &str = "[DONE]";

/// A client that talks to a base model or to an adapter; the server renders the conversation and reads the answer.
#[derive(Clone, Debug)]
pub struct ChatClient {
    http: Http,
    model: String,
}

/// How an answer is drawn. What is `None` is the server's choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatOptions {
    /// Tokens of the answer at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// How freely to draw; 0 takes the likeliest token each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keep the smallest set of tokens whose probability reaches this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// The same seed gives the same answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Texts at which the answer ends; they are not part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatAnswer {
    /// What is said.
    pub content: String,
    /// What was thought before, where the model thinks.
    pub reasoning: String,
    /// Why it ended: `stop`, `length` or `tool_calls`.
    pub finish_reason: Option<String>,
    /// How many tokens it took.
    pub usage: Option<ChatUsage>,
}

/// How many tokens a conversation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ChatUsage {
    /// Of the conversation.
    pub prompt_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
}

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatDelta {
    /// More of what is said.
    pub content: String,
    /// More of what is thought.
    pub reasoning: String,
    /// Why the answer ends with this piece, if it does.
    pub finish_reason: Option<String>,
}

impl ChatClient {
    pub(crate) fn new(http: Http, weights: Weights) -> Self {
        let (Weights::Base(model) | Weights::Checkpoint(model)) = weights;
        Self { http, model }
    }

    /// The whole answer to a conversation.
    pub async fn complete(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<ChatAnswer> {
        let request = self.request(messages, options, false)?;
        let completion: Completion = self.http.send(&request).await?.decode(ROUTE)?;
        let choice = completion.choices.into_iter().next().ok_or_else(|| Error::malformed(ROUTE, &"no choice"))?;
        let Message { content, reasoning_content } = choice.message;
        Ok(ChatAnswer {
            content: content.unwrap_or_default(),
            reasoning: reasoning_content.unwrap_or_default(),
            finish_reason: choice.finish_reason,
            usage: completion.usage,
        })
    }

    /// The answer to a conversation, piece by piece as it is drawn. Dropping the stream ends the answer on the server.
    ///
    /// ```no_run
    /// use futures::StreamExt;
    /// use twinkle_client::{ChatMessage, ChatOptions, ServiceClient};
    ///
    /// # async fn example(service: &ServiceClient) -> twinkle_client::Result<()> {
    /// let chat = service.create_chat_client("HuggingFaceTB/SmolLM2-135M-Instruct");
    /// let mut answer = chat.stream(&[ChatMessage::user("Who are you?")], &ChatOptions::default()).await?;
    /// while let Some(piece) = answer.next().await {
    ///     print!("{}", piece?.content);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn stream(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<ChatStream> {
        let request = self.request(messages, options, true)?.accepting("text/event-stream").within(ANSWER_LIMIT);
        let response = self.http.send_open(&request).await?;
        let events = response.bytes_stream().eventsource();
        let pieces = events.map(|event| match event {
            Ok(event) if event.data == DONE => Ok(None),
            Ok(event) => piece(&event.data).map(Some),
            Err(error) => Err(Error::malformed(ROUTE, &error)),
        });
        // What comes after the end, or after an error, is not looked at.
        let ended = |over: &mut bool, piece: Result<Option<ChatDelta>>| {
            let piece = if *over { None } else { piece.transpose() };
            *over = !matches!(piece, Some(Ok(_)));
            futures::future::ready(piece)
        };
        Ok(ChatStream { pieces: pieces.scan(false, ended).boxed() })
    }

    fn request(&self, messages: &[ChatMessage], options: &ChatOptions, stream: bool) -> Result<Request> {
        Request::json(ROUTE, &Body { model: &self.model, messages, options, stream })
    }
}

/// An answer that is still being drawn.
pub struct ChatStream {
    pieces: BoxStream<'static, Result<ChatDelta>>,
}

impl Stream for ChatStream {
    type Item = Result<ChatDelta>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.as_mut().poll_next(context)
    }
}

impl fmt::Debug for ChatStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ChatStream").finish_non_exhaustive()
    }
}

/// What one event tells. A stream that has begun tells its error as an event.
fn piece(data: &str) -> Result<ChatDelta> {
    let body: Value = serde_json::from_str(data).map_err(|error| Error::malformed(ROUTE, &error))?;
    if let Some(message) = body["error"]["message"].as_str() {
        let category = body["error"]["type"].as_str().unwrap_or("unknown").to_owned();
        let request_id = body["id"].as_str().unwrap_or_default().to_owned();
        return Err(Error::Failed { category, message: message.to_owned(), request_id });
    }
    let choice = &body["choices"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(ChatDelta {
        content: text(&choice["delta"]["content"]),
        reasoning: text(&choice["delta"]["reasoning_content"]),
        finish_reason: choice["finish_reason"].as_str().map(str::to_owned),
    })
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: &'a [ChatMessage],
    #[serde(flatten)]
    options: &'a ChatOptions,
    stream: bool,
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<ChatUsage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
}
