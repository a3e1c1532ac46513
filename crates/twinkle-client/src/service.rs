//! The entry: connect, then make clients for training, sampling and text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use twinkle_core::wire::tinker::json::{
    ClientConfig, ClientConfigRequest, CreateModel, CreateSamplingSession, CreateSession, Future, LoadWeights,
    LoraConfig, OptimizerConfig, SamplingSessionCreated, Seed, ServerCapabilities, SessionCreated, SupportedModel,
};

use crate::directory::DirectoryClient;
use crate::error::{Error, Result};
use crate::http::{Http, Request};
use crate::pending;
use crate::processor::ProcessorClient;
use crate::retry::RetryPolicy;
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

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// How patient to be with a server that does not answer.
    pub retry: RetryPolicy,
    /// Pause between signs of life; a server frees the runs of a session that is silent for minutes.
    pub heartbeat_interval: Duration,
    /// Labels of the session.
    pub tags: Vec<String>,
    /// Notes on the session.
    pub user_metadata: BTreeMap<String, String>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            heartbeat_interval: Duration::from_secs(10),
            tags: Vec::new(),
            user_metadata: BTreeMap::new(),
        }
    }
}

/// The shape of a new LoRA adapter (Hu et al. 2021).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraOptions {
    /// Its rank.
    pub rank: u32,
    /// Seed of its initial values; `None`: the server's choice.
    pub seed: Option<u64>,
    /// Adapt the attention projections.
    pub train_attn: bool,
    /// Adapt the MLP projections.
    pub train_mlp: bool,
    /// Adapt the output head.
    pub train_unembed: bool,
    /// Notes on the run.
    pub user_metadata: BTreeMap<String, String>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 32,
            seed: None,
            train_attn: true,
            train_mlp: true,
            train_unembed: true,
            user_metadata: BTreeMap::new(),
        }
    }
}

impl ServiceClient {
    /// Connects to `base_url` (such as `http://127.0.0.1:8000`; a path prefix is kept) and opens a session.
    ///
    /// Must run inside a Tokio runtime, which also carries the session's heartbeat.
    pub async fn connect(base_url: &str, api_key: &str) -> Result<Self> {
        Self::connect_with(base_url, api_key, ConnectOptions::default()).await
    }

    /// [`Self::connect`], with options.
    pub async fn connect_with(base_url: &str, api_key: &str, options: ConnectOptions) -> Result<Self> {
        let http = Http::new(base_url, api_key, options.retry)?;
        let version = ClientConfigRequest { sdk_version: Some(VERSION.to_owned()) };
        let config = match http.ask("/api/v1/client/config", &version).await {
            // Servers of the JSON era have no such route; the protocol's defaults apply.
            Err(Error::Rejected { status: 404, .. }) => ClientConfig::default(),
            answer => answer?,
        };
        let create = CreateSession {
            tags: options.tags,
            user_metadata: values(options.user_metadata),
            sdk_version: Some(VERSION.to_owned()),
            ..CreateSession::default()
        };
        let created: SessionCreated = http.ask("/api/v1/create_session", &create).await?;
        for message in [&created.info_message, &created.warning_message, &created.error_message].into_iter().flatten() {
            tracing::warn!(message, "the server says");
        }
        Ok(Self { session: Session::new(http, created.session_id, config, options.heartbeat_interval) })
    }

    /// The session's id.
    #[must_use]
    pub fn session_id(&self) -> &str {
        &self.session.id
    }

    /// The models on offer.
    pub async fn supported_models(&self) -> Result<Vec<SupportedModel>> {
        let path = "/api/v1/get_server_capabilities";
        let capabilities: ServerCapabilities = self.session.http.send(&Request::get(path)).await?.decode(path)?;
        Ok(capabilities.supported_models)
    }

    /// A new training run with a fresh LoRA adapter on `base_model`; returns when the run exists.
    pub async fn create_lora_training_client(&self, base_model: &str, options: LoraOptions) -> Result<TrainingClient> {
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
        pending::retrieve(&self.session.http, &accepted.request_id, "application/json").await?;
        Ok(TrainingClient::new(self.session.clone(), body.model_seq_id))
    }

    /// A new training run that continues from the checkpoint at `path` (`tinker://<run>/weights/<name>`); with
    /// `with_optimizer` the Adam moments and the step count continue too.
    pub async fn create_training_client_from_state(&self, path: &str, with_optimizer: bool) -> Result<TrainingClient> {
        let number = self.session.next_model();
        let body = LoadWeights {
            path: path.to_owned(),
            optimizer: with_optimizer,
            session_id: Some(self.session.id.clone()),
            model_seq_id: Some(number),
            ..LoadWeights::default()
        };
        let accepted: Future = self.session.http.ask("/api/v1/load_weights", &body).await?;
        pending::retrieve(&self.session.http, &accepted.request_id, "application/json").await?;
        Ok(TrainingClient::new(self.session.clone(), number))
    }

    /// A client that samples from the frozen base model.
    pub async fn create_sampling_client(&self, base_model: &str) -> Result<SamplingClient> {
        self.sampling_client(Some(base_model.to_owned()), None).await
    }

    /// A client that samples from the checkpoint at `path` (`tinker://<run>/sampler_weights/<name>`).
    pub async fn create_sampling_client_from_checkpoint(&self, path: &str) -> Result<SamplingClient> {
        self.sampling_client(None, Some(path.to_owned())).await
    }

    /// A client of the processor application at `route_prefix` (such as `/api/v1/processor`) for the tokenizer and
    /// chat template of `model`.
    #[must_use]
    pub fn processor(&self, route_prefix: &str, model: &str) -> ProcessorClient {
        ProcessorClient::new(self.session.clone(), route_prefix, model)
    }

    /// A client for the lists of runs and checkpoints.
    #[must_use]
    pub fn directory(&self) -> DirectoryClient {
        DirectoryClient::new(self.session.clone())
    }

    /// Ends the session: the server frees its runs, and checkpoints stay.
    pub async fn close(self) -> Result<()> {
        self.session.finish().await
    }

    async fn sampling_client(&self, base_model: Option<String>, model_path: Option<String>) -> Result<SamplingClient> {
        let body = CreateSamplingSession {
            session_id: self.session.id.clone(),
            sampling_session_seq_id: self.session.next_sampler(),
            base_model,
            model_path,
        };
        let created: SamplingSessionCreated = self.session.http.ask("/api/v1/create_sampling_session", &body).await?;
        Ok(SamplingClient::new(self.session.clone(), created.sampling_session_id))
    }
}

fn values(texts: BTreeMap<String, String>) -> BTreeMap<String, Value> {
    texts.into_iter().map(|(name, text)| (name, Value::String(text))).collect()
}
