//! What each operation does to a run. Everything is checked before anything changes.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::runtime::Handle;
use twinkle_core::call::{
    AdamParams, CheckpointRecord, CreateRun, Position, RunCall, RunOperation, RunOutcome, SamplerTarget,
};
use twinkle_core::checkpoint::CheckpointMeta;
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};
use twinkle_core::{Error, Result};

use crate::batch::{self, Limits};
use crate::engine::{EngineContext, ResidentRun};
use crate::run::Run;
use crate::{files, losses, snapshot, step};

type Runs = HashMap<RunId, ResidentRun>;

/// Executes one operation. On an error the run is as it was before.
pub(crate) fn perform(
    context: &EngineContext,
    runtime: &Handle,
    runs: &mut Runs,
    tenant: &TenantId,
    call: RunCall,
) -> Result<RunOutcome> {
    let RunCall { run: id, position, operation, .. } = call;
    match operation {
        RunOperation::Create(create) => create_run(context, runs, tenant, id, create),
        RunOperation::Restore { directory } => {
            let run = files::read_run(&directory, tenant.clone(), &context.base_model, &context.base, true)?;
            insert(runs, id.clone(), run);
            Ok(RunOutcome::Restored { run: id })
        }
        RunOperation::ForwardBackward { data, loss, backward } => {
            let run = resident(runs, tenant, &id)?;
            let loss = losses::build(&loss)?;
            let limits = Limits { vocabulary: context.base.config().vocab_size, max_length: context.limits.max_length };
            let examples = batch::check(data, loss.as_ref(), limits)?;
            let rows = context.limits.rows_per_pass;
            let outcome = step::forward_backward(run, &context.base, &examples, loss.as_ref(), backward, rows)?;
            Ok(RunOutcome::ForwardBackward(outcome))
        }
        RunOperation::OptimStep(settings) => optimizer_step(resident(runs, tenant, &id)?, &settings),
        RunOperation::SaveState { path, ttl_seconds, overwrite, user_metadata } => {
            let run = resident(runs, tenant, &id)?;
            let saving = Saving { path: &path, ttl_seconds, overwrite, user_metadata, position };
            save(context, runtime, run, saving)?;
            Ok(RunOutcome::Saved { path })
        }
        RunOperation::SaveForSampler { target, ttl_seconds, user_metadata } => {
            let run = resident(runs, tenant, &id)?;
            match &target {
                SamplerTarget::Checkpoint(path) => {
                    let saving = Saving { path, ttl_seconds, overwrite: false, user_metadata, position };
                    save(context, runtime, run, saving)?;
                }
                SamplerTarget::Live(session) => context.published.put(session.clone(), run.adapter(&context.base)),
            }
            Ok(RunOutcome::SavedForSampler { target })
        }
        RunOperation::LoadState { path, with_optimizer } => {
            let loaded = load(context, tenant, &path, with_optimizer)?;
            let run = resident(runs, tenant, &id)?;
            if loaded.lora.rank != run.lora.rank || loaded.layout.parameter_count() != run.layout.parameter_count() {
                return Err(Error::invalid(format!(
                    "checkpoint `{path}` has another adapter shape (rank {}) than this run (rank {})",
                    loaded.lora.rank, run.lora.rank
                )));
            }
            *run = loaded;
            Ok(RunOutcome::Loaded { run: id, path })
        }
        RunOperation::Unload => {
            resident(runs, tenant, &id)?;
            runs.remove(&id);
            snapshot::remove_all(context, &id);
            Ok(RunOutcome::Unloaded { run: id })
        }
    }
}

fn resident<'a>(runs: &'a mut Runs, tenant: &TenantId, id: &RunId) -> Result<&'a mut Run> {
    match runs.get_mut(id) {
        Some(resident) if resident.run.tenant == *tenant => Ok(&mut resident.run),
        _ => Err(Error::not_found(format!("model `{id}` does not exist"))),
    }
}

