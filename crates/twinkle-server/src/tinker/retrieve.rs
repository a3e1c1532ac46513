//! `POST retrieve_future`: results, by long polling.
//!
//! A result stays for later polls after it was delivered, because the answer may have been lost on its way.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use twinkle_core::call::{RunOutcome, SamplerTarget};
use twinkle_core::component::BoxComponent;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::futures::{Outcome, Waited, unknown};
use twinkle_core::ids::{CheckpointKind, RequestId};
use twinkle_core::wire::tinker::json::{
    CompleteMetadata, CustomLossCreated, ModelCreated, ModelUnloaded, OptimStepOutput, Pending, RequestFailed,
    RetrieveFuture, Tag, WeightsLoaded, WeightsSaved, WeightsSavedForSampler,
};
use twinkle_core::wire::tinker::{PROTOBUF, sampling, training};

use super::body::{RawBody, off_runtime};
use super::reply::{Answer, json, protobuf};
use super::{Front, Tenant};

/// How long a poll is held. The SDK gives up after 45 s and asks again at once.
pub(super) const HOLD: Duration = Duration::from_secs(25);

/// From this size on a client that says so is told a result's size first, so that it can bound what it holds at once.
const BIG: usize = 256 << 10;

/// How much longer a result is as text.
const TEXT: usize = 3;

/// `POST retrieve_future`
pub(super) async fn retrieve(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    body: RawBody,
) -> Answer {
    let poll: RetrieveFuture = body.json().await?;
    let request = RequestId::new(poll.request_id);
    let waited = tokio::select! {
        // A result that is there goes out, although the node stops.
        biased;
        waited = front.context.futures.wait(&tenant, &request, HOLD) => waited,
        () = front.context.stopping.cancelled() => Waited::Pending,
    };
    let futures = &front.context.futures;
    let outcome = match waited {
        Waited::Pending => return Ok(pending(futures.worker(&tenant, &request).as_ref())?),
        Waited::Unknown => return Err(unknown(&request).into()),
        Waited::Done(outcome) => outcome,
    };
    let size = match &*outcome {
        Ok(outcome) => outcome.bytes(),
        Err(error) => {
            futures.fetched(&request);
            return Ok(failure(&request, error)?);
        }
    };
    if poll.allow_metadata_only && size >= BIG {
        return Ok(metadata(&request, size)?);
    }
    futures.fetched(&request);
    let form = Form::of(&headers);
    Ok(off_runtime(TEXT * size, move || match &*outcome {
        Ok(outcome) => result(outcome, form),
        Err(error) => failure(&request, error),
    })
    .await??)
}

/// In which form a client wants its result.
#[derive(Clone, Copy, Debug)]
struct Form {
    takes_protobuf: bool,
    /// A model made by loading a checkpoint is awaited as the result of a load.
    is_load: bool,
}

impl Form {
    fn of(headers: &HeaderMap) -> Self {
        let texts = |name| headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        Self {
            takes_protobuf: texts(ACCEPT.as_str()).any(|accept| accept.contains(PROTOBUF)),
            is_load: texts("x-tinker-request-type").any(|kind| kind == "LoadWeights"),
        }
    }
}

/// Still pending: the SDK asks again at once, silently, and logs why now and then.
fn pending(worker: Option<&BoxComponent>) -> Result<Response> {
    let waiting = worker.and_then(|worker| worker.status()["samples_waiting"].as_u64()).unwrap_or_default();
    let (queue_state, queue_state_reason) = match waiting {
        0 => ("active", None),
        waiting => ("paused_capacity", Some(format!("{waiting} samples wait for a place in the engine"))),
    };
    json(StatusCode::REQUEST_TIMEOUT, &Pending { queue_state: queue_state.to_owned(), queue_state_reason })
}

/// There is a result, but it is big: the client makes room and asks again.
fn metadata(request: &RequestId, bytes: usize) -> Result<Response> {
    let metadata = CompleteMetadata {
        status: Tag::new("complete_metadata"),
        request_id: request.as_str().to_owned(),
        response_payload_size: bytes as u64,
    };
    json(StatusCode::OK, &metadata)
}

