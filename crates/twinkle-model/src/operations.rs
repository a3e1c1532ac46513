//! What each operation does to a run. Everything is checked before anything changes.

use std::collections::BTreeMap;

use tokio::runtime::Handle;
use twinkle_core::call::{
    AdamParams, CheckpointRecord, CreateRun, LoraSpec, OptimizerWork, Position, RunCall, RunOperation, RunOutcome,
    SamplerTarget, SavedTraining, TrainingProgress,
};
use twinkle_core::checkpoint::{CheckpointMeta, Recipients};
use twinkle_core::config::TrainMode;
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};
use twinkle_core::{Error, ErrorCode, Result};
use twinkle_nn::Publication;

use crate::accumulation::Accumulation;
use crate::backend::Backend;
use crate::engine::EngineContext;
use crate::files::{Extent, ReadRun};
use crate::residents::{Disk, Residents};
use crate::run::{Optimized, Run};
use crate::snapshot::Snapshots;
use crate::{describe, files, snapshot};

/// Executes one operation that is not computed in passes. On an error the run is as it was before.
pub(crate) fn perform(
    context: &EngineContext,
    backend: &dyn Backend,
    runtime: &Handle,
    runs: &mut Residents,
    tenant: &TenantId,
    call: RunCall,
) -> Result<RunOutcome> {
    let RunCall { run: id, position, operation, .. } = call;
    let disk = Snapshots { context, runtime };
    match operation {
        RunOperation::Create(create) => {
            check_is_alone(context, runs, &id)?;
            let run = create_run(context, tenant, create)?;
            runs.insert(&disk, &id, run, position, None)?;
            Ok(RunOutcome::Created { run: id })
        }
        RunOperation::Restore { directory } => {
            let run = disk.read(&directory, tenant)?;
            runs.insert(&disk, &id, run, position, Some(directory))?;
            Ok(RunOutcome::Restored { run: id })
        }
        RunOperation::ForwardBackward { .. } => Err(Error::internal("a forward-backward is computed in passes")),
        RunOperation::OptimStep(settings) => optimizer_step(backend, runs.get(&disk, tenant, &id)?, &settings),
        RunOperation::SetOptimizer(spec) => {
            runs.get(&disk, tenant, &id)?.set_optimizer(spec)?;
            Ok(RunOutcome::OptimizerSet { run: id })
        }
        RunOperation::SetScheduler(spec) => {
            runs.get(&disk, tenant, &id)?.optimizer.schedule(spec)?;
            Ok(RunOutcome::OptimizerSet { run: id })
        }
        RunOperation::Optimize(work) => optimize(backend, runs.get(&disk, tenant, &id)?, &work),
        RunOperation::SaveState { path, ttl_seconds, overwrite, user_metadata, training } => {
            let run = runs.get(&disk, tenant, &id)?;
            let saving = Saving { ttl_seconds, overwrite, user_metadata, training, ..Saving::new(&path, position) };
            save(context, runtime, run, saving)?;
            Ok(RunOutcome::Saved { path })
        }
        RunOperation::SaveForSampler { target, ttl_seconds, user_metadata } => {
            let run = runs.get(&disk, tenant, &id)?;
            match &target {
                SamplerTarget::Checkpoint(path) => {
                    let saving = Saving { ttl_seconds, user_metadata, ..Saving::new(path, position) };
                    save(context, runtime, run, saving)?;
                }
                _ if run.lora.full => {
                    return Err(Error::unsupported(
                        "a run that trains all weights cannot be sampled from while it trains",
                    )
                    .hint("save a checkpoint: it is a whole model, which a `sampler` application can serve"));
                }
                SamplerTarget::Live(name) | SamplerTarget::Inflight { weights: name, .. } => {
                    let publication = Publication { position, optimizer_steps: run.optimizer.steps() };
                    if matches!(target, SamplerTarget::Inflight { .. }) {
                        // On disk first: after a crash the name must not stand for older weights.
                        let (layout, parameters) = (&run.layout, &run.parameters);
                        context.published.save(name, layout, parameters, &run.base_model, publication)?;
                    }
                    context.published.put(name.clone(), run.adapter(&context.base), publication);
                }
            }
            Ok(RunOutcome::SavedForSampler { target })
        }
        RunOperation::SaveExternal { path, ttl_seconds, recipients } => {
            let run = runs.get(&disk, tenant, &id)?;
            let recipients = if recipients.is_empty() { None } else { Some(Recipients::parse(&recipients)?) };
            save(context, runtime, run, Saving { ttl_seconds, recipients, ..Saving::new(&path, position) })?;
            Ok(RunOutcome::Saved { path })
        }
        RunOperation::LoadState { path, with_optimizer, owner } => {
            let owner = owner.as_ref().unwrap_or(tenant);
            let loaded = load(context, tenant, owner, &path, with_optimizer)?;
            let progress = take_over(runs.get(&disk, tenant, &id)?, loaded, &path, with_optimizer)?;
            Ok(RunOutcome::Loaded { run: id, path, progress: Some(progress) })
        }
        RunOperation::Unload => {
            runs.get(&disk, tenant, &id)?;
            runs.remove(&id);
            snapshot::remove_all(context, &id);
            Ok(RunOutcome::Unloaded { run: id })
        }
        RunOperation::Expire { path, ending } => {
            let run = runs.get(&disk, tenant, &id)?;
            let user_metadata = BTreeMap::from([("saved_by".to_owned(), "the server, when the run ended".to_owned())]);
            save(context, runtime, run, Saving { user_metadata, ..Saving::new(&path, position) })?;
            // The snapshot stays until the end is durable: a crash before that ends the run again.
            runs.remove(&id);
            Ok(RunOutcome::Expired { run: id, path, ending })
        }
        RunOperation::Describe { values } => {
            let run = runs.get(&disk, tenant, &id)?;
            Ok(RunOutcome::Described(Box::new(describe::describe(context, &id, run, values)?)))
        }
        RunOperation::Spill => {
            runs.spill(&disk, &id)?;
            Ok(RunOutcome::Spilled { run: id })
        }
    }
}

