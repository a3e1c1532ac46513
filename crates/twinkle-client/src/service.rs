//! The entry: connect, then make clients for training, sampling, text, and what lies on the server.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use twinkle_core::wire::tinker::json::{
    ClientConfig, ClientConfigRequest, CreateModel, CreateSamplingSession, CreateSession, DynamicConfig, Future,
    LoadWeights, LoraConfig, ModelCreated, OptimizerConfig, SamplingSessionCreated, Seed, ServerCapabilities,
    SessionCreated, WeightsLoaded,
};

use crate::chat::ChatClient;
use crate::environment::{api_key_from_env, base_url_from_env};
use crate::error::{Error, Result};
use crate::http::Http;
use crate::options::{ConnectOptions, LoraOptions, Weights};
use crate::processor::ProcessorClient;
use crate::progress::Reporter;
use crate::rest::RestClient;
use crate::retrieve;
use crate::sampling::SamplingClient;
use crate::session::Session;
use crate::training::TrainingClient;

/// What this client calls itself.
const VERSION: &str = concat!("twinkle-client ", env!("CARGO_PKG_VERSION"));

/// A connection to a server, with a session that is kept alive until the last client made from it is dropped.
#[derive(Clone, Debug)]
pub struct ServiceClient {
    session: Arc<Session>,
}

impl ServiceClient {
    /// Connects to `base_url` (such as `http://127.0.0.1:8000`; a path prefix is kept) and opens a session.
    ///
    /// Must run inside a Tokio runtime, which also carries the session's heartbeat. Where there is none, use the
    /// `blocking` façade.
    pub async fn connect(base_url: &str, api_key: &str) -> Result<Self> {
        Self::connect_with(base_url, api_key, ConnectOptions::default()).await
    }

    /// [`Self::connect`] with the address of [`base_url_from_env`] and the key of [`api_key_from_env`].
    pub async fn from_env() -> Result<Self> {
        Self::connect(&base_url_from_env(), &api_key_from_env()?).await
    }

    /// [`Self::connect`], with options.
    pub async fn connect_with(base_url: &str, api_key: &str, options: ConnectOptions) -> Result<Self> {
        let http = Http::new(base_url, api_key, &options.headers, options.retry)?;
        let version = ClientConfigRequest { sdk_version: Some(VERSION.to_owned()) };
        let config: ClientConfig = if_known(http.ask("/api/v1/client/config", &version).await)?.unwrap_or_default();
        if config.pjwt_auth_enabled {
            let message = "the server wants the API key to be exchanged for a token, which this client does not do";
            return Err(Error::InvalidArgument(message.to_owned()));
        }
        let dynamic: Option<DynamicConfig> = if_known(http.ask("/api/v1/client/dynamic_config", &version).await)?;
        let create = CreateSession {
            tags: options.tags,
            user_metadata: values(options.user_metadata),
            sdk_version: Some(VERSION.to_owned()),
            project_id: options.project_id,
            display_name: options.display_name,
            session_id: None,
        };
        let created: SessionCreated = http.ask("/api/v1/create_session", &create).await?;
        for message in [&created.info_message, &created.warning_message, &created.error_message].into_iter().flatten() {
            tracing::warn!(message, "the server says");
        }
        let cancels_samples = dynamic.is_some_and(|dynamic| dynamic.sample_cancel_enabled);
        let interval = options.heartbeat_interval;
        Ok(Self { session: Session::new(http, created.session_id, config, cancels_samples, interval) })
    }

    /// The session's id.
    #[must_use]
    pub fn session_id(&self) -> &str {
        &self.session.id
    }

    /// What the server offers: its models.
    pub async fn get_server_capabilities(&self) -> Result<ServerCapabilities> {
        self.create_rest_client().get_server_capabilities().await
    }

    /// A new training run with a fresh LoRA adapter on `base_model`; returns when the run exists. `lora` is a rank, or
    /// [`LoraOptions`].
    pub async fn create_lora_training_client(
        &self,
        base_model: &str,
        lora: impl Into<LoraOptions>,
    ) -> Result<TrainingClient> {
        let options = lora.into();
        let body = CreateModel {
            session_id: self.session.id.clone(),
            model_seq_id: self.session.next_model(),
            base_model: base_model.to_owned(),
            user_metadata: values(options.user_metadata),
            lora_config: Some(LoraConfig {
                rank: options.rank,
                seed: options.seed.map(Seed::from_bits),
                train_unembed: options.train_unembed,
                train_mlp: options.train_mlp,
                train_attn: options.train_attn,
            }),
            optimizer_config: Some(OptimizerConfig { kind: "adamw".to_owned() }),
        };
        let accepted: Future = self.session.http.ask("/api/v1/create_model", &body).await?;
        let _: ModelCreated = self.result(&accepted).await?;
        Ok(TrainingClient::new(self.session.clone(), body.model_seq_id))
    }

