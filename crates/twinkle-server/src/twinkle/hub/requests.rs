//! `upload_to_hub` and `upload_status`.

use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use twinkle_core::config::{Hub, HubModel, ModelLocation, ModelSource};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, TenantId};
use twinkle_hub::Upload;

use crate::twinkle::{Answer, Json, Tenant, TwinkleFront, ok};

/// The body of `POST upload_to_hub`. `async_upload` may come along: every upload is one.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "UploadToHub")]
pub(super) struct Wanted {
    /// Which checkpoint.
    checkpoint_dir: Checkpoint,
    /// The repository: `ms://org/name`, `hf://org/name`, or `org/name` of `ModelScope`.
    hub_model_id: String,
    /// The hub's token, which may write.
    hub_token: Option<String>,
}

/// A path, or the answer of `save`, which has it.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "CheckpointOrSaved")]
enum Checkpoint {
    Path(String),
    Saved { twinkle_path: String },
}

/// `POST upload_to_hub`: answered at once with the name of the upload.
pub(super) async fn upload(
    State(front): State<TwinkleFront>,
    Tenant(tenant): Tenant,
    Json(wanted): Json<Wanted>,
) -> Answer {
    let (hub, repository) = target(&wanted.hub_model_id)?;
    let token = wanted.hub_token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| {
        Error::invalid("`hub_token` is missing")
            .hint(format!("give a token of {} that may write; the API key of this server is none", hub.name()))
    })?;
    let name = match wanted.checkpoint_dir {
        Checkpoint::Path(name) | Checkpoint::Saved { twinkle_path: name } => name,
    };
    let (folder, files) = front.files_of(&tenant, &name).await?;
    let upload = Upload { hub, repository, token, folder, files };
    let request = front.shared.uploads.begin(&tenant, upload, front.context.stopping.clone()).await?;
    ok(&json!({ "request_id": request }))
}

/// `GET upload_status/{request}`
pub(super) async fn status(
    State(front): State<TwinkleFront>,
    Tenant(tenant): Tenant,
    Path(request): Path<String>,
) -> Answer {
    let state = front.shared.uploads.state(&tenant, &request).await?;
    let (status, error) = match &state.end {
        None => ("running", None),
        Some(Ok(())) => ("completed", None),
        Some(Err(error)) => ("failed", Some(error)),
    };
    ok(&json!({
        "request_id": request,
        "status": status,
        "error": error.map(ToString::to_string),
        "code": error.map(|error| error.code),
        "progress": { "sent_bytes": state.sent_bytes, "total_bytes": state.total_bytes },
    }))
}

impl TwinkleFront {
    /// Where the files of the tenant's own checkpoint are, and their names.
    async fn files_of(&self, tenant: &TenantId, name: &str) -> Result<(std::path::PathBuf, Vec<String>)> {
        let absent = || Error::not_found(format!("Checkpoint {name} not found or access denied"));
        let record = self.named_checkpoint(tenant, name).await.map_err(|error| match error.code {
            ErrorCode::NotFound => absent(),
            _ => error,
        })?;
        if record.tenant != *tenant {
            return Err(absent());
        }
        if record.path.kind == CheckpointKind::ExternalWeights {
            return Err(Error::invalid(format!("`{name}` was exported to be downloaded and is not uploaded")));
        }
        let (store, owner) = (self.context.checkpoints.clone(), tenant.clone());
        let looked = tokio::task::spawn_blocking(move || store.look(&owner, &record.path)).await;
        let found = looked.map_err(|error| Error::internal(format!("a checkpoint was not read: {error}")))??;
        Ok((found.directory().to_owned(), found.manifest().files.keys().cloned().collect()))
    }
}

/// The hub and the repository of `ms://org/name`, `hf://org/name` or `org/name`, which is one of `ModelScope`.
fn target(id: &str) -> Result<(Hub, HubModel)> {
    let id = id.trim();
    let with_scheme = if id.contains("://") { id.to_owned() } else { format!("ms://{id}") };
    match ModelSource::new(with_scheme).location()? {
        ModelLocation::Hub(_, model) if model.revision.is_some() => {
            Err(Error::invalid(format!("`{id}` names a revision; files are added to the main branch"))
                .hint(format!("write `{}`", model.id())))
        }
        ModelLocation::Hub(hub, model) => Ok((hub, model)),
        ModelLocation::Local(_) | ModelLocation::LocalOrHub(..) => {
            Err(Error::invalid(format!("`{id}` is not a repository of a hub"))
                .hint("write `ms://org/name` or `hf://org/name`"))
        }
    }
}
