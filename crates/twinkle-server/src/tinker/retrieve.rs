//! `POST retrieve_future`: results, by long polling.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use twinkle_core::call::{RunOutcome, SamplerTarget};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::futures::{Outcome, Waited, unknown};
use twinkle_core::ids::RequestId;
use twinkle_core::wire::tinker::json::{
    ModelCreated, ModelUnloaded, OptimStepOutput, Pending, RequestFailed, RetrieveFuture, Tag, WeightsLoaded,
    WeightsSaved, WeightsSavedForSampler,
};
use twinkle_core::wire::tinker::{PROTOBUF, sampling, training};

use super::body::{RawBody, off_runtime};
use super::reply::{Answer, json, protobuf};
use super::{Front, Tenant};

/// How long a poll is held. The SDK gives up after 45 s and asks again at once.
const HOLD: Duration = Duration::from_secs(25);

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
    let outcome = match waited {
        Waited::Pending => return Ok(pending()?),
        Waited::Unknown => return Err(unknown(&request).into()),
        Waited::Done(outcome) => outcome,
    };
    if let Err(error) = &*outcome {
        return Ok(failure(&request, error)?);
    }
    let form = Form::of(&headers);
    let size = outcome.as_ref().as_ref().map_or(0, bytes_of);
    Ok(off_runtime(size, move || match &*outcome {
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
        let header = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        Self {
            takes_protobuf: header(ACCEPT.as_str()).is_some_and(|accept| accept.contains(PROTOBUF)),
            is_load: header("x-tinker-request-type") == Some("LoadWeights"),
        }
    }
}

/// About how many bytes a result takes as text.
fn bytes_of(outcome: &Outcome) -> usize {
    let numbers: usize = match outcome {
        Outcome::Run(RunOutcome::ForwardBackward(outcome)) => outcome.logprobs.iter().map(|datum| datum.0.len()).sum(),
        Outcome::Run(_) => 0,
        Outcome::Sample(outcome) => {
            let prompt = outcome.prompt_logprobs.as_ref().map_or(0, Vec::len);
            prompt + outcome.sequences.iter().map(|sequence| 2 * sequence.tokens.len()).sum::<usize>()
        }
    };
    10 * numbers
}

/// The SDK asks again at once, silently.
fn pending() -> Result<Response> {
    json(StatusCode::REQUEST_TIMEOUT, &Pending { queue_state: "active".to_owned(), queue_state_reason: None })
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
            json(StatusCode::OK, &WeightsSaved { path: path.to_string(), kind: Tag::new("save_weights") })
        }
        RunOutcome::SavedForSampler { target } => {
            let (path, session) = match target {
                SamplerTarget::Checkpoint(path) => (Some(path.to_string()), None),
                SamplerTarget::Live(session) => (None, Some(session.as_str().to_owned())),
            };
            let kind = Tag::new("save_weights_for_sampler");
            json(StatusCode::OK, &WeightsSavedForSampler { path, sampling_session_id: session, kind })
        }
        RunOutcome::Loaded { run, path } => {
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
        | RunOutcome::Restored { .. }
        | RunOutcome::Expired { .. }
        | RunOutcome::Spilled { .. } => Err(Error::internal("an internal operation was asked for by a client")),
    }
}
