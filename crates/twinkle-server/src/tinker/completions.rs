//! `POST retrieve_futures`, `POST cancel_future` and `POST join_sampling_session`: a sampling client's own traffic.

use std::time::Duration;

use axum::extract::State;
use twinkle_core::call::{ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, Result};
use twinkle_core::futures::{Completion, StreamKey};
use twinkle_core::ids::{RequestId, SamplingSessionId, TenantId};
use twinkle_core::wire::tinker::json::{
    CancelFuture, FutureCompletion, FuturesRetrieved, JoinSamplingSession, RetrieveFutures, SamplingSessionJoined, Tag,
};

use super::body::RawBody;
use super::reply::{Answer, done, ok};
use super::retrieve::HOLD;
use super::{Front, Tenant, unexpected};

/// The samples of a sampling session's client number `n` are numbered from `n` times this.
const NUMBERS_OF_A_CLIENT: u64 = 1_000_000_000;

/// Where the completion of a sample with this number is announced.
pub(super) fn stream_of(tenant: &TenantId, session: &SamplingSessionId, number: u64) -> StreamKey {
    StreamKey { tenant: tenant.clone(), session: session.clone(), client: number / NUMBERS_OF_A_CLIENT }
}

/// `POST retrieve_futures`
pub(super) async fn retrieve(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let poll: RetrieveFutures = body.json().await?;
    let limit = hold(poll.timeout)?;
    if let Some(kind) = poll.target.kind.as_deref().filter(|kind| *kind != "sampling_session") {
        return Err(Error::invalid(format!("`target.type` `{kind}` is unknown"))
            .hint("completions are told of a `sampling_session`")
            .into());
    }
    let session = SamplingSessionId::new(poll.target.sampling_session_id);
    front.sampling_session(&tenant, session.clone()).await?;
    let futures = &front.context.futures;
    futures.discard(&tenant, poll.retrieved_request_ids.into_iter().map(RequestId::new));
    let key = StreamKey { tenant, session, client: poll.target.cloned_sampler_id };
    let (found, cursor) = tokio::select! {
        biased;
        found = futures.completions(&key, poll.prev_cursor, limit) => found,
        () = front.context.stopping.cancelled() => (Vec::new(), poll.prev_cursor),
    };
    ok(&FuturesRetrieved { completions: found.into_iter().map(completion).collect(), cursor })
}

/// How long a poll is held.
fn hold(timeout: Option<f64>) -> Result<Duration> {
    let Some(seconds) = timeout else { return Ok(HOLD) };
    let limit = Duration::try_from_secs_f64(seconds)
        .map_err(|_| Error::invalid(format!("`timeout` {seconds} is not a number of seconds")))?;
    Ok(limit.min(HOLD))
}

fn completion(Completion { request, bytes }: Completion) -> FutureCompletion {
    let request_id = request.as_str().to_owned();
    match bytes {
        Some(bytes) => FutureCompletion::Finished { request_id, response_payload_uncompressed_size: bytes },
        None => FutureCompletion::Failed { request_id },
    }
}

/// `POST cancel_future`: always answered alike, for whether the operation exists is told to nobody else.
///
/// The work on a sample is dropped, whether it runs or waits. An accepted training operation has its place in its run's
/// order and is executed.
pub(super) async fn cancel(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let unwanted: CancelFuture = body.json().await?;
    let request = RequestId::new(unwanted.request_id);
    if front.context.futures.cancel(&tenant, &request) {
        tracing::debug!(%request, "cancelled by its client");
    }
    Ok(done())
}

/// `POST join_sampling_session`
pub(super) async fn join(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: JoinSamplingSession = body.json().await?;
    let session = SamplingSessionId::new(wanted.sampling_session_id);
    match front.serve(&tenant, ServeRequest::JoinSamplingSession(session)).await? {
        ServeOutcome::JoinedSamplingSession(client_counter) => {
            ok(&SamplingSessionJoined { kind: Tag::new("join_sampling_session"), client_counter })
        }
        other => Err(unexpected("the server component", &other).into()),
    }
}
