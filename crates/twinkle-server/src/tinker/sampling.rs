//! Sampling sessions and samples.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use sha2::{Digest, Sha256};
use tracing::Instrument;
use twinkle_core::call::{Call, Operation, Reply, SampleRequest, SamplingSource, ServeOutcome, ServeRequest};
use twinkle_core::component::BoxComponent;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::futures::{Outcome, Parties, Waited};
use twinkle_core::ids::{CheckpointPath, RequestId, SamplingSessionId, SessionId, TenantId};
use twinkle_core::telemetry::trace::Origin;
use twinkle_core::wire::tinker::json::{self, CreateSamplingSession, Sample, Sampler, SamplingSessionCreated, Tag};
use twinkle_core::wire::tinker::sampling::params;
use twinkle_core::wire::tinker::scores::extras;

use super::body::RawBody;
use super::completions::stream_of;
use super::operations::future;
use super::reply::{Answer, ok};
use super::retrieve::is_turned_away;
use super::session::path;
use super::{Front, Tenant, unexpected};

/// Most continuations of one prompt.
const MAX_SAMPLES: u32 = 1024;

/// What tells one sampling request from another: a client sends the same again when an answer is lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SampleKey {
    tenant: TenantId,
    session: SamplingSessionId,
    number: u64,
    body: [u8; 32],
}

/// `POST create_sampling_session`
pub(super) async fn create_session(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: CreateSamplingSession = body.json().await?;
    let session = front.open_session(&tenant, SessionId::new(wanted.session_id)).await?;
    let (source, base_model) = match (wanted.model_path, wanted.base_model) {
        (Some(text), named) => {
            let path = CheckpointPath::parse(&text)?;
            let checkpoint = front.checkpoint(&tenant, path.clone()).await?;
            if let Some(named) = named
                && named != checkpoint.base_model
            {
                let text = format!("`{path}` is of base model `{}`, not `{named}`", checkpoint.base_model);
                return Err(Error::invalid(text).into());
            }
            (SamplingSource::Checkpoint(path), checkpoint.base_model)
        }
        (None, Some(base_model)) => (SamplingSource::Base, base_model),
        (None, None) => {
            return Err(Error::invalid("neither `base_model` nor `model_path` is given")
                .hint("name what to sample from")
                .into());
        }
    };
    front.context.directory.sampler(&base_model)?;
    let request = ServeRequest::CreateSamplingSession {
        session,
        number: wanted.sampling_session_seq_id,
        base_model: Some(base_model),
        source,
    };
    match front.serve(&tenant, request).await? {
        ServeOutcome::SamplingSession(record) => ok(&SamplingSessionCreated {
            kind: Tag::new("create_sampling_session"),
            sampling_session_id: record.id.as_str().to_owned(),
        }),
        other => Err(unexpected("the server component", &other).into()),
    }
}

/// `GET samplers/{id}`
pub(super) async fn describe(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    sampler: std::result::Result<Path<String>, PathRejection>,
) -> Answer {
    let record = front.sampling_session(&tenant, SamplingSessionId::new(path(sampler)?)).await?;
    ok(&Sampler {
        sampler_id: record.id.as_str().to_owned(),
        base_model: record.base_model,
        model_path: match record.source {
            SamplingSource::Checkpoint(path) | SamplingSource::Shared { path, .. } => Some(path.to_string()),
            SamplingSource::Base | SamplingSource::Live(_) => None,
        },
    })
}

/// `POST asample`
pub(super) async fn sample(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: Sample = body.json().await?;
    let Some(id) = wanted.sampling_session_id.clone().map(SamplingSessionId::new) else {
        return Err(Error::invalid("`sampling_session_id` is missing").hint("create a sampling session first").into());
    };
    let record = front.sampling_session(&tenant, id.clone()).await?;
    if let SamplingSource::Shared { path, .. } = &record.source {
        // Its owner may have taken it back meanwhile.
        front.checkpoint(&tenant, path.clone()).await?;
    }
    let sampler = front.context.directory.sampler(&record.base_model)?;
    let count = wanted.num_samples;
    let stream = wanted.seq_id.map(|number| stream_of(&tenant, &id, number));
    let key = wanted.seq_id.map(|number| {
        Arc::new(SampleKey { tenant: tenant.clone(), session: id, number, body: Sha256::digest(&body.bytes).into() })
    });
    if let Some(request) = front.remembered(&tenant, key.as_ref()).await {
        return ok(&sampled(&request, count));
    }
    let parties = Parties { stream, worker: Some(sampler.clone()) };
    let request = match sample_request(wanted, record.source) {
        Ok(request) => front.start(&tenant, &parties, sampler, request)?,
        Err(error) => front.context.futures.spawn_for(&tenant, "sample", &parties, async move { Err(error) })?,
    };
    if let Some(stream) = &parties.stream {
        front.context.futures.note(&request, stream).await;
    }
    if let Some(key) = key {
        front.samples.requests.insert(key, request.clone());
    }
    ok(&sampled(&request, count))
}