/// Puts what was read from `path` in the run's place, if it is of the same shape. Without the checkpoint's optimizer the
/// run's own goes on, with nothing that it remembered. Returns how far the checkpoint's training had come.
fn take_over(run: &mut Run, read: ReadRun, path: &CheckpointPath, with_optimizer: bool) -> Result<TrainingProgress> {
    let ReadRun { run: mut loaded, progress } = read;
    if loaded.lora.rank != run.lora.rank || loaded.layout.parameter_count() != run.layout.parameter_count() {
        return Err(Error::invalid(format!(
            "checkpoint `{path}` has another adapter shape ({}) than this run ({})",
            shape_of(&loaded),
            shape_of(run),
        ))
        .hint("a run loads adapters on the same modules with the same rank"));
    }
    if !with_optimizer {
        loaded.renew_optimizer(&run.optimizer)?;
        loaded.accumulation = run.accumulation.without_gradients();
    }
    *run = loaded;
    Ok(progress)
}

/// An adapter's shape, to tell it from another one.
fn shape_of(run: &Run) -> String {
    if run.lora.full {
        return "all weights".to_owned();
    }
    let (LoraSpec { rank, alpha, .. }, modules) = (&run.lora, run.layout.modules());
    let head = if modules.iter().any(|module| module.name.ends_with("lm_head")) { "with" } else { "without" };
    format!("rank {rank}, alpha {alpha}, {} modules, {head} the head", modules.len())
}

/// Where all weights are trained, one run at a time has them.
fn check_is_alone(context: &EngineContext, runs: &Residents, id: &RunId) -> Result<()> {
    let other = runs.all_names().into_iter().find(|other| other != id);
    match (context.limits.train_mode, other) {
        (TrainMode::Full, Some(other)) => Err(Error::new(
            ErrorCode::Conflict,
            format!("base model `{}` is already held by another training task (`{other}`)", context.base_model),
        )
        .hint("`train_mode: full` serves one run at a time: unload that one first")),
        _ => Ok(()),
    }
}

/// Whether this application trains what is asked for: adapters, or all weights.
fn check_train_mode(context: &EngineContext, lora: &LoraSpec) -> Result<()> {
    match (context.limits.train_mode, lora.full) {
        (TrainMode::Lora, true) => Err(Error::unsupported(format!(
            "full fine-tuning is not served for base model `{}`: this application trains adapters",
            context.base_model
        ))
        .hint("send a `lora_config`, or serve the model with `train_mode: full`")),
        (TrainMode::Full, false) => Err(Error::invalid(format!(
            "adapters are not served for base model `{}`: this application trains all weights (`train_mode: full`)",
            context.base_model
        ))
        .hint("send no `lora_config`")),
        _ => Ok(()),
    }
}

