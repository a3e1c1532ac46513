//! Sampling.

use twinkle_core::call::{SampleExtras, SampleOutcome, SamplingParams};
use twinkle_core::data::TokenIds;

use super::runtime::{Pending, Runtime};
use crate::error::Result;

/// A client that samples from fixed weights: [`crate::SamplingClient`] that waits until a sample is accepted.
#[derive(Clone, Debug)]
pub struct SamplingClient {
    inner: crate::SamplingClient,
    runtime: Runtime,
}

impl SamplingClient {
    pub(super) const fn new(inner: crate::SamplingClient, runtime: Runtime) -> Self {
        Self { inner, runtime }
    }

    /// The sampling session's id.
    #[must_use]
    pub fn sampling_session_id(&self) -> &str {
        self.inner.sampling_session_id()
    }

    /// [`crate::SamplingClient::sample`].
    pub fn sample(&self, prompt: TokenIds, num_samples: u32, params: SamplingParams) -> Result<Pending<SampleOutcome>> {
        self.runtime.submit(self.inner.sample(prompt, num_samples, params))
    }

    /// [`crate::SamplingClient::sample_and_score`].
    pub fn sample_and_score(
        &self,
        prompt: TokenIds,
        num_samples: u32,
        params: SamplingParams,
        prompt_logprobs: bool,
        extras: SampleExtras,
    ) -> Result<Pending<SampleOutcome>> {
        self.runtime.submit(self.inner.sample_and_score(prompt, num_samples, params, prompt_logprobs, extras))
    }

    /// [`crate::SamplingClient::compute_logprobs`].
    pub fn compute_logprobs(&self, prompt: TokenIds) -> Result<Pending<Vec<Option<f32>>>> {
        self.runtime.submit(self.inner.compute_logprobs(prompt))
    }

    /// [`crate::SamplingClient::cancel`].
    pub fn cancel<T>(&self, pending: &Pending<T>) -> Result<()> {
        self.runtime.wait(self.inner.cancel(&pending.pending))
    }

    /// [`crate::SamplingClient::get_base_model`].
    pub fn get_base_model(&self) -> Result<String> {
        self.runtime.wait(self.inner.get_base_model())
    }
}
