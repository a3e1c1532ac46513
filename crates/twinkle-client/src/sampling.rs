//! Sampling from a base model, a checkpoint or a live run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;
use twinkle_core::call::{SampleExtras, SampleOutcome, SamplingParams, TargetTokens};
use twinkle_core::data::TokenIds;
use twinkle_core::wire::tinker::json::{CancelFuture, Future, ModelInput, Sample, Sampler, TensorData, TensorNumbers};
use twinkle_core::wire::tinker::proto;
use twinkle_core::wire::tinker::sampling::{outcome_from_proto, params_to_json};

use crate::error::{Error, Result};
use crate::http::{self, Http};
use crate::pace::Pace;
use crate::pending::Pending;
use crate::request::Request;
use crate::retrieve;
use crate::retry;
use crate::session::Session;

const ROUTE: &str = "/api/v1/asample";

/// A client that samples from fixed weights.
#[derive(Clone, Debug)]
pub struct SamplingClient {
    session: Arc<Session>,
    id: String,
    next_sequence: Arc<AtomicU64>,
    pace: Arc<Pace>,
}

impl SamplingClient {
    pub(crate) fn new(session: Arc<Session>, id: String) -> Self {
        let pace = Arc::new(Pace::new(session.config.sample_max_concurrent_requests));
        Self { session, id, next_sequence: Arc::new(AtomicU64::new(0)), pace }
    }

    /// The sampling session's id.
    #[must_use]
    pub fn sampling_session_id(&self) -> &str {
        &self.id
    }

    /// Draws `num_samples` independent continuations of `prompt`. Returns when the server has accepted the request; many
    /// requests may be under way at the same time, and the server samples them together.
    ///
    /// A server that says "slow down" is obeyed for as long as it says so. A sample that a server lost in a restart is
    /// submitted again; with a `seed` it is the same sample.
    pub async fn sample(
        &self,
        prompt: TokenIds,
        num_samples: u32,
        params: SamplingParams,
    ) -> Result<Pending<SampleOutcome>> {
        self.sample_and_score(prompt, num_samples, params, false, SampleExtras::default()).await
    }

    /// [`Self::sample`] that also scores the prompt: `prompt_logprobs` for each of its own tokens, and what `extras` names.
    pub async fn sample_and_score(
        &self,
        prompt: TokenIds,
        num_samples: u32,
        params: SamplingParams,
        prompt_logprobs: bool,
        extras: SampleExtras,
    ) -> Result<Pending<SampleOutcome>> {
        self.submit(prompt, num_samples, &params, prompt_logprobs, extras, Ok).await
    }

    /// Per token of `prompt` its logprob given the tokens before it; the first has none.
    pub async fn compute_logprobs(&self, prompt: TokenIds) -> Result<Pending<Vec<Option<f32>>>> {
        let scores = |outcome: SampleOutcome| {
            outcome.prompt_logprobs.ok_or_else(|| Error::malformed(ROUTE, &"no prompt logprobs"))
        };
        self.submit(prompt, 1, &SamplingParams::greedy(1), true, SampleExtras::default(), scores).await
    }

    /// Gives a sample up: the server stops working on it within one turn, and awaiting it fails. Dropping the pending
    /// sample does the same where the server wants to know.
    pub async fn cancel<T>(&self, pending: &Pending<T>) -> Result<()> {
        for request_id in pending.request_ids() {
            self.session.http.send(&cancellation(request_id)?).await?;
        }
        Ok(())
    }

    /// The name of the base model that is sampled, with an adapter or without.
    pub async fn get_base_model(&self) -> Result<String> {
        let sampler: Sampler = self.session.http.get(format!("/api/v1/samplers/{}", self.id)).await?;
        Ok(sampler.base_model)
    }

