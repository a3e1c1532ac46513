//! The directory of checkpoints.

use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use twinkle_core::call::{CheckpointRecord, ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};

use crate::tinker::unexpected;
use crate::twinkle::{Answer, Json, Tenant, TwinkleFront, ok};

/// Most checkpoints of one run in one answer: its clients ask for no pages.
const MOST_OF_RUN: u32 = 1_000;

/// The run, the kind and the name in a path.
type Named = Path<(String, String, String)>;

/// The body of `POST weights_info`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "TwinkleWeightsInfo")]
pub(super) struct Wanted {
    /// `twinkle://…`, `tinker://…`, or the folder that `checkpoint_path` told.
    twinkle_path: String,
}

/// `GET training_runs/{run}/checkpoints`: the oldest first.
pub(super) async fn list(State(front): State<TwinkleFront>, Tenant(tenant): Tenant, Path(run): Path<String>) -> Answer {
    let record = front.known_run(&tenant, run).await?;
    let page = ServeRequest::ListCheckpoints { run: Some(record.id), limit: MOST_OF_RUN, offset: 0 };
    match front.serve(&tenant, page).await? {
        ServeOutcome::Checkpoints { checkpoints, .. } => {
            let shown: Vec<Value> = checkpoints.iter().map(shown).collect();
            ok(&json!({ "checkpoints": shown, "cursor": null }))
        }
        other => Err(unexpected("the server component", &other).into()),
    }
}

/// `DELETE training_runs/{run}/checkpoints/{kind}/{name}`
pub(super) async fn delete(State(front): State<TwinkleFront>, Tenant(tenant): Tenant, named: Named) -> Answer {
    let path = path_of(named)?;
    let id = path.checkpoint_id();
    match front.serve(&tenant, ServeRequest::DeleteCheckpoint(path)).await {
        Ok(_) => ok(&json!({ "success": true, "message": format!("Checkpoint {id} deleted successfully") })),
        Err(error) => Err(unknown(error, &id).into()),
    }
}

/// `GET checkpoint_path/{run}/{kind}/{name}`: the tenant's own only, for a folder is told.
pub(super) async fn place(State(front): State<TwinkleFront>, Tenant(tenant): Tenant, named: Named) -> Answer {
    let path = path_of(named)?;
    let id = path.checkpoint_id();
    let record = front.checkpoint(&tenant, path).await.map_err(|error| unknown(error, &id))?;
    if record.tenant != tenant {
        return Err(not_there(&id).into());
    }
    let (files, owner, wanted) = (front.context.checkpoints.clone(), tenant, record.path.clone());
    let folder = tokio::task::spawn_blocking(move || {
        let found = files.look(&owner, &wanted)?;
        Ok(std::path::absolute(found.directory()).unwrap_or_else(|_| found.directory().to_owned()))
    });
    let folder = folder.await.map_err(|error| Error::internal(format!("a checkpoint was not looked up: {error}")))?;
    let folder = folder.map_err(|error| unknown(error, &id))?;
    ok(&json!({ "path": folder.to_string_lossy(), "twinkle_path": record.path.to_twinkle() }))
}

/// `DELETE training_runs/{run}/checkpoints/{name}` and `GET checkpoint_path/{run}/{name}`: an id has two parts.
pub(super) async fn half_an_id(Path((_, name)): Path<(String, String)>) -> Answer {
    Err(no_id(&name).into())
}

/// `POST weights_info`
pub(super) async fn info(
    State(front): State<TwinkleFront>,
    Tenant(tenant): Tenant,
    Json(wanted): Json<Wanted>,
) -> Answer {
    let named = wanted.twinkle_path;
    if front.is_on_hub(&tenant, &named) {
        return ok(&front.described_on_hub(&named).await?);
    }
    let record = front.named_checkpoint(&tenant, &named).await.map_err(|error| match error.code {
        ErrorCode::NotFound => Error::not_found(format!("Weights at {named} not found or access denied")),
        _ => error,
    })?;
    ok(&json!({
        "training_run_id": record.path.run,
        "base_model": record.base_model,
        "model_owner": record.tenant,
        "is_lora": !record.lora.full,
        "lora_rank": (!record.lora.full).then_some(record.lora.rank),
    }))
}

impl TwinkleFront {
    /// The checkpoint that a client names by its `twinkle://` or `tinker://` path, or by the folder that
    /// `checkpoint_path` told it. Folders of other tenants and any other place are not there.
    pub(crate) async fn named_checkpoint(&self, tenant: &TenantId, name: &str) -> Result<CheckpointRecord> {
        let path = if name.contains("://") {
            CheckpointPath::parse(name)?
        } else {
            self.context.checkpoints.path_of(tenant, std::path::Path::new(name)).ok_or_else(|| {
                Error::not_found(format!("checkpoint `{name}` does not exist"))
                    .hint("name it as `twinkle://<run>/weights/<name>`")
            })?
        };
        self.checkpoint(tenant, path).await
    }
}

/// A checkpoint as the client's `Checkpoint` reads it.
pub(crate) fn shown(record: &CheckpointRecord) -> Value {
    let notes = (!record.user_metadata.is_empty()).then_some(&record.user_metadata);
    json!({
        "checkpoint_id": record.path.checkpoint_id(),
        "checkpoint_type": match record.path.kind {
            CheckpointKind::Weights => "training",
            CheckpointKind::SamplerWeights => "sampler",
            CheckpointKind::ExternalWeights => "external",
        },
        "time": record.created_at,
        "size_bytes": record.size_bytes,
        "public": record.public,
        "twinkle_path": record.path.to_twinkle(),
        "tinker_path": record.path.to_string(),
        "base_model": record.base_model,
        "is_lora": !record.lora.full,
        "lora_rank": (!record.lora.full).then_some(record.lora.rank),
        "train_unembed": record.lora.train_unembed,
        "train_mlp": record.lora.train_mlp,
        "train_attn": record.lora.train_attn,
        "user_metadata": notes,
        "expires_at": record.expires_at,
    })
}

fn path_of(Path((run, kind, name)): Named) -> Result<CheckpointPath> {
    if [&run, &kind, &name].into_iter().any(|part| part.contains("..") || part.contains(['/', '\\', '\0'])) {
        return Err(Error::invalid("Invalid checkpoint path: path traversal not allowed"));
    }
    let id = format!("{kind}/{name}");
    let kind = CheckpointKind::of_segment(&kind).ok_or_else(|| no_id(&id))?;
    CheckpointPath::new(RunId::new(run), kind, &name)
}

fn no_id(id: &str) -> Error {
    Error::invalid(format!("`{id}` is not the id of a checkpoint"))
        .hint("an id has two parts, `weights/<name>` or `sampler_weights/<name>`")
}

fn not_there(id: &str) -> Error {
    Error::not_found(format!("Checkpoint {id} not found or access denied"))
}

/// In the client's words when it is not there.
fn unknown(error: Error, id: &str) -> Error {
    if error.code == ErrorCode::NotFound { not_there(id) } else { error }
}
