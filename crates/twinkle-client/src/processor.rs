//! Text work on the server: chat templates and tokens, so that a client needs no tokenizer.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use twinkle_core::call::ChatMessage;
use twinkle_core::data::TokenIds;
use twinkle_core::wire::native::{
    DecodeRequest, DecodedResponse, EncodeChatRequest, EncodeRequest, Encoded, EncodedResponse,
};

use crate::error::{Error, Result};
use crate::session::Session;

/// A client of one processor application and one model's tokenizer.
#[derive(Clone, Debug)]
pub struct ProcessorClient {
    session: Arc<Session>,
    prefix: String,
    model: String,
}

impl ProcessorClient {
    pub(crate) fn new(session: Arc<Session>, route_prefix: &str, model: &str) -> Self {
        let prefix = format!("/{}", route_prefix.trim_matches('/'));
        Self { session, prefix, model: model.to_owned() }
    }

    /// Renders conversations with the model's chat template and tokenizes them, one result each. With
    /// `add_generation_prompt` they end in the header of an assistant's turn, to be continued by sampling.
    pub async fn encode_chat(
        &self,
        conversations: Vec<Vec<ChatMessage>>,
        add_generation_prompt: bool,
    ) -> Result<Vec<Encoded>> {
        let expected = conversations.len();
        let body = EncodeChatRequest { model: Some(self.model.clone()), conversations, add_generation_prompt };
        let response: EncodedResponse = self.ask("encode_chat", &body).await?;
        complete("encode_chat", expected, response.encoded)
    }

    /// Tokenizes plain texts, without special tokens.
    pub async fn encode(&self, texts: Vec<String>) -> Result<Vec<TokenIds>> {
        let expected = texts.len();
        let body = EncodeRequest { model: Some(self.model.clone()), texts };
        let response: EncodedResponse = self.ask("encode", &body).await?;
        let encoded = complete("encode", expected, response.encoded)?;
        Ok(encoded.into_iter().map(|one| one.tokens).collect())
    }

    /// Turns tokens back into text, leaving special tokens out.
    pub async fn decode(&self, sequences: Vec<TokenIds>) -> Result<Vec<String>> {
        let expected = sequences.len();
        let body = DecodeRequest { model: Some(self.model.clone()), sequences, skip_special_tokens: true };
        let response: DecodedResponse = self.ask("decode", &body).await?;
        complete("decode", expected, response.texts)
    }

    async fn ask<T: DeserializeOwned>(&self, route: &str, body: &impl Serialize) -> Result<T> {
        self.session.http.ask(&format!("{}/{route}", self.prefix), body).await
    }
}

/// One result for each input, or an error.
fn complete<T>(route: &str, expected: usize, results: Vec<T>) -> Result<Vec<T>> {
    if results.len() != expected {
        return Err(Error::malformed(route, &format!("{} results for {expected} inputs", results.len())));
    }
    Ok(results)
}
