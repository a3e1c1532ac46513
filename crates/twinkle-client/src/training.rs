//! A training run: numbered operations, submitted at once and awaited later.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use twinkle_core::call::{AdamParams, ForwardBackwardOutcome};
use twinkle_core::data::Datum;
use twinkle_core::wire::tinker::json::{
    Future, GetInfo, LoadWeights, ModelInfo, OptimStep, OptimStepOutput, SaveWeights, SaveWeightsForSampler,
    WeightsLoaded, WeightsSaved, WeightsSavedForSampler,
};
use twinkle_core::wire::tinker::training::{ForwardBackwardContent, outcome_from_proto};
use twinkle_core::wire::tinker::{PROTOBUF, proto};

use crate::chunking;
use crate::data::Loss;
use crate::error::{Error, Result};
use crate::http::Request;
use crate::pending::{self, Pending};
use crate::sampling::SamplingClient;
use crate::session::Session;

const JSON: &str = "application/json";

/// A client of one training run.
///
/// Its methods number their operation, submit it and return when the server has accepted it for good; the result is
/// awaited separately. The server executes operations in the order of their numbers, so a loop may submit a
/// forward-backward and the optimizer step that follows before it awaits either.
#[derive(Clone, Debug)]
pub struct TrainingClient {
    session: Arc<Session>,
    model_id: String,
    /// The number of the next operation. Held while submitting, so that numbers arrive in order.
    next_sequence: Arc<Mutex<u64>>,
}

/// How a checkpoint is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// Seconds until the server may delete it; `None` keeps it.
    pub ttl_seconds: Option<u64>,
    /// Replace a checkpoint of the same name.
    pub overwrite: bool,
    /// Notes on the checkpoint.
    pub user_metadata: BTreeMap<String, String>,
}

impl TrainingClient {
    pub(crate) fn new(session: Arc<Session>, number: u64) -> Self {
        let model_id = format!("{}:train:{number}", session.id);
        Self { session, model_id, next_sequence: Arc::new(Mutex::new(1)) }
    }

    /// The run's id.
    #[must_use]
    pub fn model_id(&self) -> &str {
        &self.model_id
    }

    /// Loss and logprobs of `data`, without touching gradients.
    pub async fn forward(&self, data: Vec<Datum>, loss: Loss) -> Result<Pending<ForwardBackwardOutcome>> {
        self.forward_or_backward(data, loss, false).await
    }

    /// Loss and logprobs of `data`; the gradient of the loss, summed over all tokens, is added to the run's accumulators.
    pub async fn forward_backward(&self, data: Vec<Datum>, loss: Loss) -> Result<Pending<ForwardBackwardOutcome>> {
        self.forward_or_backward(data, loss, true).await
    }

    /// One `AdamW` step with the accumulated gradients, which are then zero again. The result's metrics are
    /// `grad_norm`, before clipping, and `learning_rate`.
    pub async fn optim_step(&self, params: AdamParams) -> Result<Pending<BTreeMap<String, f64>>> {
        let model_id = self.model_id.clone();
        let body = move |seq_id| {
            let seq_id = Some(seq_id);
            OptimStep { adam_params: Some(params), optimizer_params: None, model_id, seq_id }
        };
        let request_id = self.submit("/api/v1/optim_step", body).await?;
        Ok(self.pending(request_id, |output: OptimStepOutput| Ok(output.metrics)))
    }

    /// Saves adapter, optimizer and counters under `name`; the result is the checkpoint's path.
    pub async fn save_state(&self, name: &str, options: SaveOptions) -> Result<Pending<String>> {
        let (model_id, path) = (self.model_id.clone(), Some(name.to_owned()));
        let SaveOptions { ttl_seconds, overwrite, user_metadata } = options;
        let body = move |seq_id| {
            let seq_id = Some(seq_id);
            SaveWeights { model_id, path, seq_id, ttl_seconds, overwrite, user_metadata }
        };
        let request_id = self.submit("/api/v1/save_weights", body).await?;
        Ok(self.pending(request_id, |saved: WeightsSaved| Ok(saved.path)))
    }

    /// Replaces the adapter by the one at `path`, and with `with_optimizer` the Adam moments; drops gradients.
    pub async fn load_state(&self, path: &str, with_optimizer: bool) -> Result<Pending<()>> {
        let (model_id, path) = (Some(self.model_id.clone()), path.to_owned());
        let body = move |seq_id| LoadWeights {
            path,
            optimizer: with_optimizer,
            model_id,
            seq_id: Some(seq_id),
            ..LoadWeights::default()
        };
        let request_id = self.submit("/api/v1/load_weights", body).await?;
        Ok(self.pending(request_id, |_: WeightsLoaded| Ok(())))
    }

    /// Saves the adapter for sampling under `name`; the result is the checkpoint's path.
    pub async fn save_weights_for_sampler(&self, name: &str, options: SaveOptions) -> Result<Pending<String>> {
        if options.overwrite {
            return Err(Error::InvalidArgument("a sampler checkpoint cannot be overwritten".to_owned()));
        }
        let request_id = self.publish(Some(name.to_owned()), None, options).await?;
        Ok(self.pending(request_id, |saved: WeightsSavedForSampler| {
            saved.path.ok_or_else(|| Error::malformed("save_weights_for_sampler", &"no `path`"))
        }))
    }

