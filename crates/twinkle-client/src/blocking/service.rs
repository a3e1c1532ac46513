//! The entry, and text work.

use twinkle_core::call::ChatMessage;
use twinkle_core::data::TokenIds;
use twinkle_core::wire::native::Encoded;
use twinkle_core::wire::tinker::json::ServerCapabilities;

use super::chat::ChatClient;
use super::rest::RestClient;
use super::runtime::Runtime;
use super::sampling::SamplingClient;
use super::training::TrainingClient;
use crate::environment::{api_key_from_env, base_url_from_env};
use crate::error::Result;
use crate::options::{ConnectOptions, LoraOptions, Weights};

/// A connection to a server: [`crate::ServiceClient`] that waits.
#[derive(Clone, Debug)]
pub struct ServiceClient {
    inner: crate::ServiceClient,
    runtime: Runtime,
}

impl ServiceClient {
    /// [`crate::ServiceClient::connect`].
    pub fn connect(base_url: &str, api_key: &str) -> Result<Self> {
        Self::connect_with(base_url, api_key, ConnectOptions::default())
    }

    /// [`crate::ServiceClient::from_env`].
    pub fn from_env() -> Result<Self> {
        Self::connect(&base_url_from_env(), &api_key_from_env()?)
    }

    /// [`crate::ServiceClient::connect_with`].
    pub fn connect_with(base_url: &str, api_key: &str, options: ConnectOptions) -> Result<Self> {
        let runtime = Runtime::start()?;
        let inner = runtime.wait(crate::ServiceClient::connect_with(base_url, api_key, options))?;
        Ok(Self { inner, runtime })
    }

    /// The session's id.
    #[must_use]
    pub fn session_id(&self) -> &str {
        self.inner.session_id()
    }

    /// [`crate::ServiceClient::get_server_capabilities`].
    pub fn get_server_capabilities(&self) -> Result<ServerCapabilities> {
        self.runtime.wait(self.inner.get_server_capabilities())
    }

    /// [`crate::ServiceClient::create_lora_training_client`].
    pub fn create_lora_training_client(
        &self,
        base_model: &str,
        lora: impl Into<LoraOptions>,
    ) -> Result<TrainingClient> {
        self.training(self.inner.create_lora_training_client(base_model, lora))
    }

    /// [`crate::ServiceClient::create_training_client_from_state`].
    pub fn create_training_client_from_state(&self, path: &str) -> Result<TrainingClient> {
        self.training(self.inner.create_training_client_from_state(path))
    }

    /// [`crate::ServiceClient::create_training_client_from_state_with_optimizer`].
    pub fn create_training_client_from_state_with_optimizer(&self, path: &str) -> Result<TrainingClient> {
        self.training(self.inner.create_training_client_from_state_with_optimizer(path))
    }

    /// [`crate::ServiceClient::create_sampling_client`].
    pub fn create_sampling_client(&self, weights: impl Into<Weights>) -> Result<SamplingClient> {
        let inner = self.runtime.wait(self.inner.create_sampling_client(weights))?;
        Ok(SamplingClient::new(inner, self.runtime.clone()))
    }

    /// [`crate::ServiceClient::processor`].
    #[must_use]
    pub fn processor(&self, route_prefix: &str, model: &str) -> ProcessorClient {
        ProcessorClient { inner: self.inner.processor(route_prefix, model), runtime: self.runtime.clone() }
    }

    /// [`crate::ServiceClient::create_chat_client`].
    #[must_use]
    pub fn create_chat_client(&self, weights: impl Into<Weights>) -> ChatClient {
        ChatClient::new(self.inner.create_chat_client(weights), self.runtime.clone())
    }

    /// [`crate::ServiceClient::create_rest_client`].
    #[must_use]
    pub fn create_rest_client(&self) -> RestClient {
        RestClient::new(self.inner.create_rest_client(), self.runtime.clone())
    }

    /// [`crate::ServiceClient::close`].
    pub fn close(self) -> Result<()> {
        self.runtime.wait(self.inner.close())
    }

    /// [`crate::ServiceClient::close_failed`].
    pub fn close_failed(self, detail: &str) -> Result<()> {
        self.runtime.wait(self.inner.close_failed(detail))
    }

    fn training(&self, created: impl Future<Output = Result<crate::TrainingClient>>) -> Result<TrainingClient> {
        Ok(TrainingClient::new(self.runtime.wait(created)?, self.runtime.clone()))
    }
}

/// Text work on the server: [`crate::ProcessorClient`] that waits.
#[derive(Clone, Debug)]
pub struct ProcessorClient {
    inner: crate::ProcessorClient,
    runtime: Runtime,
}

impl ProcessorClient {
    /// [`crate::ProcessorClient::encode_chat`].
    pub fn encode_chat(
        &self,
        conversations: Vec<Vec<ChatMessage>>,
        add_generation_prompt: bool,
    ) -> Result<Vec<Encoded>> {
        self.runtime.wait(self.inner.encode_chat(conversations, add_generation_prompt))
    }

    /// [`crate::ProcessorClient::encode`].
    pub fn encode(&self, texts: Vec<String>) -> Result<Vec<TokenIds>> {
        self.runtime.wait(self.inner.encode(texts))
    }

    /// [`crate::ProcessorClient::decode`].
    pub fn decode(&self, sequences: Vec<TokenIds>) -> Result<Vec<String>> {
        self.runtime.wait(self.inner.decode(sequences))
    }
}
