//! What is done to checkpoints: deleted, kept for a time, published, copied and downloaded.

use axum::extract::State;
use axum::response::Response;
use http::header::{CONTENT_LENGTH, EXPIRES, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::fmt::rfc2822::DateTimePrinter;
use twinkle_core::call::{CheckpointCopy, CopyDestination, ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, SessionId};
use twinkle_core::wire::tinker::json::{CheckpointLifetime, CopyWeights, ExternalWeightsUrls, WeightsCopied};

use super::body::RawBody;
use super::downloads::Reached;
use super::reply::{Answer, done, ok};
use super::rest::Captured;
use super::session::path;
use super::weights::lifetime;
use super::{Front, Tenant, idempotency, unexpected};
use crate::downloads::ARCHIVE;

/// The parts of a path that name a checkpoint: its run, kind and name.
type Named = Captured<(String, String, String)>;

/// `DELETE training_runs/{run}/checkpoints/{kind}/{name}`
pub(super) async fn delete(State(front): State<Front>, Tenant(tenant): Tenant, named: Named) -> Answer {
    front.serve(&tenant, ServeRequest::DeleteCheckpoint(checkpoint(named)?)).await?;
    Ok(done())
}

/// `DELETE training_runs/{run}/checkpoints/{id}`, the slash in the id sent as `%2F`; without one it names no kind.
pub(super) async fn delete_by_id(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    named: Captured<(String, String)>,
) -> Answer {
    let (run, id) = path(named)?;
    let path = CheckpointPath::parse(&format!("tinker://{run}/{id}")).map_err(|_| no_id(&id))?;
    front.serve(&tenant, ServeRequest::DeleteCheckpoint(path)).await?;
    Ok(done())
}

/// `PUT training_runs/{run}/checkpoints/{kind}/{name}/ttl`
pub(super) async fn keep(State(front): State<Front>, Tenant(tenant): Tenant, named: Named, body: RawBody) -> Answer {
    let path = checkpoint(named)?;
    let wanted: CheckpointLifetime = body.json().await?;
    let ttl_seconds = lifetime(wanted.ttl_seconds)?;
    front.serve(&tenant, ServeRequest::KeepCheckpoint { path, ttl_seconds }).await?;
    Ok(done())
}

/// `POST training_runs/{run}/checkpoints/{kind}/{name}/publish`
pub(super) async fn publish(State(front): State<Front>, Tenant(tenant): Tenant, named: Named) -> Answer {
    let path = checkpoint(named)?;
    front.serve(&tenant, ServeRequest::PublishCheckpoint { path, public: true }).await?;
    Ok(done())
}

/// `DELETE training_runs/{run}/checkpoints/{kind}/{name}/publish`
pub(super) async fn unpublish(State(front): State<Front>, Tenant(tenant): Tenant, named: Named) -> Answer {
    let path = checkpoint(named)?;
    front.serve(&tenant, ServeRequest::PublishCheckpoint { path, public: false }).await?;
    Ok(done())
}

/// `GET training_runs/{run}/checkpoints/{kind}/{name}/archive`: a redirection to where the archive is.
pub(super) async fn archive(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    named: Named,
    Reached(base): Reached,
) -> Answer {
    let record = front.checkpoint(&tenant, checkpoint(named)?).await?;
    let link = front.context.downloads.link(&base, &record, ARCHIVE);
    let expires = DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&link.expires)
        .map_err(|error| Error::internal(format!("a time could not be written: {error}")))?;
    let mut response = Response::default();
    *response.status_mut() = StatusCode::FOUND;
    let headers = response.headers_mut();
    headers.insert(LOCATION, header(&link.url)?);
    headers.insert(EXPIRES, header(&expires)?);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    Ok(response)
}

fn header(text: &str) -> Result<HeaderValue> {
    HeaderValue::try_from(text).map_err(|error| Error::internal(format!("a header could not be written: {error}")))
}

/// `GET training_runs/{run}/checkpoints/{kind}/{name}/external_weights_urls`
pub(super) async fn external_weights_urls(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    named: Named,
    Reached(base): Reached,
) -> Answer {
    let record = front.checkpoint(&tenant, checkpoint(named)?).await?;
    if record.path.kind != CheckpointKind::ExternalWeights {
        return Err(Error::invalid(format!("`{}` was not exported to be downloaded", record.path))
            .hint("export the run with `save_weights_external`")
            .into());
    }
    let downloads = &front.context.downloads;
    let mut answer = ExternalWeightsUrls { urls: std::collections::BTreeMap::new(), expires: jiff::Timestamp::MAX };
    for name in downloads.names(&record).await? {
        let link = downloads.link(&base, &record, &name);
        answer.expires = answer.expires.min(link.expires);
        answer.urls.insert(name, link.url);
    }
    ok(&answer)
}

/// `POST copy_weights`
pub(super) async fn copy(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    headers: HeaderMap,
    body: RawBody,
) -> Answer {
    let wanted: CopyWeights = body.json().await?;
    if wanted.weights_access_token.is_some() || headers.contains_key("x-tinker-weights-access-token") {
        return Err(no_access_tokens().into());
    }
    let destination = match (wanted.destination_project_id, wanted.session_id, wanted.model_seq_id) {
        (Some(project), None, None) => CopyDestination::Project(project),
        (None, Some(session), Some(number)) => CopyDestination::Run { session: SessionId::new(session), number },
        _ => {
            return Err(Error::invalid(
                "a copy names either `destination_project_id`, or `session_id` and `model_seq_id`",
            )
            .into());
        }
    };
    let copy = CheckpointCopy {
        source: CheckpointPath::parse(&wanted.source_path)?,
        destination,
        ttl_seconds: lifetime(wanted.ttl_seconds)?,
        key: idempotency::key(&headers)?,
    };
    match front.serve(&tenant, ServeRequest::CopyCheckpoint(Box::new(copy))).await? {
        ServeOutcome::Checkpoint(record) => ok(&WeightsCopied { tinker_path: record.path.to_string() }),
        other => Err(unexpected("the server component", &other).into()),
    }
}

/// Whoever wants to share a checkpoint publishes it.
pub(super) fn no_access_tokens() -> Error {
    Error::unsupported("`weights_access_token` is not supported")
        .hint("the checkpoint's owner can make it public: `tinker checkpoint publish`")
}

/// The checkpoint that a path names.
fn checkpoint(named: Named) -> Result<CheckpointPath> {
    let (run, kind, name) = path(named)?;
    CheckpointPath::parse(&format!("tinker://{run}/{kind}/{name}")).map_err(|_| no_id(&format!("{kind}/{name}")))
}

fn no_id(id: &str) -> Error {
    Error::invalid(format!("`{id}` is not the id of a checkpoint"))
        .hint("an id has two parts, `weights/<name>`, `sampler_weights/<name>` or `external_weights/<name>`")
}
