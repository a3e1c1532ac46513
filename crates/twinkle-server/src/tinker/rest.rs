//! Lists: training runs and checkpoints.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use schemars::JsonSchema;
use serde::Deserialize;
use twinkle_core::call::{CheckpointRecord, RunRecord, ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{CheckpointKind, RunId, TenantId};
use twinkle_core::wire::tinker::json::{Checkpoint, CheckpointType, Checkpoints, Cursor, TrainingRun, TrainingRuns};

use super::reply::{Answer, ok};
use super::session::path;
use super::{Front, Tenant, unexpected};

/// Most runs of one page.
const MAX_RUNS: u32 = 100;
/// Most checkpoints of one page: as many as the `tinker` command asks for at once, which takes fewer for the end.
const MAX_CHECKPOINTS: u32 = 1_000;
/// Most checkpoints of one run in one answer: its clients ask for no pages.
const MAX_OF_RUN: u32 = 1_000;

pub(super) type Captured<T> = std::result::Result<Path<T>, PathRejection>;
pub(super) type Asked = std::result::Result<Query<Page>, QueryRejection>;

/// Which part of a list. `access_scope` may come along: there is only one scope here.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub(super) struct Page {
    /// Most entries of the answer.
    limit: Option<u32>,
    /// How many entries come before it.
    offset: Option<u32>,
    /// Of this project alone; only runs have one.
    project_id: Option<String>,
}

/// A page within bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) limit: u32,
    pub(super) offset: u32,
}

impl Bounds {
    pub(super) fn of(asked: Asked, default_limit: u32, most: u32) -> Result<Self> {
        let Query(page) =
            asked.map_err(|error| Error::invalid(format!("the query of the request is wrong: {error}")))?;
        Ok(Self { limit: page.limit.unwrap_or(default_limit).min(most), offset: page.offset.unwrap_or(0) })
    }

    fn cursor(self, total: u64) -> Cursor {
        Cursor { offset: self.offset.into(), limit: self.limit.into(), total_count: total }
    }
}

/// `GET training_runs`
pub(super) async fn runs(State(front): State<Front>, Tenant(tenant): Tenant, asked: Asked) -> Answer {
    let project_id = asked.as_ref().ok().and_then(|Query(page)| page.project_id.clone());
    let bounds = Bounds::of(asked, 20, MAX_RUNS)?;
    let request = ServeRequest::ListRuns { project_id, limit: bounds.limit, offset: bounds.offset };
    let (records, total) = match front.serve(&tenant, request).await? {
        ServeOutcome::Runs { runs, total } => (runs, total),
        other => return Err(unexpected("the server component", &other).into()),
    };
    let mut training_runs = Vec::with_capacity(records.len());
    for record in records {
        training_runs.push(front.training_run(&tenant, record).await?);
    }
    ok(&TrainingRuns { training_runs, cursor: bounds.cursor(total) })
}

/// `GET training_runs/{run}`
pub(super) async fn run(State(front): State<Front>, Tenant(tenant): Tenant, run: Captured<String>) -> Answer {
    let record = front.run(&tenant, RunId::new(path(run)?)).await?;
    ok(&front.training_run(&tenant, record).await?)
}

impl Front {
    async fn training_run(&self, tenant: &TenantId, record: RunRecord) -> Result<TrainingRun> {
        let request = ServeRequest::LatestCheckpoints(record.id.clone());
        let (saved, _) = self.checkpoints(tenant, request).await?;
        let newest =
            |kind: CheckpointKind| saved.iter().find(|checkpoint| checkpoint.path.kind == kind).map(checkpoint);
        Ok(TrainingRun {
            training_run_id: record.id.as_str().to_owned(),
            base_model: record.base_model,
            model_owner: record.tenant.as_str().to_owned(),
            is_lora: true,
            corrupted: false,
            lora_rank: Some(record.lora.rank),
            last_request_time: record.last_used_at,
            last_checkpoint: newest(CheckpointKind::Weights),
            last_sampler_checkpoint: newest(CheckpointKind::SamplerWeights),
            user_metadata: (!record.user_metadata.is_empty()).then_some(record.user_metadata),
        })
    }
}

/// `GET training_runs/{run}/checkpoints`: all of them, with a cursor when there are more than fit.
pub(super) async fn run_checkpoints(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    run: Captured<String>,
    asked: Asked,
) -> Answer {
    let bounds = Bounds::of(asked, MAX_OF_RUN, MAX_OF_RUN)?;
    let record = front.run(&tenant, RunId::new(path(run)?)).await?;
    let page = ServeRequest::ListCheckpoints { run: Some(record.id), limit: bounds.limit, offset: bounds.offset };
    let (saved, total) = front.checkpoints(&tenant, page).await?;
    let cursor = (total > saved.len() as u64).then(|| bounds.cursor(total));
    ok(&Checkpoints { checkpoints: saved.iter().map(checkpoint).collect(), cursor })
}

/// `GET checkpoints`
pub(super) async fn checkpoints(State(front): State<Front>, Tenant(tenant): Tenant, asked: Asked) -> Answer {
    let bounds = Bounds::of(asked, 100, MAX_CHECKPOINTS)?;
    let page = ServeRequest::ListCheckpoints { run: None, limit: bounds.limit, offset: bounds.offset };
    let (saved, total) = front.checkpoints(&tenant, page).await?;
    ok(&Checkpoints { checkpoints: saved.iter().map(checkpoint).collect(), cursor: Some(bounds.cursor(total)) })
}

fn checkpoint(record: &CheckpointRecord) -> Checkpoint {
    Checkpoint {
        checkpoint_id: record.path.checkpoint_id(),
        checkpoint_type: match record.path.kind {
            CheckpointKind::Weights => CheckpointType::Training,
            CheckpointKind::SamplerWeights => CheckpointType::Sampler,
            CheckpointKind::ExternalWeights => CheckpointType::External,
        },
        time: record.created_at,
        tinker_path: record.path.to_string(),
        size_bytes: Some(record.size_bytes),
        public: record.public,
        user_metadata: (!record.user_metadata.is_empty()).then(|| record.user_metadata.clone()),
        expires_at: record.expires_at,
    }
}
