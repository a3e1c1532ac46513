//! Conversations as text.

use futures::StreamExt;
use twinkle_core::call::ChatMessage;

use super::runtime::Runtime;
use crate::chat::{ChatAnswer, ChatDelta, ChatOptions};
use crate::error::Result;

/// A client that talks to a base model or to an adapter: [`crate::ChatClient`] that waits.
#[derive(Clone, Debug)]
pub struct ChatClient {
    inner: crate::ChatClient,
    runtime: Runtime,
}

impl ChatClient {
    pub(super) const fn new(inner: crate::ChatClient, runtime: Runtime) -> Self {
        Self { inner, runtime }
    }

    /// [`crate::ChatClient::complete`].
    pub fn complete(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<ChatAnswer> {
        self.runtime.wait(self.inner.complete(messages, options))
    }

    /// [`crate::ChatClient::stream`].
    pub fn stream(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<ChatStream> {
        let inner = self.runtime.wait(self.inner.stream(messages, options))?;
        Ok(ChatStream { inner, runtime: self.runtime.clone() })
    }
}

/// An answer that is still being drawn; each step waits for the next piece.
#[derive(Debug)]
pub struct ChatStream {
    inner: crate::ChatStream,
    runtime: Runtime,
}

impl Iterator for ChatStream {
    type Item = Result<ChatDelta>;

    fn next(&mut self) -> Option<Self::Item> {
        let inner = &mut self.inner;
        self.runtime.wait(async { Ok(inner.next().await) }).unwrap_or_else(|error| Some(Err(error)))
    }
}
