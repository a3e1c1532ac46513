//! Sampling from a base model, a checkpoint or a live run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;
use twinkle_core::call::{SampleExtras, SampleOutcome, SamplingParams, TargetTokens};
use twinkle_core::data::TokenIds;
use twinkle_core::wire::tinker::json::{CancelFuture, Future, ModelInput, Sample, TensorData, TensorNumbers};
use twinkle_core::wire::tinker::sampling::{outcome_from_proto, params_to_json};
use twinkle_core::wire::tinker::{PROTOBUF, proto};

use crate::error::{Error, Result};
use crate::http::Request;
use crate::pending::{self, Pending};
use crate::session::Session;

const ROUTE: &str = "/api/v1/asample";

/// A client that samples from fixed weights.
#[derive(Clone, Debug)]
pub struct SamplingClient {
    session: Arc<Session>,
    id: String,
    next_sequence: Arc<AtomicU64>,
}

impl SamplingClient {
    pub(crate) fn new(session: Arc<Session>, id: String) -> Self {
        Self { session, id, next_sequence: Arc::new(AtomicU64::new(0)) }
    }

    /// The sampling session's id.
    #[must_use]
    pub fn sampling_session_id(&self) -> &str {
        &self.id
    }

    /// Draws `num_samples` independent continuations of `prompt`. Returns when the server has accepted the request; many
    /// requests may be under way at the same time.
    pub async fn sample(
        &self,
        prompt: TokenIds,
        num_samples: u32,
        params: SamplingParams,
    ) -> Result<Pending<SampleOutcome>> {
        self.submit(prompt, num_samples, &params, false, SampleExtras::default()).await
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
        self.submit(prompt, num_samples, &params, prompt_logprobs, extras).await
    }

    /// Gives a sample up: the server stops working on it within one turn, and awaiting it fails.
    pub async fn cancel(&self, pending: &Pending<SampleOutcome>) -> Result<()> {
        for request_id in pending.request_ids() {
            let body = CancelFuture { request_id: request_id.clone() };
            self.session.http.send(&Request::json("/api/v1/cancel_future", &body)?).await?;
        }
        Ok(())
    }

    /// Per token of `prompt` its logprob given the tokens before it; the first has none.
    pub async fn compute_logprobs(&self, prompt: TokenIds) -> Result<Vec<Option<f32>>> {
        let one_token = SamplingParams::greedy(1);
        let outcome = self.submit(prompt, 1, &one_token, true, SampleExtras::default()).await?.await?;
        outcome.prompt_logprobs.ok_or_else(|| Error::malformed(ROUTE, &"no prompt logprobs"))
    }

    async fn submit(
        &self,
        prompt: TokenIds,
        num_samples: u32,
        params: &SamplingParams,
        prompt_logprobs: bool,
        extras: SampleExtras,
    ) -> Result<Pending<SampleOutcome>> {
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
        let request = Request::json(ROUTE, &body)?;
        let http = self.session.http.clone();
        let accepted: Future = http.send(&request).await?.decode(ROUTE)?;
        Ok(Pending::new(vec![accepted.request_id.clone()], async move {
            let mut request_id = accepted.request_id;
            let mut backoff = http.backoff();
            loop {
                match pending::retrieve(&http, &request_id, PROTOBUF).await {
                    Err(Error::Expired { .. }) => {}
                    result => {
                        let response: proto::SampleResponse = result?.protobuf()?;
                        return outcome_from_proto(&response).map_err(|error| Error::malformed(ROUTE, &error));
                    }
                }
                // Samples are not journaled: a restarted server has forgotten them, and they are simply asked for again.
                let Some(pause) = backoff.next(None) else { return Err(Error::Expired { request_id }) };
                warn!(request_id, "the server forgot a sampling request, submitting it again");
                tokio::time::sleep(pause).await;
                request_id = http.send(&request).await?.decode::<Future>(ROUTE)?.request_id;
            }
        }))
    }
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