fn insert(runs: &mut Runs, id: RunId, run: Run) {
    runs.insert(id, ResidentRun { run, position: Position::default(), unsaved: Duration::ZERO });
}

fn create_run(
    context: &EngineContext,
    runs: &mut Runs,
    tenant: &TenantId,
    id: RunId,
    create: CreateRun,
) -> Result<RunOutcome> {
    if create.base_model != context.base_model {
        return Err(Error::invalid(format!(
            "this application serves base model `{}`, not `{}`",
            context.base_model, create.base_model
        )));
    }
    if let Some(limit) = context.limits.max_runs
        && runs.len() >= limit
    {
        return Err(Error::invalid(format!("all {limit} adapter slots of `{}` are in use", context.base_model))
            .hint("unload a model, or ask the operator to raise `max_loras`"));
    }
    let run = if let Some(start) = &create.from {
        load(context, tenant, &start.path, start.with_optimizer)?
    } else {
        let rank = create.lora.rank;
        if rank == 0 || rank > context.limits.max_rank {
            return Err(Error::invalid(format!(
                "LoRA rank {rank} is not between 1 and {}, this server's limit",
                context.limits.max_rank
            )));
        }
        Run::fresh(tenant.clone(), &context.base_model, create.lora, &context.base)?
    };
    insert(runs, id.clone(), run);
    Ok(RunOutcome::Created { run: id })
}

/// Loads a training checkpoint of this tenant; accumulated gradients are not part of it.
fn load(context: &EngineContext, tenant: &TenantId, path: &CheckpointPath, with_optimizer: bool) -> Result<Run> {
    if path.kind != CheckpointKind::Weights {
        return Err(Error::invalid(format!("`{path}` holds weights for sampling only"))
            .hint("training continues from `…/weights/<name>`, which `save_state` writes"));
    }
    let checkpoint = context.checkpoints.open(tenant, path)?;
    files::read_run(checkpoint.directory(), tenant.clone(), &context.base_model, &context.base, with_optimizer)
}

fn optimizer_step(run: &mut Run, settings: &AdamParams) -> Result<RunOutcome> {
    let norm = run.optimizer_step(settings)?;
    let mut metrics = BTreeMap::new();
    if settings.grad_clip_norm > 0.0 {
        metrics.insert("grad_norm".to_owned(), norm);
    }
    Ok(RunOutcome::OptimStep { metrics })
}

struct Saving<'a> {
    path: &'a CheckpointPath,
    ttl_seconds: Option<u64>,
    overwrite: bool,
    user_metadata: BTreeMap<String, String>,
    position: Position,
}

fn save(context: &EngineContext, runtime: &Handle, run: &Run, saving: Saving<'_>) -> Result<()> {
    let Saving { path, ttl_seconds, overwrite, user_metadata, position } = saving;
    let draft = context.checkpoints.draft(&run.tenant, path)?;
    match path.kind {
        CheckpointKind::Weights => files::write_run(draft.directory(), run, false)?,
        CheckpointKind::SamplerWeights => files::write_adapter(draft.directory(), run)?,
    }
    let created_at = jiff::Timestamp::now();
    let expires_at = match ttl_seconds {
        None => None,
        Some(seconds) => Some(
            created_at
                .checked_add(jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX)))
                .map_err(|_| Error::invalid(format!("a lifetime of {seconds} seconds is beyond the calendar")))?,
        ),
    };
    let meta = CheckpointMeta {
        base_model: run.base_model.clone(),
        lora: run.lora.clone(),
        user_metadata: user_metadata.clone(),
        created_at,
        // A replayed save finds its own files by this and is content.
        position,
    };
    let committed = draft.commit(&meta, overwrite)?;
    let record = CheckpointRecord {
        path: path.clone(),
        tenant: run.tenant.clone(),
        base_model: run.base_model.clone(),
        lora: run.lora.clone(),
        size_bytes: committed.size_bytes,
        user_metadata,
        created_at,
        expires_at,
    };
    runtime.block_on(context.store.insert_checkpoint(&record))
}
