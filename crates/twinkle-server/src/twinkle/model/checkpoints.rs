//! Saving and loading an adapter.

use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use twinkle_core::call::{
    CheckpointRecord, NamedClass, RunOperation, RunOutcome, SamplerTarget, SavedTraining, ServeOutcome, ServeRequest,
    TrainingProgress,
};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};

use super::adapters::Adapter;
use super::arguments::Arguments;
use super::work::to_the_end;
use crate::tinker::unexpected;
use crate::twinkle::hub::Brought;
use crate::twinkle::{Answer, Caller, Json, TwinkleFront, null, ok};

/// Checkpoints for sampling that a run keeps: the newest, and the one before, from which somebody may still sample.
const KEPT_FOR_SAMPLING: usize = 2;
/// Checkpoints of a run that are looked through.
const MOST_OF_RUN: u32 = 1_000;

/// The body of `save`.
#[derive(Deserialize, JsonSchema)]
pub(super) struct Save {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    adapter_name: Option<String>,
    #[serde(default)]
    #[serde(rename = "save_optimizer")]
    with_optimizer: bool,
    #[serde(default)]
    is_sampler: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The body of `load`.
#[derive(Deserialize, JsonSchema)]
pub(super) struct Load {
    /// The checkpoint.
    name: String,
    #[serde(default)]
    adapter_name: Option<String>,
    #[serde(default)]
    #[serde(rename = "load_optimizer")]
    with_optimizer: bool,
}

/// The body of `resume_from_checkpoint`.
#[derive(Deserialize, JsonSchema)]
pub(super) struct Resume {
    /// The checkpoint.
    name: String,
    #[serde(default)]
    adapter_name: Option<String>,
    #[serde(default)]
    #[serde(rename = "resume_only_model")]
    only_model: bool,
}

/// `POST save`
pub(super) async fn save(State(front): State<TwinkleFront>, caller: Caller, Json(wanted): Json<Save>) -> Answer {
    let (path, folder) = to_the_end("save", async move { front.save(caller, wanted).await }).await?;
    // `result` is what clients of 0.1 read.
    let path = path.to_twinkle();
    ok(&json!({ "twinkle_path": path, "result": path, "checkpoint_dir": folder }))
}

/// `POST load`
pub(super) async fn load(State(front): State<TwinkleFront>, caller: Caller, Json(wanted): Json<Load>) -> Answer {
    let Load { name, adapter_name, with_optimizer } = wanted;
    to_the_end("load", async move {
        let mut adapter = front.adapter(&caller, adapter_name.as_deref()).await?;
        front.load(&mut adapter, &name, with_optimizer).await
    })
    .await?;
    null()
}

/// `POST resume_from_checkpoint`: like `load`, and tells how far the training had come.
pub(super) async fn resume(State(front): State<TwinkleFront>, caller: Caller, Json(wanted): Json<Resume>) -> Answer {
    let Resume { name, adapter_name, only_model } = wanted;
    let progress = to_the_end("resume_from_checkpoint", async move {
        let mut adapter = front.adapter(&caller, adapter_name.as_deref()).await?;
        front.load(&mut adapter, &name, !only_model).await
    })
    .await?;
    let TrainingProgress { cur_step, consumed_train_samples, accumulation_steps } = progress;
    ok(&json!({ "result": {
        "cur_step": cur_step,
        "consumed_train_samples": consumed_train_samples,
        "gradient_accumulation_steps": accumulation_steps,
    } }))
}

impl TwinkleFront {
    async fn save(&self, caller: Caller, wanted: Save) -> Result<(CheckpointPath, Option<String>)> {
        let Save { name, adapter_name, with_optimizer, is_sampler, rest } = wanted;
        let mut arguments = Arguments::new("save", rest);
        let interval = arguments.count("interval")?.unwrap_or(1).max(1);
        let consumed_train_samples = arguments.count("consumed_train_samples")?.unwrap_or(0);
        if arguments.flag("merge_lora")?.unwrap_or(false) {
            return Err(Error::unsupported("`merge_lora` is not offered: a checkpoint holds the adapter alone")
                .hint("merge it into the model with PEFT's `merge_and_unload`"));
        }
        arguments.end()?;
        let adapter = self.adapter(&caller, adapter_name.as_deref()).await?;
        let run = adapter.run().clone();
        let name = checkpoint_name(name.as_deref());
        if is_sampler {
            return self.save_for_sampler(&adapter, &run).await;
        }
        let path = CheckpointPath::new(run.clone(), CheckpointKind::Weights, &name)?;
        if interval > 1 && !self.state_of(&adapter.tenant, &run, false).await?.cur_step.is_multiple_of(interval) {
            return Ok((path, None));
        }
        let operation = RunOperation::SaveState {
            path: path.clone(),
            ttl_seconds: None,
            overwrite: true,
            user_metadata: [].into(),
            training: SavedTraining { consumed_train_samples, without_optimizer: !with_optimizer },
        };
        self.perform(&adapter.tenant, &run, operation).await?.outcome()?;
        let folder = self.folder_of(&adapter.tenant, &path).await?;
        Ok((path, Some(folder)))
    }

