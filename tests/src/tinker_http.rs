//! The Tinker protocol by hand, in JSON: for what no client would do, such as numbers out of order.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A bare client with one API key.
#[derive(Clone, Debug)]
pub struct TinkerHttp {
    client: reqwest::Client,
    base_url: String,
    key: String,
    /// Named in a header, as the native protocol does.
    session: Option<String>,
}

impl TinkerHttp {
    /// A client of the server at `base_url`.
    #[must_use]
    pub fn new(base_url: &str, key: &str) -> Self {
        Self { client: reqwest::Client::new(), base_url: base_url.to_owned(), key: key.to_owned(), session: None }
    }

    /// The same client in a session of the native protocol.
    #[must_use]
    pub fn in_session(&self, session: &str) -> Self {
        Self { session: Some(session.to_owned()), ..self.clone() }
    }

    /// Posts to `/api/v1/<route>`: the status and the JSON body.
    pub async fn post(&self, route: &str, body: &Value) -> Result<(u16, Value)> {
        let mut request =
            self.client.post(format!("{}/api/v1/{route}", self.base_url)).header("X-API-Key", &self.key).json(body);
        if let Some(session) = &self.session {
            request = request.header("X-Twinkle-Session-Id", session);
        }
        let sent = request.timeout(Duration::from_secs(45)).send().await;
        let response = sent.with_context(|| format!("posting to {route}"))?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) };
        Ok((status, body))
    }

    /// Gets `/api/v1/<route>` and expects success.
    pub async fn get(&self, route: &str) -> Result<Value> {
        let request = self.client.get(format!("{}/api/v1/{route}", self.base_url)).header("X-API-Key", &self.key);
        let response = request.timeout(Duration::from_secs(45)).send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        if status != 200 {
            bail!("{route} answered {status}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// Posts and expects success.
    pub async fn ask(&self, route: &str, body: &Value) -> Result<Value> {
        let (status, body) = self.post(route, body).await?;
        if status != 200 {
            bail!("{route} answered {status}: {body}");
        }
        Ok(body)
    }

    /// Submits an operation: its request id.
    pub async fn submit(&self, route: &str, body: &Value) -> Result<String> {
        let answer = self.ask(route, body).await?;
        let id = answer["request_id"].as_str().with_context(|| format!("{route} gave no request id: {answer}"))?;
        Ok(id.to_owned())
    }

    /// Waits for the result of an operation; a failed one is returned as its error object.
    pub async fn result(&self, request: &str) -> Result<Value> {
        for _ in 0..20 {
            let (status, body) = self.post("retrieve_future", &json!({ "request_id": request })).await?;
            match status {
                200 if body["type"] != "try_again" => return Ok(body),
                200 | 408 => {}
                other => bail!("retrieve_future answered {other}: {body}"),
            }
        }
        bail!("operation {request} did not finish")
    }

    /// Opens a session and a LoRA run in it: the run's id. `number` is its number in the session.
    pub async fn create_run(&self, base_model: &str, rank: u32, seed: u64) -> Result<String> {
        self.create_run_of(base_model, &json!({ "rank": rank, "seed": seed })).await
    }

    /// The same with a whole `lora_config`.
    pub async fn create_run_of(&self, base_model: &str, lora_config: &Value) -> Result<String> {
        let session = self.ask("create_session", &json!({ "tags": [], "sdk_version": "0.16.1" })).await?;
        let body = json!({
            "session_id": session["session_id"],
            "model_seq_id": 0,
            "base_model": base_model,
            "lora_config": lora_config,
        });
        let created = self.result(&self.submit("create_model", &body).await?).await?;
        let run = created["model_id"].as_str().with_context(|| format!("no model id: {created}"))?;
        Ok(run.to_owned())
    }

    /// Submits a cross-entropy forward-backward over one sequence of tokens, each predicting the next.
    pub async fn submit_forward_backward(&self, run: &str, sequence: u64, tokens: &[u32]) -> Result<String> {
        self.submit("forward_backward", &forward_backward(run, sequence, tokens, "forward_backward_input")).await
    }

    /// Submits an optimizer step.
    pub async fn submit_optim_step(&self, run: &str, sequence: u64, learning_rate: f64) -> Result<String> {
        let body = json!({ "model_id": run, "seq_id": sequence, "adam_params": { "learning_rate": learning_rate } });
        self.submit("optim_step", &body).await
    }

    /// The logprobs of one sequence, without touching gradients.
    pub async fn forward(&self, run: &str, sequence: u64, tokens: &[u32]) -> Result<Value> {
        let request = self.submit("forward", &forward_backward(run, sequence, tokens, "forward_input")).await?;
        self.result(&request).await
    }
}

fn forward_backward(run: &str, sequence: u64, tokens: &[u32], field: &str) -> Value {
    let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    json!({
        "model_id": run,
        "seq_id": sequence,
        field: {
            "loss_fn": "cross_entropy",
            "data": [{
                "model_input": { "chunks": [{ "tokens": inputs }] },
                "loss_fn_inputs": {
                    "target_tokens": { "data": targets, "dtype": "int64" },
                    "weights": { "data": vec![1.0; targets.len()], "dtype": "float32" },
                },
            }],
        },
    })
}
