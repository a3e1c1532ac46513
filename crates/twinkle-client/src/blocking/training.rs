//! A training run.

use std::collections::BTreeMap;

use twinkle_core::call::{AdamParams, ForwardBackwardOutcome, Logprobs};
use twinkle_core::data::Datum;
use twinkle_core::wire::tinker::json::ModelInfo;

use super::runtime::{Pending, Runtime};
use super::sampling::SamplingClient;
use crate::data::Loss;
use crate::error::Result;
use crate::options::{SaveOptions, Weights};
use crate::passes::Objective;

/// A client of one training run: [`crate::TrainingClient`] that waits until an operation is accepted.
#[derive(Clone, Debug)]
pub struct TrainingClient {
    inner: crate::TrainingClient,
    runtime: Runtime,
}

impl TrainingClient {
    pub(super) const fn new(inner: crate::TrainingClient, runtime: Runtime) -> Self {
        Self { inner, runtime }
    }

    /// The run's id.
    #[must_use]
    pub fn model_id(&self) -> &str {
        self.inner.model_id()
    }

    /// [`crate::TrainingClient::forward`].
    pub fn forward(&self, data: Vec<Datum>, loss: impl Into<Loss>) -> Result<Pending<ForwardBackwardOutcome>> {
        self.runtime.submit(self.inner.forward(data, loss))
    }

    /// [`crate::TrainingClient::forward_backward`].
    pub fn forward_backward(&self, data: Vec<Datum>, loss: impl Into<Loss>) -> Result<Pending<ForwardBackwardOutcome>> {
        self.runtime.submit(self.inner.forward_backward(data, loss))
    }

    /// [`crate::TrainingClient::forward_backward_custom`]; `objective` runs on the façade's own thread.
    pub fn forward_backward_custom(
        &self,
        data: Vec<Datum>,
        objective: impl FnOnce(&[Logprobs]) -> Result<Objective> + Send + 'static,
    ) -> Result<Pending<ForwardBackwardOutcome>> {
        self.runtime.submit(self.inner.forward_backward_custom(data, objective))
    }

    /// [`crate::TrainingClient::optim_step`].
    pub fn optim_step(&self, params: AdamParams) -> Result<Pending<BTreeMap<String, f64>>> {
        self.runtime.submit(self.inner.optim_step(params))
    }

    /// [`crate::TrainingClient::save_state`].
    pub fn save_state(&self, save: impl Into<SaveOptions>) -> Result<Pending<String>> {
        self.runtime.submit(self.inner.save_state(save))
    }

    /// [`crate::TrainingClient::load_state`].
    pub fn load_state(&self, path: &str) -> Result<Pending<()>> {
        self.runtime.submit(self.inner.load_state(path))
    }

    /// [`crate::TrainingClient::load_state_with_optimizer`].
    pub fn load_state_with_optimizer(&self, path: &str) -> Result<Pending<()>> {
        self.runtime.submit(self.inner.load_state_with_optimizer(path))
    }

    /// [`crate::TrainingClient::save_weights_for_sampler`].
    pub fn save_weights_for_sampler(&self, save: impl Into<SaveOptions>) -> Result<Pending<String>> {
        self.runtime.submit(self.inner.save_weights_for_sampler(save))
    }

    /// [`crate::TrainingClient::save_weights_external`].
    pub fn save_weights_external(
        &self,
        save: impl Into<SaveOptions>,
        recipients: Vec<String>,
    ) -> Result<Pending<String>> {
        self.runtime.submit(self.inner.save_weights_external(save, recipients))
    }

    /// [`crate::TrainingClient::save_weights_and_get_sampling_client`].
    pub fn save_weights_and_get_sampling_client(&self) -> Result<SamplingClient> {
        let inner = self.runtime.wait(self.inner.save_weights_and_get_sampling_client())?;
        Ok(SamplingClient::new(inner, self.runtime.clone()))
    }

    /// [`crate::TrainingClient::create_sampling_client`].
    pub fn create_sampling_client(&self, weights: impl Into<Weights>) -> Result<SamplingClient> {
        let inner = self.runtime.wait(self.inner.create_sampling_client(weights))?;
        Ok(SamplingClient::new(inner, self.runtime.clone()))
    }

    /// [`crate::TrainingClient::get_info`].
    pub fn get_info(&self) -> Result<ModelInfo> {
        self.runtime.wait(self.inner.get_info())
    }

    /// [`crate::TrainingClient::unload_model`].
    pub fn unload_model(self) -> Result<()> {
        self.runtime.wait(self.inner.unload_model())
    }
}