    /// A new training run that continues from the weights at `path` (`tinker://<run>/weights/<name>`, or with
    /// `twinkle://`) with a fresh optimizer.
    pub async fn create_training_client_from_state(&self, path: &str) -> Result<TrainingClient> {
        self.training_client_from(path, false).await
    }

    /// [`Self::create_training_client_from_state`] where the Adam moments and the step count continue too.
    pub async fn create_training_client_from_state_with_optimizer(&self, path: &str) -> Result<TrainingClient> {
        self.training_client_from(path, true).await
    }

    /// A client that samples from `weights`: the name of a base model, or the path of a checkpoint
    /// (`tinker://<run>/sampler_weights/<name>`, or with `twinkle://`).
    pub async fn create_sampling_client(&self, weights: impl Into<Weights>) -> Result<SamplingClient> {
        create_sampling_client(&self.session, weights.into()).await
    }

    /// A client of the processor application at `route_prefix` (such as `/api/v1/processor`) for the tokenizer and
    /// chat template of `model`.
    #[must_use]
    pub fn processor(&self, route_prefix: &str, model: &str) -> ProcessorClient {
        ProcessorClient::new(self.session.clone(), route_prefix, model)
    }

    /// A client that talks to `weights` in text: the name of a base model, or the path of a checkpoint.
    #[must_use]
    pub fn create_chat_client(&self, weights: impl Into<Weights>) -> ChatClient {
        ChatClient::new(self.session.http.clone(), weights.into())
    }

    /// A client for what lies on the server: runs, checkpoints, sessions.
    #[must_use]
    pub fn create_rest_client(&self) -> RestClient {
        RestClient::new(self.session.http.clone())
    }

    /// Ends the session: the server frees its runs, and checkpoints stay.
    pub async fn close(self) -> Result<()> {
        self.session.finish("success", None).await
    }

    /// [`Self::close`] after a failure, which the server keeps with the session.
    pub async fn close_failed(self, detail: &str) -> Result<()> {
        self.session.finish("errored", Some(detail.to_owned())).await
    }

    async fn training_client_from(&self, path: &str, with_optimizer: bool) -> Result<TrainingClient> {
        let number = self.session.next_model();
        let body = LoadWeights {
            path: path.to_owned(),
            optimizer: with_optimizer,
            session_id: Some(self.session.id.clone()),
            model_seq_id: Some(number),
            ..LoadWeights::default()
        };
        let accepted: Future = self.session.http.ask("/api/v1/load_weights", &body).await?;
        let _: WeightsLoaded = self.result(&accepted).await?;
        Ok(TrainingClient::new(self.session.clone(), number))
    }

    async fn result<T: serde::de::DeserializeOwned>(&self, accepted: &Future) -> Result<T> {
        let (reporter, _progress) = Reporter::new(1);
        retrieve::json(&self.session.http, &accepted.request_id, &reporter).await
    }
}

pub(crate) async fn create_sampling_client(session: &Arc<Session>, weights: Weights) -> Result<SamplingClient> {
    let (base_model, model_path) = match weights {
        Weights::Base(name) => (Some(name), None),
        Weights::Checkpoint(path) => (None, Some(path)),
    };
    let body = CreateSamplingSession {
        session_id: session.id.clone(),
        sampling_session_seq_id: session.next_sampler(),
        base_model,
        model_path,
    };
    let created: SamplingSessionCreated = session.http.ask("/api/v1/create_sampling_session", &body).await?;
    Ok(SamplingClient::new(session.clone(), created.sampling_session_id))
}

/// The answer of a route that not every server has: those of the JSON era have none for configuration.
fn if_known<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Err(error) if error.is_not_found() => Ok(None),
        answer => answer.map(Some),
    }
}

fn values(texts: BTreeMap<String, String>) -> BTreeMap<String, Value> {
    texts.into_iter().map(|(name, text)| (name, Value::String(text))).collect()
}
