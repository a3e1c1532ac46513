//! The directory of training runs.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use twinkle_core::call::{RunRecord, ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, RunId, TenantId};

use super::checkpoints::shown as shown_checkpoint;
use crate::tinker::unexpected;
use crate::twinkle::{Answer, Tenant, TwinkleFront, ok};

/// Runs of one page when the client does not say.
const USUAL_PAGE: u32 = 20;
/// Most runs of one page.
const LARGEST_PAGE: u32 = 100;

/// Which part of the list. Clients may also send `all_users`: nobody but the operator sees other tenants' runs.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "TwinklePage")]
pub(super) struct Page {
    /// Most runs of the answer.
    limit: Option<u32>,
    /// How many runs come before it.
    offset: Option<u32>,
}

/// `GET training_runs`: the tenant's, newest first.
pub(super) async fn list(
    State(front): State<TwinkleFront>,
    Tenant(tenant): Tenant,
    page: std::result::Result<Query<Page>, QueryRejection>,
) -> Answer {
    let Query(page) = page.map_err(|error| Error::invalid(format!("the query of the request is wrong: {error}")))?;
    let limit = page.limit.unwrap_or(USUAL_PAGE).min(LARGEST_PAGE);
    let offset = page.offset.unwrap_or(0);
    let request = ServeRequest::ListRuns { project_id: None, limit, offset };
    let (records, total) = match front.serve(&tenant, request).await? {
        ServeOutcome::Runs { runs, total } => (runs, total),
        other => return Err(unexpected("the server component", &other).into()),
    };
    let mut runs = Vec::with_capacity(records.len());
    for record in records {
        runs.push(front.shown_run(&tenant, record).await?);
    }
    ok(&json!({
        "training_runs": runs,
        "cursor": { "limit": limit, "offset": offset, "total_count": total },
    }))
}

/// `GET training_runs/{run}`
pub(super) async fn read(State(front): State<TwinkleFront>, Tenant(tenant): Tenant, Path(run): Path<String>) -> Answer {
    let record = front.known_run(&tenant, run).await?;
    ok(&front.shown_run(&tenant, record).await?)
}

impl TwinkleFront {
    /// The tenant's run; absent and another tenant's are told in the same words.
    pub(super) async fn known_run(&self, tenant: &TenantId, run: String) -> Result<RunRecord> {
        match self.run(tenant, RunId::new(run.clone())).await {
            Err(error) if error.code == ErrorCode::NotFound => {
                Err(Error::not_found(format!("Training run {run} not found or access denied")))
            }
            answer => answer,
        }
    }

    /// A run as the client's `TrainingRun` reads it.
    async fn shown_run(&self, tenant: &TenantId, record: RunRecord) -> Result<Value> {
        let saved = match self.serve(tenant, ServeRequest::LatestCheckpoints(record.id.clone())).await? {
            ServeOutcome::Checkpoints { checkpoints, .. } => checkpoints,
            other => return Err(unexpected("the server component", &other)),
        };
        let newest = |kind| saved.iter().find(|checkpoint| checkpoint.path.kind == kind).map(shown_checkpoint);
        let notes = (!record.user_metadata.is_empty()).then_some(&record.user_metadata);
        Ok(json!({
            "training_run_id": record.id,
            "base_model": record.base_model,
            "model_owner": record.tenant,
            "save_dir": null,
            "is_lora": !record.lora.full,
            "corrupted": false,
            "lora_rank": (!record.lora.full).then_some(record.lora.rank),
            "last_request_time": record.last_used_at,
            "last_checkpoint": newest(CheckpointKind::Weights),
            "last_sampler_checkpoint": newest(CheckpointKind::SamplerWeights),
            "user_metadata": notes,
        }))
    }
}