    /// Each save has a name of its own, so that what is sampled under one name never changes. Older ones go once it is there.
    async fn save_for_sampler(&self, adapter: &Adapter, run: &RunId) -> Result<(CheckpointPath, Option<String>)> {
        let saved = self.sampler_checkpoints(&adapter.tenant, run).await?;
        let now = now();
        let is_taken = |name: &str| saved.iter().any(|record| record.path.name == name);
        let mut name = now.clone();
        for number in 2.. {
            if !is_taken(&name) {
                break;
            }
            name = format!("{now}_{number}");
        }
        let path = CheckpointPath::new(run.clone(), CheckpointKind::SamplerWeights, &name)?;
        let operation = RunOperation::SaveForSampler {
            target: SamplerTarget::Checkpoint(path.clone()),
            ttl_seconds: None,
            user_metadata: [].into(),
        };
        self.perform(&adapter.tenant, run, operation).await?.outcome()?;
        let older = saved.len().saturating_sub(KEPT_FOR_SAMPLING - 1);
        for record in saved.into_iter().take(older) {
            let deleted = self.serve(&adapter.tenant, ServeRequest::DeleteCheckpoint(record.path.clone())).await;
            if let Err(reason) = deleted {
                tracing::warn!(checkpoint = %record.path, %reason, "an older checkpoint for sampling was not removed");
            }
        }
        let folder = self.folder_of(&adapter.tenant, &path).await?;
        Ok((path, Some(folder)))
    }

    /// A run's checkpoints for sampling, oldest first.
    async fn sampler_checkpoints(&self, tenant: &TenantId, run: &RunId) -> Result<Vec<CheckpointRecord>> {
        let page = ServeRequest::ListCheckpoints { run: Some(run.clone()), limit: MOST_OF_RUN, offset: 0 };
        match self.serve(tenant, page).await? {
            ServeOutcome::Checkpoints { checkpoints, .. } => {
                let is_for_sampling = |record: &CheckpointRecord| record.path.kind == CheckpointKind::SamplerWeights;
                Ok(checkpoints.into_iter().filter(is_for_sampling).collect())
            }
            other => Err(unexpected("the server component", &other)),
        }
    }