    async fn submit<T: Send + 'static>(
        &self,
        prompt: TokenIds,
        num_samples: u32,
        params: &SamplingParams,
        prompt_logprobs: bool,
        extras: SampleExtras,
        convert: impl FnOnce(SampleOutcome) -> Result<T> + Send + 'static,
    ) -> Result<Pending<T>> {
        let wanted = |count: u32| (count > 0).then_some(count);
        let body = Sample {
            sampling_session_id: Some(self.id.clone()),
            seq_id: Some(self.next_sequence.fetch_add(1, Ordering::Relaxed)),
            num_samples,
            prompt: ModelInput::text(prompt),
            sampling_params: params_to_json(params),
            prompt_logprobs: Some(prompt_logprobs),
            topk_prompt_logprobs: wanted(extras.topk_prompt_logprobs),
            topk_sample_logprobs: wanted(extras.topk_sample_logprobs),
            target_prompt_logprobs: extras.target_prompt_logprobs.map(cells),
            prompt_alt_tokens_k: wanted(extras.prompt_alt_tokens_k),
            prompt_logprobs_last_n: extras.prompt_logprobs_last_n,
            record_stability_info: None,
        };
        let request = Request::json(ROUTE, &body)?.with_header("x-tinker-sampling-backpressure", "1");
        let seat = self.pace.enter().await;
        let request_id = send(&self.session.http, &self.pace, &request).await?;
        let (session, pace) = (self.session.clone(), self.pace.clone());
        let sample = UnderWay { session, request_id: request_id.clone(), seat, given_up: true };
        Ok(Pending::spawn(vec![request_id], |reporter| async move {
            let mut sample = sample;
            let http = sample.session.http.clone();
            let mut backoff = http.backoff();
            loop {
                let retrieved = retrieve::protobuf(&http, &sample.request_id, &reporter).await;
                match retrieved {
                    Err(Error::Expired { .. }) => {}
                    result => {
                        sample.given_up = false;
                        let response: proto::SampleResponse = result?;
                        return convert(
                            outcome_from_proto(&response).map_err(|error| Error::malformed(ROUTE, &error))?,
                        );
                    }
                }
                // Samples are not journaled: a restarted server has forgotten them, and they are simply asked for again.
                let Some(pause) = backoff.next(None) else {
                    return Err(Error::Expired { request_id: sample.request_id.clone() });
                };
                warn!(request_id = sample.request_id, "the server forgot a sampling request, submitting it again");
                tokio::time::sleep(pause).await;
                sample.request_id = send(&http, &pace, &request).await?;
            }
        }))
    }
}

/// Submits until the server takes it: "slow down" is obeyed for ever, other trouble for as long as the policy says.
async fn send(http: &Http, pace: &Pace, request: &Request) -> Result<String> {
    let key = http::idempotency_key();
    let mut backoff = http.backoff();
    loop {
        let permit = pace.submit().await;
        let (error, pause) = match http.attempt(request, Some(&key)).await {
            Ok(answer) if answer.is_success() => return Ok(answer.decode::<Future>(ROUTE)?.request_id),
            Ok(answer) if answer.status == 429 => {
                pace.slow_down(request.body.len(), retry::wish(&answer.headers));
                backoff.reset();
                continue;
            }
            Ok(answer) => (answer.rejection(), backoff.after(&answer)),
            Err(error) => (error, backoff.next(None)),
        };
        drop(permit);
        let Some(pause) = pause else { return Err(error) };
        warn!(%error, path = ROUTE, ?pause, "trying again");
        tokio::time::sleep(pause).await;
    }
}

/// A sample that the server works on. Dropped before its result is there, it is cancelled.
struct UnderWay {
    session: Arc<Session>,
    request_id: String,
    #[expect(dead_code, reason = "what counts is how long it lives")]
    seat: Option<OwnedSemaphorePermit>,
    given_up: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.given_up || !self.session.cancels_samples {
            return;
        }
        let (Ok(runtime), Ok(request)) = (tokio::runtime::Handle::try_current(), cancellation(&self.request_id)) else {
            return;
        };
        let http = self.session.http.clone();
        // Once: a cancellation that is lost costs the server a sample.
        runtime.spawn(async move { http.attempt(&request, None).await.map(drop) });
    }
}

fn cancellation(request_id: &str) -> Result<Request> {
    Request::json("/api/v1/cancel_future", &CancelFuture { request_id: request_id.to_owned() })
}

/// Target tokens on the wire: a matrix in which -1 is skipped.
fn cells(targets: TargetTokens) -> TensorData {
    let TargetTokens { layout, cells } = targets;
    let numbers =
        |places: Vec<usize>| places.into_iter().map(|place| i64::try_from(place).unwrap_or(i64::MAX)).collect();
    let (rows, columns) = layout.sparse.map(|sparse| (sparse.row_starts, sparse.columns)).unzip();
    TensorData {
        data: TensorNumbers::Int64(cells.into_iter().map(|cell| cell.map_or(-1, i64::from)).collect()),
        shape: Some(numbers(vec![layout.rows, layout.columns])),
        sparse_crow_indices: rows.map(numbers),
        sparse_col_indices: columns.map(numbers),
    }
}