    /// Publishes the adapter as it is now, without a disk, and returns a client that samples from it. Later steps of this
    /// run do not change what that client samples from.
    pub async fn save_weights_and_get_sampling_client(&self) -> Result<SamplingClient> {
        let number = self.session.next_sampler();
        let request_id = self.publish(None, Some(number), SaveOptions::default()).await?;
        let session = self.session.clone();
        self.pending(request_id, |saved: WeightsSavedForSampler| {
            let id = saved.sampling_session_id;
            id.ok_or_else(|| Error::malformed("save_weights_for_sampler", &"no `sampling_session_id`"))
        })
        .await
        .map(|id| SamplingClient::new(session, id))
    }

    /// What the server knows about the run.
    pub async fn get_info(&self) -> Result<ModelInfo> {
        self.session.http.ask("/api/v1/get_info", &GetInfo { model_id: self.model_id.clone() }).await
    }

    async fn publish(&self, path: Option<String>, number: Option<u64>, options: SaveOptions) -> Result<String> {
        let model_id = self.model_id.clone();
        let SaveOptions { ttl_seconds, user_metadata, .. } = options;
        let body = move |seq_id| SaveWeightsForSampler {
            model_id,
            path,
            sampling_session_seq_id: number,
            kind: None,
            seq_id: Some(seq_id),
            ttl_seconds,
            user_metadata,
        };
        self.submit("/api/v1/save_weights_for_sampler", body).await
    }

    async fn forward_or_backward(
        &self,
        data: Vec<Datum>,
        loss: Loss,
        backward: bool,
    ) -> Result<Pending<ForwardBackwardOutcome>> {
        if data.is_empty() {
            return Err(Error::InvalidArgument("there is no datum to compute a loss of".to_owned()));
        }
        let chunks = chunking::split(data, &self.session.config);
        let model_id = self.model_id.clone();
        let request = move |chunk: Vec<Datum>, number: u64| {
            let content = ForwardBackwardContent { data: chunk, loss: loss.0.clone(), backward };
            let number = i32::try_from(number)
                .map_err(|_| Error::InvalidArgument("this run has used up its operation numbers".to_owned()))?;
            Ok(Request::protobuf("/api/v1/forward_backward", &content.to_proto(&model_id, number)))
        };
        let (session, next_sequence) = (self.session.clone(), self.next_sequence.clone());
        // In a task of its own: a caller that stops waiting must not leave a hole in the numbers.
        let submitted = tokio::spawn(async move {
            let mut next_sequence = next_sequence.lock_owned().await;
            let mut request_ids = Vec::with_capacity(chunks.len());
            for chunk in chunks {
                let request = request(chunk, *next_sequence)?;
                request_ids.push(send_numbered(&session, &request, &mut next_sequence).await?);
            }
            Ok(request_ids)
        });
        let request_ids: Vec<String> = submitted.await.map_err(ended)??;
        let (http, ids) = (self.session.http.clone(), request_ids.clone());
        Ok(Pending::new(request_ids, async move {
            let mut outcomes = Vec::with_capacity(ids.len());
            for id in &ids {
                let output: proto::ForwardBackwardOutput = pending::retrieve(&http, id, PROTOBUF).await?.protobuf()?;
                outcomes
                    .push(outcome_from_proto(&output).map_err(|error| Error::malformed("forward_backward", &error))?);
            }
            Ok(chunking::combine(outcomes))
        }))
    }

    /// Numbers an operation, submits it and returns its request id.
    async fn submit<B: serde::Serialize>(
        &self,
        path: &'static str,
        body: impl FnOnce(u64) -> B + Send + 'static,
    ) -> Result<String> {
        let (session, next_sequence) = (self.session.clone(), self.next_sequence.clone());
        // In a task of its own: a caller that stops waiting must not leave a hole in the numbers.
        let submitted = tokio::spawn(async move {
            let mut next_sequence = next_sequence.lock_owned().await;
            let request = Request::json(path, &body(*next_sequence))?;
            send_numbered(&session, &request, &mut next_sequence).await
        });
        submitted.await.map_err(ended)?
    }

    fn pending<R, T>(&self, request_id: String, convert: impl FnOnce(R) -> Result<T> + Send + 'static) -> Pending<T>
    where
        R: serde::de::DeserializeOwned + 'static,
        T: 'static,
    {
        let (http, id) = (self.session.http.clone(), request_id.clone());
        Pending::new(vec![request_id], async move { convert(pending::retrieve(&http, &id, JSON).await?.json()?) })
    }
}

/// Sends a numbered request. The number is used up even if the request is refused, as on the server.
async fn send_numbered(session: &Session, request: &Request, next_sequence: &mut u64) -> Result<String> {
    *next_sequence += 1;
    let accepted: Future = session.http.send(request).await?.decode(request.path())?;
    Ok(accepted.request_id)
}

/// A submitting task that did not end by itself.
fn ended(error: tokio::task::JoinError) -> Error {
    if error.is_panic() {
        std::panic::resume_unwind(error.into_panic());
    }
    Error::InvalidArgument("the async runtime is shutting down".to_owned())
}