/// Whether a request was not executed and would be if it were sent again.
pub(super) fn is_turned_away(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::Overloaded | ErrorCode::QuotaExceeded | ErrorCode::Draining | ErrorCode::Interrupted
    )
}

/// A failed request. A sample that was turned away for want of room is submitted again by the SDK on 410.
fn failure(request: &RequestId, error: &Error) -> Result<Response> {
    if is_turned_away(error) && request.is_ephemeral() {
        return Err(Error { code: ErrorCode::Gone, ..error.clone() });
    }
    let category = if error.code.is_users_fault() { "user" } else { "server" };
    json(StatusCode::OK, &RequestFailed { error: error.to_string(), category: category.to_owned() })
}

/// Bulky results are protobuf for clients that take it, and these take nothing else. Others are always JSON.
fn result(outcome: &Outcome, form: Form) -> Result<Response> {
    match outcome {
        Outcome::Sample(outcome) if form.takes_protobuf => Ok(protobuf(&sampling::outcome_to_proto(outcome))),
        Outcome::Sample(outcome) => json(StatusCode::OK, &sampling::outcome_to_json(outcome)),
        Outcome::Run(RunOutcome::ForwardBackward(outcome)) if form.takes_protobuf => {
            Ok(protobuf(&training::outcome_to_proto(outcome)))
        }
        Outcome::Run(RunOutcome::ForwardBackward(outcome)) => json(StatusCode::OK, &training::outcome_to_json(outcome)),
        Outcome::CustomLoss(id) => {
            let kind = Tag::new("create_custom_loss");
            json(StatusCode::OK, &CustomLossCreated { loss_id: id.as_str().to_owned(), kind })
        }
        Outcome::Run(outcome) => plain(outcome, form),
    }
}

fn plain(outcome: &RunOutcome, form: Form) -> Result<Response> {
    match outcome {
        RunOutcome::Created { run } if form.is_load => {
            let loaded =
                WeightsLoaded { path: None, model_id: Some(run.as_str().to_owned()), kind: Tag::new("load_weights") };
            json(StatusCode::OK, &loaded)
        }
        RunOutcome::Created { run } => {
            json(StatusCode::OK, &ModelCreated { model_id: run.as_str().to_owned(), kind: Tag::new("create_model") })
        }
        RunOutcome::OptimStep { metrics } => json(StatusCode::OK, &OptimStepOutput { metrics: metrics.clone() }),
        RunOutcome::Saved { path } => {
            let kind =
                if path.kind == CheckpointKind::ExternalWeights { "save_weights_external" } else { "save_weights" };
            json(StatusCode::OK, &WeightsSaved { path: path.to_string(), kind: Tag::new(kind) })
        }
        RunOutcome::SavedForSampler { target } => {
            let (path, session) = match target {
                SamplerTarget::Checkpoint(path) => (Some(path.to_string()), None),
                SamplerTarget::Live(session) | SamplerTarget::Inflight { session, .. } => {
                    (None, Some(session.as_str().to_owned()))
                }
            };
            let kind = Tag::new("save_weights_for_sampler");
            json(StatusCode::OK, &WeightsSavedForSampler { path, sampling_session_id: session, kind })
        }
        RunOutcome::Loaded { run, path, .. } => {
            let loaded = WeightsLoaded {
                path: Some(path.to_string()),
                model_id: Some(run.as_str().to_owned()),
                kind: Tag::new("load_weights"),
            };
            json(StatusCode::OK, &loaded)
        }
        RunOutcome::Unloaded { run } => {
            json(StatusCode::OK, &ModelUnloaded { model_id: run.as_str().to_owned(), kind: Tag::new("unload_model") })
        }
        RunOutcome::ForwardBackward(_)
        | RunOutcome::OptimizerSet { .. }
        | RunOutcome::Restored { .. }
        | RunOutcome::Described(_)
        | RunOutcome::Expired { .. }
        | RunOutcome::Spilled { .. } => Err(Error::internal("an internal operation was asked for by a client")),
    }
}
