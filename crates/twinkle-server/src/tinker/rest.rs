//! Listing and deleting: training runs and checkpoints.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use twinkle_core::call::{CheckpointRecord, RunRecord, ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};
use twinkle_core::wire::tinker::json::{Checkpoint, CheckpointType, Checkpoints, Cursor, TrainingRun, TrainingRuns};

use super::reply::{Answer, done, ok};
use super::session::path;
use super::{Front, Tenant, unexpected};

/// Most entries of one page.
const MAX_PAGE: u32 = 100;
/// Most checkpoints of one run in one answer: its clients ask for no pages.
const MAX_OF_RUN: u32 = 1_000;

type Captured<T> = std::result::Result<Path<T>, PathRejection>;
type Asked = std::result::Result<Query<Page>, QueryRejection>;

/// Which part of a list. `access_scope` may come along: there is only one scope here.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Page {
    limit: Option<u32>,
    offset: Option<u32>,
    project_id: Option<String>,
}

/// A page within bounds.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    limit: u32,
    offset: u32,
}

impl Bounds {
    fn of(asked: Asked, default_limit: u32, most: u32) -> Result<Self> {
        let Query(page) =
            asked.map_err(|error| Error::invalid(format!("the query of the request is wrong: {error}")))?;
        if page.project_id.is_some() {
            return Err(Error::unsupported("`project_id` is not supported").hint("this server has no projects"));
        }
        Ok(Self { limit: page.limit.unwrap_or(default_limit).min(most), offset: page.offset.unwrap_or(0) })
    }

    fn cursor(self, total: u64) -> Cursor {
        Cursor { offset: self.offset.into(), limit: self.limit.into(), total_count: total }
    }
}

/// `GET training_runs`
pub(super) async fn runs(State(front): State<Front>, Tenant(tenant): Tenant, asked: Asked) -> Answer {
    let bounds = Bounds::of(asked, 20, MAX_PAGE)?;
    let request = ServeRequest::ListRuns { project_id: None, limit: bounds.limit, offset: bounds.offset };
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
    let bounds = Bounds::of(asked, MAX_PAGE, MAX_PAGE)?;
    let page = ServeRequest::ListCheckpoints { run: None, limit: bounds.limit, offset: bounds.offset };
    let (saved, total) = front.checkpoints(&tenant, page).await?;
    ok(&Checkpoints { checkpoints: saved.iter().map(checkpoint).collect(), cursor: Some(bounds.cursor(total)) })
}

/// `DELETE training_runs/{run}/checkpoints/{kind}/{name}`
pub(super) async fn delete_checkpoint(
    State(front): State<Front>,
    Tenant(tenant): Tenant,
    captured: Captured<(String, String)>,
) -> Answer {
    let (run, id) = path(captured)?;
    front.serve(&tenant, ServeRequest::DeleteCheckpoint(checkpoint_path(&run, &id)?)).await?;
    Ok(done())
}

/// The checkpoint of a run by its two-part id.
fn checkpoint_path(run: &str, id: &str) -> Result<CheckpointPath> {
    CheckpointPath::parse(&format!("tinker://{run}/{id}")).map_err(|_| {
        Error::invalid(format!("`{id}` is not the id of a checkpoint"))
            .hint("an id has two parts, `weights/<name>` or `sampler_weights/<name>`")
    })
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
