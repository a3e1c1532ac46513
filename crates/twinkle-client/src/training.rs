//! A training run: numbered operations, submitted at once and awaited later.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use twinkle_core::call::{AdamParams, ForwardBackwardOutcome, Logprobs};
use twinkle_core::data::Datum;
use twinkle_core::wire::tinker::json::{
    Future as Accepted, GetInfo, LoadWeights, ModelInfo, ModelRequest, ModelUnloaded, OptimStep, OptimStepOutput,
    SaveWeights, SaveWeightsExternal, SaveWeightsForSampler, WeightsLoaded, WeightsSaved, WeightsSavedForSampler,
};

use crate::data::Loss;
use crate::error::{Error, Result};
use crate::options::{SaveOptions, Weights};
use crate::passes::{self, Numbers, Objective, Pass};
use crate::pending::{Pending, ended_early};
use crate::request::Request;
use crate::retrieve;
use crate::sampling::SamplingClient;
use crate::service::create_sampling_client;
use crate::session::Session;

/// A client of one training run.
///
/// Its methods number their operation, submit it and return when the server has accepted it for good; the result is
/// awaited separately. The server executes operations in the order of their numbers, so a loop may submit a
/// forward-backward and the optimizer step that follows before it awaits either. Copies of a client share its numbers.
#[derive(Clone, Debug)]
pub struct TrainingClient {
    session: Arc<Session>,
    model_id: String,
    /// The number of the next operation. Held while submitting, so that numbers arrive in order.
    next_sequence: Arc<Mutex<u64>>,
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

    /// Loss and logprobs of `data`, without touching gradients. `loss` is a name, or a [`Loss`] with settings.
    pub async fn forward(&self, data: Vec<Datum>, loss: impl Into<Loss>) -> Result<Pending<ForwardBackwardOutcome>> {
        self.pass(data, loss.into(), false).await
    }

    /// Loss and logprobs of `data`; the gradient of the loss, summed over all tokens, is added to the run's accumulators.
    /// `loss` is a name, or a [`Loss`] with settings.
    ///
    /// A batch that is larger than one request may be goes in several, whose results become one again: losses are sums.
    pub async fn forward_backward(
        &self,
        data: Vec<Datum>,
        loss: impl Into<Loss>,
    ) -> Result<Pending<ForwardBackwardOutcome>> {
        self.pass(data, loss.into(), true).await
    }