fn create_run(context: &EngineContext, tenant: &TenantId, create: CreateRun) -> Result<Run> {
    if create.base_model != context.base_model {
        return Err(Error::invalid(format!(
            "this application serves base model `{}`, not `{}`",
            context.base_model, create.base_model
        )));
    }
    if let Some(start) = &create.from {
        let owner = start.owner.as_ref().unwrap_or(tenant);
        return Ok(load(context, tenant, owner, &start.path, start.with_optimizer)?.run);
    }
    check_train_mode(context, &create.lora)?;
    let accumulation = Accumulation::new(create.accumulation_steps.unwrap_or(1))?;
    let rank = create.lora.rank;
    let is_adapter = !create.lora.full;
    if is_adapter && (rank == 0 || rank > context.limits.max_rank) {
        return Err(Error::invalid(format!(
            "LoRA rank {rank} is not between 1 and {}, this server's limit",
            context.limits.max_rank
        )));
    }
    let mut run = Run::fresh(tenant.clone(), &context.base_model, create.lora, &context.base)?;
    run.accumulation = accumulation;
    Ok(run)
}

/// Loads a training checkpoint of `owner` for this tenant; accumulated gradients are not part of it.
fn load(
    context: &EngineContext,
    tenant: &TenantId,
    owner: &TenantId,
    path: &CheckpointPath,
    with_optimizer: bool,
) -> Result<ReadRun> {
    if path.kind != CheckpointKind::Weights {
        return Err(Error::invalid(format!("`{path}` holds no state to train from"))
            .hint("training continues from `…/weights/<name>`, which `save_state` writes"));
    }
    let checkpoint = context.checkpoints.open(owner, path)?;
    let base = &context.base;
    let read = files::read_run(checkpoint.directory(), tenant.clone(), &context.base_model, base, with_optimizer)?;
    check_train_mode(context, &read.run.lora)?;
    Ok(read)
}

fn optimizer_step(backend: &dyn Backend, run: &mut Run, settings: &AdamParams) -> Result<RunOutcome> {
    let norm = backend.optimizer_step(run, settings)?;
    let metrics = [("grad_norm", norm), ("learning_rate", settings.learning_rate)];
    Ok(RunOutcome::OptimStep { metrics: metrics.map(|(name, value)| (name.to_owned(), value)).into() })
}

fn optimize(backend: &dyn Backend, run: &mut Run, work: &OptimizerWork) -> Result<RunOutcome> {
    let Optimized { grad_norm, learning_rate, next_learning_rate, was_due } = backend.optimize(run, work)?;
    let metrics = [
        ("grad_norm", grad_norm),
        ("learning_rate", Some(learning_rate)),
        ("next_learning_rate", next_learning_rate),
        ("was_due", work.only_at_boundary.then_some(f64::from(was_due))),
    ];
    let known = metrics.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Ok(RunOutcome::OptimStep { metrics: known.collect() })
}

struct Saving<'a> {
    path: &'a CheckpointPath,
    ttl_seconds: Option<u64>,
    overwrite: bool,
    user_metadata: BTreeMap<String, String>,
    /// What is saved besides the weights.
    training: SavedTraining,
    /// Whom its files are encrypted for; `None`: they are plain.
    recipients: Option<Recipients>,
    position: Position,
}

impl<'a> Saving<'a> {
    /// A plain checkpoint that replaces none and stays until it is deleted.
    fn new(path: &'a CheckpointPath, position: Position) -> Self {
        let user_metadata = BTreeMap::new();
        Self {
            path,
            ttl_seconds: None,
            overwrite: false,
            user_metadata,
            training: SavedTraining::default(),
            recipients: None,
            position,
        }
    }
}

fn save(context: &EngineContext, runtime: &Handle, run: &Run, saving: Saving<'_>) -> Result<()> {
    let Saving { path, ttl_seconds, overwrite, user_metadata, training, recipients, position } = saving;
    let draft = context.checkpoints.draft(&run.tenant, path)?;
    match path.kind {
        CheckpointKind::Weights => files::write_run(draft.directory(), run, Extent { training, gradients: false })?,
        CheckpointKind::SamplerWeights => files::write_adapter(draft.directory(), run)?,
        CheckpointKind::ExternalWeights => files::write_export(draft.directory(), run)?,
    }
    if let Some(recipients) = recipients {
        recipients.encrypt_folder(draft.directory())?;
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
        optimizer_steps: Some(run.optimizer.steps()),
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
        public: false,
    };
    runtime.block_on(context.store.insert_checkpoint(&record))
}