impl Front {
    /// The request that was sent before under this key, if its result is still there. One that was turned away is not
    /// remembered: sent again, it gets another chance.
    async fn remembered(&self, tenant: &TenantId, key: Option<&Arc<SampleKey>>) -> Option<RequestId> {
        let request = self.samples.requests.get(key?)?;
        let waited = self.context.futures.wait(tenant, &request, Duration::ZERO).await;
        match waited {
            Waited::Unknown => None,
            Waited::Done(outcome) if outcome.as_ref().as_ref().is_err_and(is_turned_away) => None,
            Waited::Done(_) | Waited::Pending => Some(request),
        }
    }

    /// Hands a request to the sampler. One that is turned away at once, because a queue is full or a quota
    /// used up, is answered 429: the SDK slows down and sends it again.
    fn start(
        &self,
        tenant: &TenantId,
        parties: &Parties,
        sampler: &BoxComponent,
        request: SampleRequest,
    ) -> Result<RequestId> {
        let sampler = sampler.clone();
        let call = Call { tenant: tenant.clone(), operation: Operation::Sample(Box::new(request)) };
        let answer = async move {
            match sampler.ask(call).await? {
                Reply::Sample(outcome) => Ok(Outcome::Sample(outcome)),
                other => Err(unexpected("the sampler component", &other)),
            }
        };
        // It outlives this request, but belongs to it.
        let mut answer = Box::pin(Origin::current().surround(answer.in_current_span()));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let futures = &self.context.futures;
        let request = match answer.as_mut().poll(&mut context) {
            Poll::Ready(Err(error)) if !error.code.is_users_fault() => return Err(back_pressure(error)),
            Poll::Ready(outcome) => futures.spawn_for(tenant, "sample", parties, async move { outcome }),
            Poll::Pending => futures.spawn_for(tenant, "sample", parties, answer),
        };
        request.map_err(back_pressure)
    }
}

/// Full queues are told to the SDK in the way it slows down for.
fn back_pressure(error: Error) -> Error {
    match error.code {
        ErrorCode::Overloaded => Error { code: ErrorCode::QuotaExceeded, ..error },
        _ => error,
    }
}

/// The answer to an accepted sampling request.
fn sampled(request: &RequestId, count: u32) -> json::Future {
    let ids = (0..count.min(MAX_SAMPLES)).map(|index| format!("{request}:{index}")).collect();
    json::Future { sample_sequence_ids: Some(ids), ..future(request, None) }
}

fn sample_request(wanted: Sample, source: SamplingSource) -> Result<SampleRequest> {
    if wanted.record_stability_info == Some(true) {
        // Nothing would be recorded, and the one loss that reads it is not served.
        return Err(Error::unsupported("`record_stability_info` is not supported").hint(
            "it serves the loss `stable_reinforce`, which this server does not have; create the sampler without it",
        ));
    }
    let extras = extras(&wanted)?;
    if wanted.num_samples == 0 || wanted.num_samples > MAX_SAMPLES {
        return Err(Error::invalid(format!("`num_samples` {} is not between 1 and {MAX_SAMPLES}", wanted.num_samples)));
    }
    let prompt = wanted.prompt.into_tokens()?;
    if prompt.is_empty() {
        return Err(Error::invalid("the prompt is empty").hint("send at least one token"));
    }
    Ok(SampleRequest {
        num_samples: wanted.num_samples,
        prompt_logprobs: wanted.prompt_logprobs.unwrap_or(false),
        extras,
        ..SampleRequest::new(source, prompt, params(wanted.sampling_params)?)
    })
}