    /// Trains on any objective `C` of the logprobs, with an exact gradient: the server computes the logprobs of `data`,
    /// `objective` returns `C` and its derivatives by each of them, and the server takes these derivatives back to the
    /// weights, as the weights of a `cross_entropy`.
    ///
    /// Returns when the backward pass is submitted, so an optimizer step may follow at once. In the result's metrics
    /// `loss:sum` is `C`, and `surrogate_loss:sum` is the sum the server differentiated. When `objective` fails nothing is
    /// accumulated.
    pub async fn forward_backward_custom(
        &self,
        data: Vec<Datum>,
        objective: impl FnOnce(&[Logprobs]) -> Result<Objective> + Send + 'static,
    ) -> Result<Pending<ForwardBackwardOutcome>> {
        let (session, model_id) = (self.session.clone(), self.model_id.clone());
        let (value, submitted) = self
            .in_turn(move |mut numbers| async move {
                let forward = Pass { data: passes::targets_only(&data), loss: Loss::cross_entropy(), backward: false };
                let forward = forward.submit(&session, &model_id, &mut numbers).await?;
                let logprobs = passes::pending(&session.http, forward).await?.logprobs;
                let Objective { value, derivatives } = objective(&logprobs)?;
                let data = passes::with_derivatives(data, &logprobs, &derivatives)?;
                let backward = Pass { data, loss: Loss::cross_entropy(), backward: true };
                Ok((value, backward.submit(&session, &model_id, &mut numbers).await?))
            })
            .await?;
        let (http, ids) = (self.session.http.clone(), submitted.clone());
        Ok(Pending::spawn(submitted, |reporter| async move {
            let mut outcome = passes::results(&http, &ids, &reporter).await?;
            if let Some(surrogate) = outcome.metrics.insert("loss:sum".to_owned(), value) {
                outcome.metrics.insert("surrogate_loss:sum".to_owned(), surrogate);
            }
            Ok(outcome)
        }))
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

    /// Saves adapter, optimizer and counters under a name; the result is the checkpoint's path.
    pub async fn save_state(&self, save: impl Into<SaveOptions>) -> Result<Pending<String>> {
        let model_id = self.model_id.clone();
        let SaveOptions { name, ttl_seconds, overwrite, user_metadata } = save.into();
        let body = move |seq_id| {
            let (path, seq_id) = (Some(name), Some(seq_id));
            SaveWeights { model_id, path, seq_id, ttl_seconds, overwrite, user_metadata }
        };
        let request_id = self.submit("/api/v1/save_weights", body).await?;
        Ok(self.pending(request_id, |saved: WeightsSaved| Ok(saved.path)))
    }

    /// Replaces the adapter by the one at `path`, with a fresh optimizer; drops gradients.
    pub async fn load_state(&self, path: &str) -> Result<Pending<()>> {
        self.load(path, false).await
    }

    /// [`Self::load_state`] with the Adam moments and the step count that were saved.
    pub async fn load_state_with_optimizer(&self, path: &str) -> Result<Pending<()>> {
        self.load(path, true).await
    }

    /// Saves the adapter for sampling under a name; the result is the checkpoint's path.
    pub async fn save_weights_for_sampler(&self, save: impl Into<SaveOptions>) -> Result<Pending<String>> {
        let save = save.into();
        if save.overwrite {
            return Err(Error::InvalidArgument("a sampler checkpoint cannot be overwritten".to_owned()));
        }
        let request_id = self.publish(Some(save.name), None, save.ttl_seconds, save.user_metadata).await?;
        Ok(self.pending(request_id, |saved: WeightsSavedForSampler| {
            saved.path.ok_or_else(|| Error::malformed("save_weights_for_sampler", &"no `path`"))
        }))
    }

    /// Publishes the adapter as it is now, without a disk, and returns a client that samples from it. Later steps of this
    /// run do not change what that client samples from.
    pub async fn save_weights_and_get_sampling_client(&self) -> Result<SamplingClient> {
        let number = self.session.next_sampler();
        let request_id = self.publish(None, Some(number), None, BTreeMap::new()).await?;
        let session = self.session.clone();
        self.pending(request_id, |saved: WeightsSavedForSampler| {
            let id = saved.sampling_session_id;
            id.ok_or_else(|| Error::malformed("save_weights_for_sampler", &"no `sampling_session_id`"))
        })
        .await
        .map(|id| SamplingClient::new(session, id))
    }

    /// Writes the adapter as PEFT files to be downloaded
    /// ([`RestClient::download_external_weights`](crate::RestClient::download_external_weights)); the result is the
    /// checkpoint's path. With `recipients` every file is encrypted for them, in the form of `age`.
    pub async fn save_weights_external(
        &self,
        save: impl Into<SaveOptions>,
        recipients: Vec<String>,
    ) -> Result<Pending<String>> {
        let save = save.into();
        if save.overwrite || !save.user_metadata.is_empty() {
            let message = "external weights cannot be overwritten and have no notes";
            return Err(Error::InvalidArgument(message.to_owned()));
        }
        let model_id = self.model_id.clone();
        let body = move |seq_id| SaveWeightsExternal {
            model_id,
            path: Some(save.name),
            seq_id: Some(seq_id),
            ttl_seconds: save.ttl_seconds,
            age_encryption_recipients: (!recipients.is_empty()).then_some(recipients),
        };
        let request_id = self.submit("/api/v1/save_weights_external", body).await?;
        Ok(self.pending(request_id, |saved: WeightsSaved| Ok(saved.path)))
    }

    /// A client that samples from `weights`, in the session of this run.
    pub async fn create_sampling_client(&self, weights: impl Into<Weights>) -> Result<SamplingClient> {
        create_sampling_client(&self.session, weights.into()).await
    }

    /// What the server knows about the run.
    pub async fn get_info(&self) -> Result<ModelInfo> {
        self.session.http.ask("/api/v1/get_info", &GetInfo { model_id: self.model_id.clone() }).await
    }

    /// Frees the run's memory on the server, after everything that was submitted before. Its checkpoints stay.
    pub async fn unload_model(self) -> Result<()> {
        let body = ModelRequest { model_id: self.model_id.clone() };
        let accepted: Accepted = self.session.http.ask("/api/v1/unload_model", &body).await?;
        self.pending(accepted.request_id, |_: ModelUnloaded| Ok(())).await
    }

    async fn load(&self, path: &str, with_optimizer: bool) -> Result<Pending<()>> {
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

    async fn publish(
        &self,
        path: Option<String>,
        number: Option<u64>,
        ttl_seconds: Option<u64>,
        user_metadata: BTreeMap<String, String>,
    ) -> Result<String> {
        let model_id = self.model_id.clone();
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

    async fn pass(&self, data: Vec<Datum>, loss: Loss, backward: bool) -> Result<Pending<ForwardBackwardOutcome>> {
        let (session, model_id) = (self.session.clone(), self.model_id.clone());
        let pass = Pass { data, loss, backward };
        let submit = move |mut numbers| async move { pass.submit(&session, &model_id, &mut numbers).await };
        let submitted = self.in_turn(submit).await?;
        Ok(passes::pending(&self.session.http, submitted))
    }

    /// Numbers an operation, submits it and returns its request id.
    async fn submit<B: Serialize>(
        &self,
        path: &'static str,
        body: impl FnOnce(u64) -> B + Send + 'static,
    ) -> Result<String> {
        let session = self.session.clone();
        self.in_turn(move |mut numbers| async move {
            let request = Request::json(path, &body(numbers.take()))?;
            let accepted: Accepted = session.http.send(&request).await?.decode(path)?;
            Ok(accepted.request_id)
        })
        .await
    }

    /// Does `work` with the next numbers while nobody else takes one.
    async fn in_turn<T, F>(&self, work: impl FnOnce(Numbers) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let next_sequence = self.next_sequence.clone();
        // In a task of its own: a caller that stops waiting must not leave a hole in the numbers.
        let task = tokio::spawn(async move { work(Numbers(next_sequence.lock_owned().await)).await });
        task.await.map_err(ended_early)?
    }

    fn pending<R, T>(&self, request_id: String, convert: impl FnOnce(R) -> Result<T> + Send + 'static) -> Pending<T>
    where
        R: DeserializeOwned + Send + 'static,
        T: Send + 'static,
    {
        let (http, id) = (self.session.http.clone(), request_id.clone());
        Pending::spawn(
            vec![request_id],
            |reporter| async move { convert(retrieve::json(&http, &id, &reporter).await?) },
        )
    }
}
