//! The Tinker protocol front: what the official Python SDK speaks, JSON and protobuf on the same routes.
//!
//! It turns a request into a [`Call`] and a [`Reply`] into bytes, and decides nothing else. Paths are
//! relative to the `route_prefix` of the `server` application, which is `/api/v1` for the SDK.
//!
//! | file | routes |
//! | --- | --- |
//! | `session` | `healthz`, `client/config`, `client/dynamic_config`, `create_session`, `session_heartbeat`, `sessions/{id}/finish`, `telemetry`, `get_server_capabilities` |
//! | `models` | `create_model`, `get_info`, `unload_model` |
//! | `training` | `forward_backward`, `forward`, `optim_step` |
//! | `custom_loss` | `create_custom_loss` |
//! | `session_directory` | `sessions`, `sessions/search`, `sessions/{id}`, `sessions/{id}/project`, `sessions/{id}/trace_export` |
//! | `weights` | `save_weights`, `save_weights_for_sampler`, `save_weights_external`, `load_weights`, `weights_info` |
//! | `sampling` | `create_sampling_session`, `samplers/{id}`, `asample` |
//! | `retrieve` | `retrieve_future` |
//! | `completions` | `retrieve_futures`, `cancel_future`, `join_sampling_session` |
//! | `rest` | `training_runs`, `training_runs/{run}`, `training_runs/{run}/checkpoints`, `checkpoints` |
//! | `checkpoints` | `training_runs/{run}/checkpoints/{kind}/{name}…`, `copy_weights` |
//! | `downloads` | `downloads/{run}/{kind}/{name}/{file}`, without an API key |
//!
//! **How requests fail.** What cannot be read at all, or names a session, model or checkpoint that is not
//! there, is refused with a status. What is wrong in the *content* of a training or sampling request fails
//! its future, so that the SDK reports it at once. Either way the number of a refused operation is
//! recorded as consumed: later operations of the run must not wait for it.

pub(crate) mod body;
mod checkpoints;
mod completions;
mod custom_loss;
mod downloads;
mod idempotency;
mod models;
mod operations;
mod reply;
mod rest;
mod retrieve;
mod routes;
mod sampling;
mod session;
mod session_directory;
mod training;
mod weights;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, OriginalUri};
use http::Method;
use http::request::Parts;
use twinkle_core::call::{
    Call, CheckpointRecord, Operation, Reply, RunRecord, SamplingSessionRecord, ServeOutcome, ServeRequest,
    SessionRecord,
};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointPath, RequestId, RunId, SamplingSessionId, SessionId, TenantId};

use crate::error_response::ErrorResponse;
use crate::front::FrontContext;
use crate::openapi::Extracted;
use crate::route_table::router_of;

pub(crate) use routes::routes;

/// How many sampling requests are remembered, so that one sent twice is executed once.
const REMEMBERED_SAMPLES: u64 = 100_000;

/// How long they are remembered: longer than any transport retries.
const SAMPLE_MEMORY: Duration = Duration::from_mins(10);

/// What answers them, but for those whose method and path are given to another front.
pub(crate) fn router(context: FrontContext, given: &[(&'static str, &'static str)]) -> Router {
    let samples = moka::sync::Cache::builder().max_capacity(REMEMBERED_SAMPLES).time_to_live(SAMPLE_MEMORY).build();
    router_of(routes().into_iter().filter(|route| !given.contains(&route.place())))
        .fallback(missing)
        .method_not_allowed_fallback(missing)
        // Bodies are bounded by the node stack and, once unpacked, by `body`.
        .layer(DefaultBodyLimit::disable())
        .with_state(Front { context, samples: Samples { requests: samples } })
}

/// Answers what is not served: the SDK's user should read which route it was.
async fn missing(method: Method, OriginalUri(uri): OriginalUri) -> ErrorResponse {
    let path = uri.path();
    ErrorResponse(
        Error::not_found(format!("this server has no route `{method} {path}`"))
            .hint("docs/tinker.md lists what is served of the Tinker protocol"),
    )
}

/// What every handler works with; a cheap handle.
#[derive(Clone)]
pub(crate) struct Front {
    context: FrontContext,
    samples: Samples,
}

/// Sampling requests by tenant, sampling session, number and digest of the body.
#[derive(Clone)]
struct Samples {
    requests: moka::sync::Cache<Arc<sampling::SampleKey>, RequestId>,
}

// === impl Front ===

impl Front {
    /// Asks the `server` component.
    async fn serve(&self, tenant: &TenantId, request: ServeRequest) -> Result<ServeOutcome> {
        let call = Call { tenant: tenant.clone(), operation: Operation::Serve(request) };
        match self.context.server.ask(call).await? {
            Reply::Serve(outcome) => Ok(outcome),
            other => Err(unexpected("the server component", &other)),
        }
    }

    async fn session(&self, tenant: &TenantId, session: SessionId) -> Result<SessionRecord> {
        match self.serve(tenant, ServeRequest::DescribeSession(session)).await? {
            ServeOutcome::Session(record) => Ok(record),
            other => Err(unexpected("the server component", &other)),
        }
    }

    async fn run(&self, tenant: &TenantId, run: RunId) -> Result<RunRecord> {
        match self.serve(tenant, ServeRequest::DescribeRun(run)).await? {
            ServeOutcome::Run(record) => Ok(record),
            other => Err(unexpected("the server component", &other)),
        }
    }

    async fn sampling_session(&self, tenant: &TenantId, id: SamplingSessionId) -> Result<SamplingSessionRecord> {
        match self.serve(tenant, ServeRequest::DescribeSamplingSession(id)).await? {
            ServeOutcome::SamplingSession(record) => Ok(record),
            other => Err(unexpected("the server component", &other)),
        }
    }

    async fn checkpoint(&self, tenant: &TenantId, path: CheckpointPath) -> Result<CheckpointRecord> {
        match self.serve(tenant, ServeRequest::DescribeCheckpoint(path)).await? {
            ServeOutcome::Checkpoint(record) => Ok(record),
            other => Err(unexpected("the server component", &other)),
        }
    }

    /// Checkpoints and how many there are in all; `request` is one that is answered with them.
    async fn checkpoints(&self, tenant: &TenantId, request: ServeRequest) -> Result<(Vec<CheckpointRecord>, u64)> {
        match self.serve(tenant, request).await? {
            ServeOutcome::Checkpoints { checkpoints, total } => Ok((checkpoints, total)),
            other => Err(unexpected("the server component", &other)),
        }
    }
}

/// A component answered something else than it was asked: a defect.
pub(crate) fn unexpected(who: &str, answer: &impl std::fmt::Debug) -> Error {
    let mut answer = format!("{answer:?}");
    answer.truncate(answer.char_indices().nth(80).map_or(answer.len(), |(index, _)| index));
    Error::internal(format!("{who} gave an answer of another kind: {answer}"))
}

/// Who asks, as the node stack found out.
struct Tenant(TenantId);

impl Extracted for Tenant {}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ErrorResponse> {
        let tenant = parts.extensions.get::<TenantId>().cloned();
        tenant
            .map(Self)
            .ok_or_else(|| ErrorResponse(Error::new(ErrorCode::Unauthenticated, "the request has no tenant")))
    }
}