    /// Where a checkpoint lies on the server.
    async fn folder_of(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<String> {
        let (files, tenant, path) = (self.context.checkpoints.clone(), tenant.clone(), path.clone());
        let look = move || {
            let found = files.look(&tenant, &path)?;
            let folder = std::path::absolute(found.directory()).unwrap_or_else(|_| found.directory().to_owned());
            Ok(folder.to_string_lossy().into_owned())
        };
        let folder = tokio::task::spawn_blocking(look).await;
        folder.map_err(|error| Error::internal(format!("a checkpoint was not looked up: {error}")))?
    }

    async fn load(&self, adapter: &mut Adapter, name: &str, with_optimizer: bool) -> Result<TrainingProgress> {
        if !self.is_on_hub(&adapter.tenant, name) {
            let checkpoint = self.checkpoint_named(&adapter.tenant, name).await?;
            return self.load_checkpoint(adapter, checkpoint, with_optimizer).await;
        }
        let Brought { checkpoint, is_new } = self.bring(&adapter.tenant, adapter.run(), name).await?;
        let path = checkpoint.path.clone();
        let loaded = self.load_checkpoint(adapter, checkpoint, with_optimizer).await;
        if loaded.is_err() && is_new {
            // Nothing refers to it.
            let deleted = self.serve(&adapter.tenant, ServeRequest::DeleteCheckpoint(path)).await;
            if let Err(reason) = deleted {
                tracing::warn!(run = %adapter.run(), %reason, "an adapter of a hub was not loaded and not removed");
            }
        }
        loaded
    }

    async fn load_checkpoint(
        &self,
        adapter: &mut Adapter,
        checkpoint: CheckpointRecord,
        with_optimizer: bool,
    ) -> Result<TrainingProgress> {
        let model = &self.model()?.name;
        if checkpoint.base_model != *model {
            return Err(Error::invalid(format!(
                "the checkpoint is of base model `{}`, not `{model}`",
                checkpoint.base_model
            )));
        }
        let owner = (checkpoint.tenant != adapter.tenant).then(|| checkpoint.tenant.clone());
        let operation = RunOperation::LoadState { path: checkpoint.path, with_optimizer, owner };
        let done = self.perform(&adapter.tenant, adapter.run(), operation).await?;
        let progress = match done.outcome()? {
            RunOutcome::Loaded { progress, .. } => progress.unwrap_or_default(),
            other => return Err(unexpected("the model component", other)),
        };
        self.forget_forward(adapter);
        if with_optimizer {
            self.adopt_optimizer(adapter).await?;
        }
        Ok(progress)
    }

    /// The optimizer came with the checkpoint: it counts as set.
    async fn adopt_optimizer(&self, adapter: &mut Adapter) -> Result<()> {
        let state = self.state_of(&adapter.tenant, adapter.run(), false).await?;
        let bare = |class: &str| NamedClass { class: class.to_owned(), settings: Map::new() };
        let (optimizer, scheduler) =
            (bare(state.optimizer.name()), state.scheduler.as_ref().map(|scheduler| bare(scheduler.name())));
        self.set(adapter, |settings| (settings.optimizer, settings.scheduler) = (Some(optimizer), scheduler)).await
    }

    /// The checkpoint that a client names. Whose it is, and whether it is there at all, is not told apart.
    async fn checkpoint_named(&self, tenant: &TenantId, name: &str) -> Result<CheckpointRecord> {
        let checkpoint = self.named_checkpoint(tenant, name).await.map_err(|error| match error.code {
            ErrorCode::NotFound => Error::not_found(format!("Checkpoint not found or access denied: {name}"))
                .hint("name it as `save` returned it, `twinkle://<run>/weights/<name>`, or as an adapter of a hub, `ms://org/name` or `hf://org/name`; other files are not read"),
            _ => error,
        })?;
        if checkpoint.path.kind != CheckpointKind::Weights {
            return Err(Error::invalid(format!("`{}` holds no state to train from", checkpoint.path.to_twinkle()))
                .hint("load what `save` wrote without `is_sampler`"));
        }
        Ok(checkpoint)
    }
}

/// The name of a checkpoint: what is no letter, digit, `_` or `-` becomes `_`; without one, the time.
fn checkpoint_name(asked: Option<&str>) -> String {
    let Some(asked) = asked.filter(|name| !name.is_empty()) else { return now() };
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    let name: String = asked.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect();
    // A name begins with a letter or a digit.
    if name.starts_with(|first: char| first.is_ascii_alphanumeric()) { name } else { format!("checkpoint{name}") }
}

/// The time as the original writes it in names.
fn now() -> String {
    jiff::Zoned::now().strftime("%Y%m%d_%H%M%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_folders() {
        assert_eq!(checkpoint_name(Some("ck one!")), "ck_one_");
        assert_eq!(checkpoint_name(Some("step-1.5")), "step-1_5");
        assert_eq!(checkpoint_name(Some("../../x")), "checkpoint______x");
        assert_eq!(checkpoint_name(Some("_a")), "checkpoint_a");
        for asked in [None, Some("")] {
            let name = checkpoint_name(asked);
            assert_eq!((name.len(), name.as_bytes()[8]), (15, b'_'), "{name}");
        }
    }
}
