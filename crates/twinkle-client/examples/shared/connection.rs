//! What every example is told: where the server is, and which model.

use anyhow::{Context, Result};
use clap::Args;
use twinkle_client::{ProcessorClient, ServiceClient, api_key_from_env, base_url_from_env};

/// Where the server is, and which model.
#[derive(Args)]
pub(crate) struct Connection {
    /// The server's address; without it `TWINKLE_SERVER_URL`, `TINKER_BASE_URL`, or this machine.
    #[arg(long)]
    url: Option<String>,
    /// The API key; without it `TWINKLE_SERVER_TOKEN`, `TINKER_API_KEY`, `MODELSCOPE_TOKEN` or `API_KEY`. A server on
    /// this machine takes any.
    #[arg(long)]
    api_key: Option<String>,
    /// The base model's name on the server.
    #[arg(long, default_value = "HuggingFaceTB/SmolLM2-135M-Instruct")]
    pub(crate) model: String,
    /// Where the server's processor application is.
    #[arg(long, default_value = "/api/v1/processor")]
    processor: String,
}

impl Connection {
    /// Opens a session.
    pub(crate) async fn open(&self) -> Result<ServiceClient> {
        let url = self.url.clone().unwrap_or_else(base_url_from_env);
        let key = self.api_key.clone().or_else(|| api_key_from_env().ok()).unwrap_or_else(|| "tml-local".to_owned());
        let connected = ServiceClient::connect(&url, &key).await;
        connected.with_context(|| format!("no server at {url} (start one: cargo xtask quickstart)"))
    }

    /// The tokenizer and chat template of the model.
    pub(crate) fn processor(&self, service: &ServiceClient) -> ProcessorClient {
        service.processor(&self.processor, &self.model)
    }
}
